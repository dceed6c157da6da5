"""Define networks, recipes and data sets of training once, as frozen dataclasses and tables.

Images are NCHW, uint8 or float32 normalised as ``(x / 255 - MEAN) / STD``.
"""

from dataclasses import dataclass, replace

from stn_export.config import FOLDER
from stn_export.run.manifest import OTHER, PLAIN, SUBJECT, Role

CHANNELS = 3
MEAN = 0.5
STD = 0.5
ALIGN_CORNERS = False


@dataclass(frozen=True)
class Sizes:
    """What a network's layers follow from: the side of its square images in pixels, and its number of classes."""

    size: int = 32
    classes: int = 10

    @property
    def image(self) -> tuple[int, int, int]:
        """Return the shape of an image: channels, height, width."""
        return CHANNELS, self.size, self.size

    @property
    def arguments(self) -> dict[str, int]:
        """Return the arguments of ``build_model``; none for CIFAR-10's sizes, which are its defaults."""
        return {} if self == CIFAR10_SIZES else {"size": self.size, "classes": self.classes}


CIFAR10_SIZES = Sizes()


@dataclass(frozen=True)
class NetworkSpec:
    """A network by name, and its description for the run."""

    name: str
    label: str
    role: Role
    note: str


MODELS = {
    spec.name: spec
    for spec in (
        NetworkSpec("stn", "spatial transformer", SUBJECT, "spatial transformer in front of the classifier"),
        NetworkSpec("cnn", "plain CNN", PLAIN, "the same classifier alone"),
        NetworkSpec(
            "cnn-matched",
            "CNN of equal cost",
            OTHER,
            "that classifier, widened to the multiply-adds of the one with the transformer",
        ),
    )
}


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; ``learning_rate`` is the peak of a one-cycle schedule, momentum is Nesterov's.

    ``localisation_scale`` multiplies the transformer's learning rate. ``weight_decay`` does not apply to biases, which
    hold theta's identity. ``flip`` mirrors half of the images, ``crop`` shifts each by up to that many pixels.
    ``label_smoothing`` is the share of a label's weight that is divided among all classes.
    """

    name: str
    optimizer: str
    learning_rate: float
    epochs: int
    batch_size: int = 64
    momentum: float = 0.0
    weight_decay: float = 0.0
    one_cycle: bool = False
    warm_up: float = 0.3  # the share of the cycle in which the learning rate rises
    localisation_scale: float = 1.0
    dropout: float = 0.5
    flip: bool = False
    crop: int = 0
    label_smoothing: float = 0.0


SHORT = Recipe(
    "short",
    optimizer="sgd",
    learning_rate=0.05,
    epochs=20,
    batch_size=128,
    momentum=0.9,
    weight_decay=5e-4,
    one_cycle=True,
    warm_up=0.2,
    localisation_scale=0.002,
    dropout=0.0,
    flip=True,
    crop=2,
)
RECIPES = {  # the localisation scales, and all of ``tuned``, were chosen on held-out training images
    recipe.name: recipe
    for recipe in (
        Recipe("reference", optimizer="sgd", learning_rate=0.01, epochs=50),
        Recipe(
            "quick",
            optimizer="adamw",
            learning_rate=3e-3,
            epochs=12,
            weight_decay=1e-4,
            one_cycle=True,
            localisation_scale=0.3,
        ),
        SHORT,
        replace(SHORT, name="affine", localisation_scale=0.1),
        replace(SHORT, name="tuned", epochs=50, weight_decay=1e-3, label_smoothing=0.1),
    )
}

PRECISIONS = ("fp32", "tf32", "bf16")  # of training; evaluation is in fp32
KEEP = ("last", "best")  # which epoch's weights; the best is chosen on held-out training images


@dataclass(frozen=True)
class AffineRange:
    """Random affine maps: rotation by up to ``degrees`` and shift by up to ``shift`` pixels either way, then scaling.

    ``scale`` is the range of the object's size relative to the original; all three are drawn uniformly.
    """

    degrees: float
    scale: tuple[float, float]
    shift: float


@dataclass(frozen=True)
class DatasetSpec:
    """A data set by name: its classes in label order, its default recipe, and a description.

    If there is an ``affine`` range, training images are warped afresh each time they are used, test images once.
    """

    name: str
    classes: tuple[str, ...]
    recipe: str
    note: str
    affine: AffineRange | None = None


LEAST_STEPS = 1_884  # of a training on a folder: those that ``quick`` takes on the digits
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DATASETS = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            "cifar10",
            CIFAR10_CLASSES,
            recipe="reference",
            note="CIFAR-10 (A. Krizhevsky, 2009): 50,000 training and 10,000 test photographs",
        ),
        DatasetSpec(
            "cifar10-affine",
            CIFAR10_CLASSES,
            recipe="affine",
            note="CIFAR-10 (A. Krizhevsky, 2009), each photograph turned, scaled and shifted at random: 50,000 for "
            "training, afresh each time they are seen, and 10,000 for testing, once",
            affine=AffineRange(degrees=45, scale=(0.6, 1.1), shift=5),
        ),
        DatasetSpec(
            "digits",
            tuple("0123456789"),
            recipe="quick",
            note="10,000 training and 2,000 test images of the digits 0 to 9, drawn from the fonts that matplotlib "
            "ships: turned, scaled, shifted and cluttered",
        ),
        DatasetSpec(
            FOLDER,
            (),  # those that the folder holds
            recipe="quick",
            note="pictures of one's own, a folder of them for each class",
        ),
    )
}
