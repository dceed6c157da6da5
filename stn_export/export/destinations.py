"""Choose which file to deploy where, and say why, from the stored table of trials (see ``docs/runtimes.md``).

A destination that was never tried gets the file that its rule names, and the answer says so.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from stn_export.errors import UserError, in_clone, require_choice
from stn_export.run.manifest import PREFERRED
from stn_export.runners.external.environments import ON_CPU, OWN

PLACES = (Path(__file__).parents[2] / "benchmarks", Path(__file__).parents[1] / "suites")  # a checkout, or installed
KEPT = next((place for place in PLACES if place.is_dir()), PLACES[0]) / "results" / "runtimes.json"
EQUAL, WITHIN, WRONG, REFUSES = "equal", "within bounds", "WRONG", "refuses"
TRIED = tuple(runtime.name for runtime in ON_CPU)
OPEN_BATCH = tuple(runtime.name for runtime in ON_CPU if runtime.open_sizes)
RULES = {
    "onnxruntime-cpu": ("folded", "fewest kernels; ONNX Runtime is what every file is verified in"),
    "onnxruntime-cuda": ("folded", "fewest kernels, all of them on the GPU; AffineGrid would run on the CPU"),
    "webgpu": (
        "folded",
        "fewest kernels; WebGPU has the sampler up to opset 19 (docs/gpu.md)",
    ),
    "tensorrt": (
        "matmul",
        "below opset 20, from which on its parser silently samples with nearest (NVIDIA/TensorRT#4646)",
    ),
}
DESTINATIONS = (*TRIED, *RULES)


@dataclass(frozen=True)
class Choice:
    """A lowering (None for a destination with its own format) and a batch (None if dynamic), and the reason."""

    destination: str
    lowering: str | None
    batch: int | None
    why: str

    @property
    def what(self) -> str:
        """Return the lowering as text for people."""
        return self.lowering or "its own format"

    @property
    def sizes(self) -> str:
        """Return the batch as text for people."""
        return f"a batch of {self.batch}" if self.batch else "an open batch"


def choose(destination: str, path: Path | None = None) -> Choice:
    """Return the first of ``PREFERRED`` that was equal in the destination at fp32, else the first within its bounds.

    Raises:
        UserError: for an unknown destination, a missing table, or if no lowering was equal or within bounds.
    """
    require_choice("destination", destination, list(DESTINATIONS))
    if destination in RULES:
        lowering, why = RULES[destination]
        return Choice(destination, lowering, None, f"rule, not tried here: {why}")
    path = path or KEPT
    if not path.is_file():
        raise UserError(
            f"there is no table {path}", in_clone("make runtimes", "install the package anew: it brings the table")
        )
    if choice := chosen(destination, json.loads(path.read_text(encoding="utf-8"))):
        return choice
    raise UserError(f"no lowering was equal in {destination}", f"see {path}")


def chosen(destination: str, table: Mapping) -> Choice | None:
    """Look up a destination in a table of trials; None if no lowering was equal or within bounds there."""
    names = {f"{lowering or destination}-fp32": lowering for lowering in ((None,) if destination in OWN else PREFERRED)}
    rows = [row for row in table["rows"] if row["runtime"] == destination and row["file"] in names]
    cells = {row["lowering"]: row for row in rows}
    for verdict, lowering in product((EQUAL, WITHIN), names.values()):
        if lowering in cells and cells[lowering]["verdict"] == verdict:
            others = [f"{name} {row['verdict']}" for name, row in cells.items() if row["verdict"] != verdict]
            why = f"{verdict} ({cells[lowering]['detail']:.0e}) in {destination} {table['runtimes'][destination]}"
            why += f"; there {', '.join(others)}" if others else ""
            return Choice(destination, lowering, None if destination in OPEN_BATCH else 1, why)
    return None
