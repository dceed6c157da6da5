"""The export matrix: one row for each file that a network may get, and the program that its file is made from."""

from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Self

import numpy as np
from torch.fx import GraphModule

from stn_export.errors import UserError
from stn_export.export.marks import marked
from stn_export.export.precision import CALLS, EXAMPLES, Calibration, at_precision, from_bytes, raw
from stn_export.program.program import Program
from stn_export.program.specs import BATCH, Contract
from stn_export.run.environment import git_commit, versions
from stn_export.run.examples import Examples, scored_output
from stn_export.run.manifest import DEFAULT_EXPORT, PROGRAM, Artifact, Facts, NetworkDirectory
from stn_export.run.store import fingerprint
from stn_export.runners.external.environments import OWN

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


# A network of a run and what its files are made from: its program at another precision, raw fed, with marks.


@dataclass(frozen=True)
class Source:
    """One network; the program is read only where something is written."""

    directory: NetworkDirectory

    @cached_property
    def facts(self) -> Facts:
        """What the network is."""
        return self.directory.facts

    @cached_property
    def parent(self) -> Artifact:
        """The program's entry."""
        return self.directory.listed(PROGRAM)

    @cached_property
    def program(self) -> Program:
        """The network as it was captured."""
        return self.directory.program()

    @cached_property
    def examples(self) -> Examples:
        """What it is tried on."""
        return self.directory.examples()

    @cached_property
    def _marked(self) -> dict[tuple[str, str, int | None], Program]:
        return {}

    @property
    def rows(self) -> list[ExportSpec]:
        """Its rows of the matrix; int8 is a default one only where there are labels to tell what it costs."""
        rows = [spec for spec in EXPORTS if spec.applies_to(bool(self.facts.sites), self.parent.contract)]
        labelled = self.examples.labels is not None
        return [replace(spec, default=spec.default and (labelled or spec.precision != "int8")) for spec in rows]

    def settings(self, spec: ExportSpec) -> dict:
        """What the row's file depends on beside the program."""
        return spec.settings(self.facts.examples.get("sha256", ""))

    def contract(self, spec: ExportSpec) -> Contract:
        """What the row's file takes and gives.

        Raises:
            UserError: where its batch is to be fixed and the program's is already.
        """
        layout = CONTRACTS[spec.contract]
        return raw(self._sized(spec), layout) if layout else self._sized(spec)

    def _sized(self, spec: ExportSpec) -> Contract:
        """The program's contract with what the row fixes, which may be every size."""
        contract = self.parent.contract
        if not spec.always_fixed and contract.batch and spec.batch not in (None, contract.batch):
            raise UserError(f"its batch is fixed at {contract.batch} already", "capture it with an open batch")
        sizes = self.program.sizes if spec.always_fixed and contract.open_sizes else {}
        return contract.fixed(sizes | ({BATCH: spec.batch} if spec.batch else {}))

    def graph(self, spec: ExportSpec) -> GraphModule:
        """The row's flat graph, without marks; int8 starts from float32."""
        module, layout = at_precision(self.program, spec.precision), CONTRACTS[spec.contract]
        return from_bytes(module, self._sized(spec), layout) if layout else module

    def marked(self, spec: ExportSpec) -> Program:
        """The same as a program whose points bear marks; rows that differ in nothing else share it."""
        precision = "fp32" if spec.precision == "int8" else spec.precision
        key = precision, spec.contract, spec.batch
        if key not in self._marked:
            module, contract = self.graph(spec), self.contract(spec)
            changed = self.facts.sites or module is not self.program.module or contract != self.program.contract
            self._marked[key] = self.program.recaptured(marked(module), contract) if changed else self.program
        return self._marked[key]

    def calibration(self, spec: ExportSpec) -> Calibration:
        """Return what int8 is calibrated and judged on: the first batches, whole ones where the batch is fixed."""
        contract, those = self.contract(spec), self.examples.calibrators
        size = contract.batch or EXAMPLES
        batches, chosen = [], [slice(0)]
        for start in range(0, min(len(those), CALLS * size), size):
            rows = slice(start, start + size)
            arrays = contract.arrays(those.rows(rows))
            if all(each.fits(arrays[each.name].shape) for each in contract.inputs):
                batches.append(arrays)
                chosen.append(rows)
        scored = scored_output(contract, those)
        if scored is None or those.labels is None:
            return Calibration(tuple(batches))
        return Calibration(tuple(batches), scored.name, np.concatenate([those.labels[rows].numpy() for rows in chosen]))

    def metadata(self, spec: ExportSpec) -> dict:
        """What travels inside the file."""
        return {
            "network": self.directory.name,
            "label": self.facts.label,
            "classes": list(self.facts.classes),
            "precision": spec.precision,
            "contract": self.contract(spec).as_dict(),
            "program_sha256": self.parent.sha256,
            "git_commit": git_commit(),
            "versions": versions(),
        }
