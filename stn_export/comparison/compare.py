"""Pure comparison of arrays. An empty comparison and a shape mismatch are failures."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from stn_export.artifacts.records import Comparison, Number, PointEntry
from stn_export.comparison.tolerances import GRID, OUTPUT, THETA, WARPED, WHOLE, Bound

NOTHING = "nothing was compared"
KINDS = (THETA, GRID, WARPED, OUTPUT)  # of points, whose errors are sizes


def compare(
    actual: np.ndarray, expected: np.ndarray, tolerance: Bound, strays: int = 0, room: np.ndarray | float = 0.0
) -> Comparison:
    """Compare two arrays element by element, and the index of the largest along the last axis.

    Places that are not finite pass where both arrays hold the same there; all others are compared.

    Args:
        actual: what is judged.
        expected: what it is judged by.
        tolerance: the bound of every element.
        strays: how many elements, those furthest beyond their bound, are taken for right.
        room: what is added to the bound, element by element, in a shape that broadcasts to that of ``expected``.
    """
    if actual.shape != expected.shape:
        return Comparison(f"shape {actual.shape} instead of {expected.shape}")
    if expected.size == 0:
        return Comparison(NOTHING)
    if reason := unlike_where_not_finite(actual, expected):
        return Comparison(reason)
    finite = np.isfinite(expected)
    if not finite.any():
        return Comparison(f"{NOTHING}: no element is finite")
    difference = distance(actual, expected)
    magnitude = np.where(finite, np.abs(expected.astype(np.float64)), 0.0)
    excess = _in_units_of(difference, tolerance.absolute + tolerance.relative * magnitude + room)
    if strays:
        forgiven = np.argsort(excess, axis=None)[-strays:]
        difference.flat[forgiven] = excess.flat[forgiven] = 0.0
    worst = tuple(map(int, np.unravel_index(excess.argmax(), excess.shape)))
    reason = ""
    if excess[worst] > 1:
        reason = f"element {worst} is {difference[worst]:.2e} off, {excess[worst]:.1f} times its tolerance"
    return Comparison(
        reason=reason,
        max_abs=float(difference.max()),
        max_rel=float((difference / np.maximum(magnitude, np.finfo(np.float32).tiny)).max()),
        mean_abs=float(difference.sum() / np.count_nonzero(finite)),
        agreement=float((actual.argmax(-1) == expected.argmax(-1)).mean()),
        worst=worst,
        excess=float(excess[worst]),
    )


def distance(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Absolute differences in float64: 0 where both hold the same infinity or NaN, infinite where only one is finite.

    Whole numbers that differ are 1 or more apart, also where float64 cannot tell them apart.
    """
    if expected.dtype.kind in "iub":
        return np.maximum(np.abs(actual.astype(np.float64) - expected.astype(np.float64)), actual != expected)
    same = ~np.isfinite(expected) & same_places(actual, expected)
    with np.errstate(invalid="ignore"):
        apart = np.abs(actual.astype(np.float64) - expected)
    return np.where(same, 0.0, np.nan_to_num(apart, nan=np.inf, posinf=np.inf))


def same_places(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Mark the elements that are finite in both arrays, or the same infinity, or NaN in both."""
    finite = np.isfinite(actual) & np.isfinite(expected)
    return finite | (actual == expected) | (np.isnan(actual) & np.isnan(expected))


def unlike_where_not_finite(actual: np.ndarray, expected: np.ndarray) -> str:
    """Say how many elements are not finite in one array only, or other infinities; empty where none are."""
    unlike = ~same_places(actual, expected)
    lost = np.count_nonzero(unlike & ~np.isfinite(actual))
    if lost:
        return f"{lost} of {actual.size} elements are not finite"
    if other := np.count_nonzero(unlike):
        return f"{other} of {actual.size} elements are finite where {_named(expected[unlike])} is expected"
    return ""


def _named(values: np.ndarray) -> str:
    return " or ".join(sorted({str(float(value)) for value in values}))


def _in_units_of(difference: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """``difference / bound``: 0 where there is no difference, infinite where there is one and the bound is 0."""
    bound = np.broadcast_to(bound, difference.shape)
    units = np.where(difference > 0, np.inf, 0.0)
    return np.divide(difference, bound, out=units, where=(bound > 0) & (difference > 0))


def compare_typed(
    actual: np.ndarray, expected: np.ndarray, tolerance: Bound, room: np.ndarray | float = 0.0
) -> Comparison:
    """``compare`` for arrays of any one type: floats within their tolerance, everything else the same."""
    if actual.dtype != expected.dtype:
        return Comparison(f"type {actual.dtype} instead of {expected.dtype}")
    if actual.dtype.kind in "fiub":
        floats = actual.dtype.kind == "f"
        return compare(actual, expected, tolerance if floats else WHOLE, room=room if floats else 0.0)
    equal = expected.size > 0 and np.array_equal(actual, expected)
    return Comparison("" if equal else "not the same, or nothing was compared")


def worst_by_kind(errors: Mapping[str, Number], points: Mapping[str, PointEntry]) -> dict[str, Number]:
    """The largest of the errors by point of each kind, in the kinds' order; None where one is no number."""
    found: dict[str, list] = defaultdict(list)
    for point, error in errors.items():
        found[points[point].kind].append(error)
    return {kind: None if None in found[kind] else max(found[kind]) for kind in KINDS if kind in found}
