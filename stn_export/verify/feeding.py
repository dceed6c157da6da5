"""A runner fed with batches of any size, whatever its own."""

from collections.abc import Callable

import numpy as np
import torch

from stn_export.program.specs import Arrays, Batch, Contract
from stn_export.verify.challenges import rows_of, size_of
from stn_export.verify.truth import Truth

Call = Callable[[Arrays], Arrays | None]


def uncut(batch: Batch, contract: Contract, truth: Truth) -> set[str]:
    """The outputs and points that an artifact of another batch size cannot be compared at."""
    if contract.batch in (None, size_of(batch, contract)):
        return set()
    return {name for name, point in truth.points.items() if not point.rows}


def takes(contract: Contract, batch: Batch) -> bool:
    """Whether an artifact can be fed with a batch, in parts if need be: it may fix sizes that are open else."""
    arrays = contract.arrays(batch)
    return all(
        spec.fits((spec.shape[0] if spec.batched and contract.batch else len(array), *array.shape[1:]))
        for spec, array in ((spec, arrays[spec.name]) for spec in contract.inputs if spec.shape)
    )


def feed(call: Call, batch: Batch, contract: Contract, truth: Truth) -> Arrays | None:
    """What ``call`` gives for a batch, grids in pixels; in filled-up batches where the artifact's own is fixed."""
    size, fixed = size_of(batch, contract), contract.batch
    if fixed in (None, size):
        return call(contract.arrays(batch))
    parts = []
    for start in range(0, size, fixed):
        chosen = torch.arange(start, start + fixed).clamp(max=size - 1)
        if (found := call(contract.arrays(rows_of(batch, contract, chosen)))) is None:
            return None
        rows = {name: truth.points[name].rows * min(fixed, size - start) for name in found if name in truth.points}
        parts.append({name: found[name][:count] for name, count in rows.items() if count})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
