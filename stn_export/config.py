"""Every setting of the pipeline, stated once as frozen dataclasses and tables. Nothing here does any I/O.

Images are NCHW. ``float`` inputs are float32 normalised as ``(x / 255 - MEAN) / STD``.
"""

from dataclasses import dataclass, replace
from pathlib import Path

ARTIFACTS = Path("artifacts")
DATA = Path("data")

IMAGE_SHAPE = (3, 32, 32)
MEAN = 0.5
STD = 0.5
ALIGN_CORNERS = False
INPUT_NAME = "images"
OUTPUT_NAME = "log_probs"

MODEL_LABELS = {"stn": "spatial transformer", "cnn": "plain CNN", "cnn-matched": "CNN of equal cost"}
MODELS = tuple(MODEL_LABELS)
DEFAULT_MODELS = ("stn", "cnn")
CHECKPOINT = "checkpoint"
DEFAULT_SEED = 0


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: ``learning_rate`` is the peak where there is one cycle, momentum is Nesterov's.

    ``localisation_scale`` multiplies the transformer's learning rate. Biases, which hold theta's identity, are not
    decayed by ``weight_decay``. ``flip`` mirrors half of the images, ``crop`` shifts each by up to so many pixels.
    ``label_smoothing`` is the share of a label's weight that all classes divide among them.
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
KEEP = ("last", "best")  # epoch's weights; the best is told on held-out training images


@dataclass(frozen=True)
class AffineRange:
    """Random affine maps: turned by up to ``degrees`` and shifted by up to ``shift`` pixels either way, then scaled.

    ``scale`` is the range of the object's size against the original's; all three are drawn uniformly.
    """

    degrees: float
    scale: tuple[float, float]
    shift: float


@dataclass(frozen=True)
class DatasetSpec:
    """A data set by name: its classes in label order and the recipe it is trained with by default.

    Where there is an ``affine`` range, training images are warped afresh each time they are seen, test images once.
    """

    name: str
    classes: tuple[str, ...]
    recipe: str
    affine: AffineRange | None = None


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DATASETS = {
    spec.name: spec
    for spec in (
        DatasetSpec("cifar10", CIFAR10_CLASSES, recipe="reference"),
        DatasetSpec(
            "cifar10-affine",
            CIFAR10_CLASSES,
            recipe="affine",
            affine=AffineRange(degrees=45, scale=(0.6, 1.1), shift=5),
        ),
        DatasetSpec("digits", tuple("0123456789"), recipe="quick"),
    )
}
DEFAULT_DATASET = "digits"


@dataclass(frozen=True)
class InputContract:
    """What an artifact is fed with: normalised float32, or raw uint8 that it normalises itself."""

    name: str
    dtype: str
    layout: str = "NCHW"

    def as_dict(self) -> dict:
        """As the manifest keeps it."""
        channels, height, width = IMAGE_SHAPE
        shape = ["N", channels, height, width] if self.layout == "NCHW" else ["N", height, width, channels]
        scale = {"mean": MEAN, "std": STD} if self.dtype == "float32" else {}
        return {"shape": shape, "dtype": self.dtype} | scale


CONTRACTS = {
    contract.name: contract
    for contract in (
        InputContract("float", "float32"),
        InputContract("uint8", "uint8"),
        InputContract("uint8-nhwc", "uint8", layout="NHWC"),
    )
}

FORMATS = {
    "onnx": ".onnx",
    "torchscript": ".ts",
    "pt2": ".pt2",
    "aotinductor": ".aoti.pt2",
    "aotinductor-cuda": ".aoti-cuda.pt2",
}
DEFAULT_EXPORT = "default"  # instead of a lowering: what torch.onnx.export gives when nothing is said, one image only


@dataclass(frozen=True)
class ExportSpec:
    """One row of the export matrix. ``default`` rows are written by ``make export``, the others on request.

    Of the lowerings ``plain`` is for models without a transformer, ``default`` for all, the others for those with one;
    formats other than ONNX keep PyTorch's own operators and have none.
    """

    format: str
    lowering: str | None
    precision: str = "fp32"
    contract: str = "float"
    default: bool = True
    batch: int | None = None  # fixed, instead of open
    optimised: bool = False  # by ONNX Runtime, ahead of time

    @property
    def name(self) -> str:
        """The artifact's name in the manifest, unique within a model."""
        parts = [self.lowering or self.format, self.precision]
        parts += [self.contract] * (self.contract != "float")
        parts += [f"batch{self.batch}"] * (self.batch is not None and self.lowering != DEFAULT_EXPORT)
        return "-".join(parts + ["optimised"] * self.optimised)

    @property
    def file(self) -> str:
        """The artifact's file name, for people only."""
        return self.name + FORMATS[self.format]

    def applies_to(self, model: str) -> bool:
        """Whether this row is one of ``model``'s."""
        return self.lowering in (None, DEFAULT_EXPORT) or (self.lowering == "plain") == (model != "stn")


EXPORTS = (
    ExportSpec("torchscript", None),
    ExportSpec("torchscript", None, "bf16"),
    ExportSpec("pt2", None),
    ExportSpec("aotinductor", None, default=False),
    ExportSpec("aotinductor-cuda", None, default=False),
    ExportSpec("onnx", DEFAULT_EXPORT, batch=1),
    ExportSpec("onnx", "matmul"),
    ExportSpec("onnx", "affinegrid"),
    ExportSpec("onnx", "decomposed"),
    ExportSpec("onnx", "gather"),
    *(
        ExportSpec("onnx", lowering, precision, contract)
        for lowering in ("folded", "plain")
        for precision, contract in (("fp32", "float"), ("fp32", "uint8"), ("fp32", "uint8-nhwc"), ("fp16", "float"))
    ),
    *(ExportSpec("onnx", lowering, "int8") for lowering in ("matmul", "plain")),
    *(ExportSpec("onnx", lowering, "bf16", default=False) for lowering in ("folded", "plain")),
)

CALIBRATION_IMAGES = 512


VERIFY_BATCHES = (1, 2, 3, 7, 64, 257)


@dataclass(frozen=True)
class ServingSpec:
    """How an inference server batches requests: up to ``max_batch`` images, waiting up to ``max_delay_us`` for them."""

    max_batch: int
    preferred_batches: tuple[int, ...]
    max_delay_us: int
    instances: int = 1


SERVING = ServingSpec(max_batch=64, preferred_batches=(16, 64), max_delay_us=1000)
