"""A runner fed with batches of any size, whatever its own."""

from collections.abc import Callable, Mapping
from typing import overload

import numpy as np

from stn_export.program.specs import Arrays, Batch, Contract, TensorSpec
from stn_export.verify.challenges import filled, rows_of, size_of
from stn_export.verify.truth import Truth

Call = Callable[[Arrays], Arrays | None]


def uncut(batch: Batch, contract: Contract, truth: Truth) -> set[str]:
    """The outputs and points that an artifact of another batch size cannot be compared at."""
    if contract.batch in (None, size_of(batch, contract)):
        return set()
    return {name for name, rows in truth.rows.items() if not rows}


def takes(contract: Contract, batch: Batch) -> bool:
    """Whether an artifact can be fed with a batch, in parts if need be: it may fix sizes that are open else."""
    arrays = contract.arrays(batch)
    return all(
        spec.fits((_length(spec, contract, array), *array.shape[1:]))
        for spec, array in ((spec, arrays[spec.name]) for spec in contract.inputs if spec.shape)
    )


def _length(spec: TensorSpec, contract: Contract, array: np.ndarray) -> int:
    """How many examples an artifact would be fed with at once."""
    own = spec.shape[0]
    return own if spec.batched and contract.batch and isinstance(own, int) else len(array)


@overload
def feed(
    call: Callable[[Arrays], Arrays], batch: Batch, contract: Contract, rows: Mapping[str, int]
) -> Arrays: ...  # where every call gives something


@overload
def feed(call: Call, batch: Batch, contract: Contract, rows: Mapping[str, int]) -> Arrays | None: ...


def feed(call: Call, batch: Batch, contract: Contract, rows: Mapping[str, int]) -> Arrays | None:
    """What ``call`` gives for a batch; in filled-up batches where the artifact's own is fixed.

    Args:
        call: of a runner.
        batch: of any size.
        contract: the artifact's.
        rows: how many of each value's first dimension are one example's; what is none's own is not given in parts.
    """
    size, fixed = size_of(batch, contract), contract.batch
    if fixed in (None, size):
        return call(contract.arrays(batch))
    parts = []
    for chosen, count in filled(size, fixed):
        if (found := call(contract.arrays(rows_of(batch, contract, chosen)))) is None:
            return None
        parts.append({name: found[name][: rows[name] * count] for name in found if rows.get(name)})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
