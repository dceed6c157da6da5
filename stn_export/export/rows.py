"""Define the export matrix: one row per file that a network may get, and the program that each file is made from."""

from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Self

import numpy as np
from torch.fx import GraphModule

from stn_export.errors import UserError
from stn_export.export.marks import marked
from stn_export.export.precision import CALLS, EXAMPLES, Calibration, at_precision, from_bytes, raw
from stn_export.native.source import generator
from stn_export.program.program import Program
from stn_export.program.specs import BATCH, Contract
from stn_export.run.environment import git_commit, versions
from stn_export.run.examples import Examples, scored_output
from stn_export.run.manifest import DEFAULT_EXPORT, PROGRAM, Artifact, Facts, NetworkDirectory
from stn_export.run.store import fingerprint
from stn_export.runners.external.environments import OWN

CONTRACTS = {"float": "", "uint8": "NCHW", "uint8-nhwc": "NHWC"}  # layout of raw images; "" for normalised floats
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
    """One export variant. ``default`` variants are always written, the others on request.

    Lowering ``plain`` is for networks that do not sample, ``default`` for all networks, the others for those that
    sample; formats other than ONNX keep PyTorch's own operators and have no lowering.
    """

    format: str
    lowering: str | None
    precision: str = "fp32"
    contract: str = "float"
    default: bool = True
    batch: int | None = None  # static, instead of dynamic
    optimised: bool = False  # by ONNX Runtime, ahead of time
    target: str | None = None  # the processors that C is compiled for, instead of this one

    @property
    def name(self) -> str:
        """Return the artifact's name in the manifest, unique within a network."""
        parts = [self.lowering or self.format, self.precision]
        parts += [self.contract] * (self.contract != "float")
        parts += [f"batch{self.batch}"] * (self.batch is not None and not self.always_fixed)
        return "-".join(parts + ["optimised"] * self.optimised + ([self.target] if self.target else []))

    @property
    def always_fixed(self) -> bool:
        """Return whether all sizes are static: the default export has them so, and some external runtimes need it."""
        return self.lowering == DEFAULT_EXPORT or self.format in OWN

    @property
    def file(self) -> str:
        """Return the artifact's file name, which is for people only."""
        return self.name + FORMATS[self.format]

    def applies_to(self, samples: bool, contract: Contract) -> bool:
        """Return whether a network can have this variant, by whether it samples and by its contract."""
        lowered = self.lowering in (None, DEFAULT_EXPORT) or (self.lowering == "plain") != samples
        return lowered and (not CONTRACTS[self.contract] or any(spec.pixels for spec in contract.inputs))

    def settings(self, calibration: str) -> dict:
        """Return what a file depends on beside its program.

        These are the row, the exporters' versions and, for int8, the calibration examples and the bits of a weight; for
        C, its generator.
        """
        relevant, installed = ("torch", "onnx", "onnxscript", "stn_export"), versions()
        stamp = fingerprint(f"{key}={installed[key]}".encode() for key in relevant)[:16]
        of_int8 = {"examples": calibration, "weight_bits": WEIGHT_BITS} if self.precision == "int8" else {}
        of_c = {"generator": generator()} if self.format == "native" else {}
        return asdict(self) | {"versions": stamp} | of_int8 | of_c

    @classmethod
    def of(cls, artifact: Artifact) -> Self | None:
        """Return the row that an artifact was written from; None if no row of the matrix describes it any more."""
        names = [field.name for field in fields(cls)]
        try:
            spec = cls(**{name: artifact.settings[name] for name in names})
        except KeyError:
            return None
        return spec if spec.name == artifact.name and replace(spec, batch=None, optimised=False).known else None

    @property
    def known(self) -> bool:
        """Return whether this is a row of the matrix."""
        return any((self.name, self.format) == (row.name, row.format) for row in EXPORTS)


EXPORTS = (
    ExportSpec("torchscript", None),
    ExportSpec("torchscript", None, "bf16"),
    ExportSpec("aotinductor", None, default=False),
    ExportSpec("aotinductor-cuda", None, default=False),
    ExportSpec("native", None),
    *(ExportSpec("native", None, contract=contract, default=False) for contract in ("uint8", "uint8-nhwc")),
    *(
        ExportSpec("native", None, precision, default=False, target=target)
        for precision in ("fp32", "int8")
        for target in ("x86-64-v3", "x86-64-v4", "generic")
    ),
    ExportSpec("native", None, "int8", default=False),
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
    """Return the rows, then the fp32 ONNX ones again with a static batch and optimised ahead of time, if requested."""
    float_rows = [spec for spec in specs if (spec.format, spec.precision, spec.batch) == ("onnx", "fp32", None)]
    fixed = [replace(spec, batch=batch) for spec in float_rows] if batch else []
    return specs + fixed + ([replace(spec, optimised=True) for spec in float_rows] if optimised else [])


# A network of a run and the programs that its files are made from.


@dataclass(frozen=True)
class Source:
    """A network of a run; its program is read only if something is written."""

    directory: NetworkDirectory

    @cached_property
    def facts(self) -> Facts:
        """Return the manifest's facts about the network."""
        return self.directory.facts

    @cached_property
    def parent(self) -> Artifact:
        """Return the manifest entry of the program."""
        return self.directory.listed(PROGRAM)

    @cached_property
    def program(self) -> Program:
        """Return the captured network."""
        return self.directory.program()

    @cached_property
    def examples(self) -> Examples:
        """Return the examples that the network is tried on."""
        return self.directory.examples()

    @cached_property
    def _marked(self) -> dict[tuple[str, str, int | None], Program]:
        return {}

    @property
    def rows(self) -> list[ExportSpec]:
        """Return its rows of the matrix; int8 is a default row only if there are labels to measure its cost."""
        rows = [spec for spec in EXPORTS if spec.applies_to(bool(self.facts.sites), self.parent.contract)]
        labelled = self.examples.labels is not None
        return [replace(spec, default=spec.default and (labelled or spec.precision != "int8")) for spec in rows]

    def settings(self, spec: ExportSpec) -> dict:
        """Return what the row's file depends on beside the program."""
        return spec.settings(self.facts.examples.get("sha256", ""))

    def contract(self, spec: ExportSpec) -> Contract:
        """Return the contract of the row's file.

        Raises:
            UserError: if the row sets a batch and the program's is static already.
        """
        layout = CONTRACTS[spec.contract]
        return raw(self._sized(spec), layout) if layout else self._sized(spec)

    def _sized(self, spec: ExportSpec) -> Contract:
        """Return the program's contract with the sizes that the row makes static."""
        contract = self.parent.contract
        if not spec.always_fixed and contract.batch and spec.batch not in (None, contract.batch):
            raise UserError(f"its batch is fixed at {contract.batch} already", "capture it with an open batch")
        sizes = self.program.sizes if spec.always_fixed and contract.open_sizes else {}
        return contract.fixed(sizes | ({BATCH: spec.batch} if spec.batch else {}))

    def graph(self, spec: ExportSpec) -> GraphModule:
        """Return the row's flat graph, without marks; int8 starts from float32."""
        module, layout = at_precision(self.program, spec.precision), CONTRACTS[spec.contract]
        return from_bytes(module, self._sized(spec), layout) if layout else module

    def marked(self, spec: ExportSpec) -> Program:
        """Return the row's graph as a program with marks at its points; rows with the same graph share it."""
        precision = "fp32" if spec.precision == "int8" else spec.precision
        key = precision, spec.contract, spec.batch
        if key not in self._marked:
            module, contract = self.graph(spec), self.contract(spec)
            changed = self.facts.sites or module is not self.program.module or contract != self.program.contract
            self._marked[key] = self.program.recaptured(marked(module), contract) if changed else self.program
        return self._marked[key]

    def calibration(self, spec: ExportSpec) -> Calibration:
        """Return the batches that int8 is calibrated and judged on; only whole batches if the batch is static."""
        contract, those = self.contract(spec), self.examples.calibrators
        size = contract.batch or EXAMPLES
        batches, chosen = [], [slice(0)]
        for start in range(0, min(len(those), CALLS * size), size):
            rows = slice(start, start + size)
            arrays = contract.arrays(those.rows(rows))
            if all(spec.fits(arrays[spec.name].shape) for spec in contract.inputs):
                batches.append(arrays)
                chosen.append(rows)
        scored = scored_output(contract, those)
        if scored is None or those.labels is None:
            return Calibration(tuple(batches))
        return Calibration(tuple(batches), scored.name, np.concatenate([those.labels[rows].numpy() for rows in chosen]))

    def metadata(self, spec: ExportSpec) -> dict:
        """Return the metadata that is stored inside the file."""
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
