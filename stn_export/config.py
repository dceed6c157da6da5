"""The defaults that all commands share. Nothing here does any I/O."""

from dataclasses import dataclass
from pathlib import Path

ARTIFACTS = Path("artifacts")
DATA = Path("data")
DEFAULT_RUN = ARTIFACTS / "digits"

INPUT_NAME = "images"
OUTPUT_NAME = "log_probs"


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
