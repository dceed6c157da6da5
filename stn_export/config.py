"""Every setting of the pipeline, stated once as frozen dataclasses and tables. Nothing here does any I/O.

Images are NCHW. ``float`` inputs are float32 normalised as ``(x / 255 - MEAN) / STD``.
"""

from dataclasses import dataclass
from pathlib import Path

ARTIFACTS = Path("artifacts")
DATA = Path("data")

IMAGE_SHAPE = (3, 32, 32)
MEAN = 0.5
STD = 0.5
ALIGN_CORNERS = False
INPUT_NAME = "images"
OUTPUT_NAME = "log_probs"

MODELS = ("stn", "cnn")
CHECKPOINT = "checkpoint"
DEFAULT_SEED = 0


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; ``localisation_scale`` multiplies the transformer's learning rate."""

    name: str
    optimizer: str
    learning_rate: float
    epochs: int
    batch_size: int = 64
    weight_decay: float = 0.0
    one_cycle: bool = False
    localisation_scale: float = 1.0


RECIPES = {
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
            localisation_scale=0.1,
        ),
    )
}


@dataclass(frozen=True)
class DatasetSpec:
    """A data set by name: its classes in label order and the recipe it is trained with by default."""

    name: str
    classes: tuple[str, ...]
    recipe: str


DATASETS = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            "cifar10",
            ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
            recipe="reference",
        ),
        DatasetSpec("digits", tuple("0123456789"), recipe="quick"),
    )
}
DEFAULT_DATASET = "digits"


@dataclass(frozen=True)
class ExportSpec:
    """One row of the export matrix: what is written for each model in ``models``."""

    format: str
    lowering: str
    precision: str
    suffix: str
    models: tuple[str, ...]
    opset: int | None = None

    @property
    def name(self) -> str:
        """The artifact's name in the manifest, unique within a model."""
        return f"{self.lowering}-{self.precision}"


EXPORTS = (
    ExportSpec("torchscript", "torchscript", "fp32", ".ts", models=("stn", "cnn")),
    ExportSpec("onnx", "matmul", "fp32", ".onnx", models=("stn",), opset=18),
    ExportSpec("onnx", "affinegrid", "fp32", ".onnx", models=("stn",), opset=20),
    ExportSpec("onnx", "plain", "fp32", ".onnx", models=("cnn",), opset=18),
)


@dataclass(frozen=True)
class Tolerance:
    """An element passes where ``|actual - expected| <= absolute + relative * |expected|``."""

    absolute: float
    relative: float


# Log-probabilities reach -30 on noise, where one float32 ulp is 2e-6 and a few of them add up: hence the relative
# part. At the usual magnitudes of 1 the absolute part decides.
TOLERANCES = {"fp32": Tolerance(absolute=1e-5, relative=5e-6)}

VERIFY_BATCHES = (1, 2, 7, 64)


@dataclass(frozen=True)
class BenchGrid:
    """What ``make bench`` times: latency at batch 1, images per second at ``throughput_batches``.

    Every row takes about ``row_seconds`` after ``warmup_seconds``. Where the spatial transformer is set against the
    plain CNN, at ``overhead_batches``, the two take turns in ``blocks`` blocks of about ``block_seconds`` each.
    """

    name: str
    throughput_batches: tuple[int, ...]
    row_seconds: float
    warmup_seconds: float
    overhead_batches: tuple[int, ...]
    blocks: int
    block_seconds: float
    threads: int = 1


GRIDS = {
    grid.name: grid
    for grid in (
        BenchGrid(
            "quick",
            throughput_batches=(16, 256),
            row_seconds=0.5,
            warmup_seconds=0.2,
            overhead_batches=(1, 64),
            blocks=30,
            block_seconds=0.02,
        ),
        BenchGrid(
            "full",
            throughput_batches=(2, 4, 8, 16, 32, 64, 128, 256, 1024),
            row_seconds=2.0,
            warmup_seconds=0.5,
            overhead_batches=(1, 16, 64, 256),
            blocks=100,
            block_seconds=0.05,
        ),
    )
}


@dataclass(frozen=True)
class ServingSpec:
    """How an inference server batches requests: up to ``max_batch`` images, waiting up to ``max_delay_us`` for them."""

    max_batch: int
    preferred_batches: tuple[int, ...]
    max_delay_us: int
    instances: int = 1


SERVING = ServingSpec(max_batch=64, preferred_batches=(16, 64), max_delay_us=1000)
