"""Pure comparison of arrays. An empty comparison, a shape mismatch or anything that is no number is a failure."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stn_export.comparison.tolerances import GRID, OUTPUT, THETA, WARPED, WHOLE, Bound

KINDS = (THETA, GRID, WARPED, OUTPUT)  # of points, whose errors are sizes


@dataclass(frozen=True)
class Comparison:
    """How far ``actual`` lies from ``expected``; true where every element is within tolerance.

    ``max_abs`` and ``mean_abs`` are in the units of the arrays, ``max_rel`` is ``|actual - expected| / |expected|``,
    ``agreement`` the share of rows with the same argmax, ``worst`` the index of the element furthest beyond its
    tolerance and ``excess`` its difference in units of that tolerance. ``reason`` is empty where the comparison passed.
    """

    reason: str
    max_abs: float = float("nan")
    max_rel: float = float("nan")
    mean_abs: float = float("nan")
    agreement: float = float("nan")
    worst: tuple[int, ...] = ()
    excess: float = float("nan")

    def __bool__(self) -> bool:
        return not self.reason


def compare(actual: np.ndarray, expected: np.ndarray, tolerance: Bound, strays: int = 0) -> Comparison:
    """Compare arrays element by element, and along the last axis the index of the largest.

    The ``strays`` elements furthest beyond their tolerance are taken for right.
    """
    if expected.size == 0:
        return Comparison("nothing was compared")
    if actual.shape != expected.shape:
        return Comparison(f"shape {actual.shape} instead of {expected.shape}")
    if not np.isfinite(expected).all():
        return Comparison("the reference output is not finite")
    if not np.isfinite(actual).all():
        return Comparison(f"{np.count_nonzero(~np.isfinite(actual))} of {actual.size} elements are not finite")
    difference = np.abs(actual.astype(np.float64) - expected)
    magnitude = np.abs(expected.astype(np.float64))
    excess = difference / (tolerance.absolute + tolerance.relative * magnitude)
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
        mean_abs=float(difference.mean()),
        agreement=float((actual.argmax(-1) == expected.argmax(-1)).mean()),
        worst=worst,
        excess=float(excess[worst]),
    )


def compare_typed(actual: np.ndarray, expected: np.ndarray, tolerance: Bound) -> Comparison:
    """``compare`` for arrays of any one type: floats within their tolerance, everything else the same."""
    if actual.dtype != expected.dtype:
        return Comparison(f"type {actual.dtype} instead of {expected.dtype}")
    if actual.dtype.kind in "fiub":
        return compare(actual, expected, tolerance if actual.dtype.kind == "f" else WHOLE)
    equal = expected.size > 0 and np.array_equal(actual, expected)
    return Comparison("" if equal else "not the same, or nothing was compared")


def worst_by_kind(errors: Mapping[str, float | None], points: Mapping[str, Mapping]) -> dict[str, float | None]:
    """The largest of the errors by point of each kind, in the kinds' order; None where one is no number."""
    found: dict[str, list] = defaultdict(list)
    for point, error in errors.items():
        found[points[point]["kind"]].append(error)
    return {kind: None if None in found[kind] else max(found[kind]) for kind in KINDS if kind in found}
