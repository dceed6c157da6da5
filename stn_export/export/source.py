"""A network of a run and what its files are made from: its program at another precision, raw fed, with marks."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch.fx import GraphModule

from stn_export.artifacts.environment import git_commit, versions
from stn_export.artifacts.examples import Examples, scored_output
from stn_export.artifacts.manifest import PROGRAM, Artifact, Facts, NetworkDirectory
from stn_export.errors import UserError
from stn_export.export.marks import marked
from stn_export.export.quantise import CALLS, EXAMPLES, Calibration
from stn_export.export.rows import CONTRACTS, EXPORTS, ExportSpec
from stn_export.export.variants import at_precision, from_bytes, raw
from stn_export.program.program import Program
from stn_export.program.specs import BATCH, Contract


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
