"""The export matrix: one row for each file that a network may get."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Self

from stn_export.artifacts.environment import versions
from stn_export.artifacts.files import fingerprint
from stn_export.artifacts.manifest import DEFAULT_EXPORT, Artifact
from stn_export.program.specs import Contract
from stn_export.runtimes.environments import OWN

CONTRACTS = {"float": "", "uint8": "NCHW", "uint8-nhwc": "NHWC"}  # the layout of raw pictures; "" for no such thing
WEIGHT_BITS = 7  # of int8 files: the eighth saturates on x86 without VNNI
FORMATS = {
    "onnx": ".onnx",
    "torchscript": ".ts",
    "aotinductor": ".aoti.pt2",
    "aotinductor-cuda": ".aoti-cuda.pt2",
    "native": ".c",
    "executorch": ".pte",
    "litert": ".tflite",
}


@dataclass(frozen=True)
class ExportSpec:
    """One row. ``default`` rows are written by ``make export``, the others on request.

    Of the lowerings ``plain`` is for networks that do not sample, ``default`` for all, the others for those that do;
    formats other than ONNX keep PyTorch's own operators and have none.
    """

    format: str
    lowering: str | None
    precision: str = "fp32"
    contract: str = "float"
    default: bool = True
    batch: int | None = None  # fixed, instead of open
    optimised: bool = False  # by ONNX Runtime, ahead of time
    target: str | None = None  # the processors that C is compiled for, instead of this one

    @property
    def name(self) -> str:
        """The artifact's name in the manifest, unique within a network."""
        parts = [self.lowering or self.format, self.precision]
        parts += [self.contract] * (self.contract != "float")
        parts += [f"batch{self.batch}"] * (self.batch is not None and not self.always_fixed)
        return "-".join(parts + ["optimised"] * self.optimised + ([self.target] if self.target else []))

    @property
    def always_fixed(self) -> bool:
        """Whether it is for the sizes of one example: as exporters do by themselves, or runtimes want it."""
        return self.lowering == DEFAULT_EXPORT or self.format in OWN

    @property
    def file(self) -> str:
        """The artifact's file name, for people only."""
        return self.name + FORMATS[self.format]

    def applies_to(self, samples: bool, contract: Contract) -> bool:
        """Whether a network that samples, or does not, and takes this can have such a file."""
        lowered = self.lowering in (None, DEFAULT_EXPORT) or (self.lowering == "plain") != samples
        return lowered and (not CONTRACTS[self.contract] or any(spec.pixels for spec in contract.inputs))

    def settings(self, calibration: str) -> dict:
        """What a file depends on beside its program: the row, the exporters' versions, int8's examples and weights."""
        relevant, found = ("torch", "onnx", "onnxscript", "stn_export"), versions()
        stamp = fingerprint(f"{key}={found[key]}".encode() for key in relevant)[:16]
        of_int8 = {"examples": calibration, "weight_bits": WEIGHT_BITS} if self.precision == "int8" else {}
        return asdict(self) | {"versions": stamp} | of_int8

    @classmethod
    def of(cls, artifact: Artifact) -> Self | None:
        """The row that an artifact was written from; None where none writes such a thing any more."""
        names = [field.name for field in fields(cls)]
        try:
            spec = cls(**{name: artifact.settings[name] for name in names})
        except KeyError:
            return None
        return spec if spec.name == artifact.name and replace(spec, batch=None, optimised=False).known else None

    @property
    def known(self) -> bool:
        """Whether it is a row of the matrix."""
        return any((self.name, self.format) == (row.name, row.format) for row in EXPORTS)


EXPORTS = (
    ExportSpec("torchscript", None),
    ExportSpec("torchscript", None, "bf16"),
    ExportSpec("aotinductor", None, default=False),
    ExportSpec("aotinductor-cuda", None, default=False),
    ExportSpec("native", None),
    *(ExportSpec("native", None, contract=contract, default=False) for contract in ("uint8", "uint8-nhwc")),
    *(ExportSpec("native", None, default=False, target=target) for target in ("x86-64-v3", "x86-64-v4", "generic")),
    *(ExportSpec(format, None, default=False, batch=1) for format in OWN),
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


def with_variants(specs: list[ExportSpec], batch: int | None, optimised: bool) -> list[ExportSpec]:
    """The rows, and behind them the ONNX ones again with a fixed batch or optimised ahead of time."""
    float_rows = [spec for spec in specs if (spec.format, spec.precision, spec.batch) == ("onnx", "fp32", None)]
    fixed = [replace(spec, batch=batch) for spec in float_rows] if batch else []
    return specs + fixed + ([replace(spec, optimised=True) for spec in float_rows] if optimised else [])
