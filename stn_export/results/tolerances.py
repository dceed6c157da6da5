"""Bounds on the error of an artifact against the float64 reference, and the comparison of arrays. No I/O."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np

from stn_export.run.records import Comparison, Number, PointEntry, finite


@dataclass(frozen=True)
class Bound:
    """An element passes where ``|actual - expected| <= absolute + relative * |expected|``."""

    absolute: float
    relative: float = 0.0

    def at_least(self, absolute: float) -> "Bound":
        """Return the bound with its absolute part raised to at least ``absolute``."""
        return replace(self, absolute=max(self.absolute, absolute))

    def plus(self, absolute: float) -> "Bound":
        """Return the bound with ``absolute`` added to its absolute part."""
        return replace(self, absolute=self.absolute + absolute)

    def times(self, factor: float) -> "Bound":
        """Return the bound widened by a factor."""
        return Bound(factor * self.absolute, factor * self.relative)

    def at_scale(self, scale: float) -> "Bound":
        """Return the bound with its absolute part converted from units of ``scale``."""
        return replace(self, absolute=scale * self.absolute)


ANY = Bound(float("inf"))
WHOLE = Bound(0.5)  # integers must be equal
IN_ORDER = 16.0  # times eager's error: Inductor's mean of 16×16 equal pixels was 13 times as far off as eager's
THETA, GRID, WARPED, OUTPUT, COUNT = ("theta", "grid", "warped", "output", "count")
RESAMPLED = "resampled"  # an output behind an operator that resizes


@dataclass(frozen=True)
class Tolerance:
    """The bounds that an artifact must keep to, measured against float64.

    ``theta``, ``grid``, ``warped`` and ``output`` bound each element, the absolute part in units of a scale: of theta
    1, of a grid the sampled image's longer side in units of 32 pixels, of a warped image or an output its largest
    magnitude over the examples. An output behind an operator that resizes (``resampled``) has a bound of its own, in
    units of its largest magnitude times its longer side in units of 32 pixels: the fractions between two pixels are
    rounded where the pixels are counted, so that they lose more in larger images. Whole numbers and booleans
    (``count``) must be the same.

    An error of up to ``own`` times the largest of eager PyTorch in float32 always passes, because some networks magnify
    roundings more than the bounds foresee; the largest error at any point may be ``multiple`` times eager's. Behind a
    sampler that takes the nearest pixel, a share ``strays`` of the elements may be anything, because a rounding can
    select another pixel. Over all examples at least ``agreement`` of the predictions, and of the whole numbers, must
    equal those of float32, the accuracy may fall by ``accuracy_loss``, and the root of the mean squared error of an
    output that is no prediction may be ``rms`` of its root mean square. ``reason`` says why these figures.
    """

    theta: Bound
    grid: Bound
    warped: Bound
    output: Bound
    resampled: Bound
    multiple: float
    agreement: float
    accuracy_loss: float
    reason: str
    strays: float = 1.0
    rms: float = float("inf")
    own: float = 2.0
    count: Bound = ANY

    def at(self, kind: str, scale: float = 1.0, eager_error: float = 0.0) -> Bound:
        """Return the bound of a point, given eager float32's own error there."""
        return getattr(self, kind).at_scale(scale).at_least(self.own * eager_error)

    def far(self, kind: str, scale: float, eager_error: float) -> Bound:
        """Bound for inputs far from the data: the usual bound plus ``multiple`` times eager float32's own error there.

        There a network magnifies roundings: the bounds, made for the fixed test inputs, would fail every float32
        implementation. Reduced precisions have no multiple; their bounds stay as they are.
        """
        bound = getattr(self, kind).at_scale(scale)
        return bound if math.isinf(self.multiple) else bound.plus(self.multiple * eager_error)

    def apart(self, kind: str, scale: float) -> Bound:
        """Bound the difference of two artifacts, each with an error, where eager float32's own is unknown."""
        return getattr(self, kind).at_scale(scale).times(2 * (1 if math.isinf(self.multiple) else self.multiple))

    @property
    def in_order(self) -> "Tolerance":
        """Return the tolerance for sums in order or in few lanes, where eager sums in pairs.

        Such a sum of n equal values loses n roundings, not log n. Compilers always sum so; most runtimes do in means
        and variances, which shows on images of one grey.
        """
        return replace(self, own=IN_ORDER, multiple=max(IN_ORDER, self.multiple))

    def as_dict(self) -> dict:
        """Return the tolerance JSON-ready: an infinite bound is None."""
        return finite(asdict(self))


def beyond(wrong: float, share: float, count: int) -> bool:
    """Return whether more are wrong than this share of ``count``, rounded up: of few examples one may be wrong."""
    return wrong > math.ceil(share * count - 1e-9) + 1e-9


FP16 = Tolerance(
    theta=Bound(5e-3, 5e-3),
    grid=Bound(0.1, 5e-3),
    warped=Bound(0.1),
    output=Bound(4e-3, 0.02),
    resampled=Bound(4e-3, 0.02),  # runtimes count pixels in float32 in half precision too
    multiple=float("inf"),
    agreement=0.995,
    accuracy_loss=0.005,
    reason="half precision keeps 11 bits, 5e-4 a rounding, through some ten layers",
    strays=0.2,
)

FP32 = Tolerance(
    theta=Bound(2e-6, 2e-6),
    grid=Bound(1e-4, 2e-6),
    warped=Bound(1e-4),
    output=Bound(3.5e-7, 5e-6),
    resampled=Bound(3e-5, 5e-6),
    multiple=8.0,
    agreement=0.999,
    accuracy_loss=0.001,
    reason="a few float32 roundings, 1.2e-7 each: the log-probabilities of trained digits reach -59, where 3.5e-7 "
    "of that is 2e-5; in a resized image of 32 pixels places lose 4 roundings, 8e-6 of a pixel, on each of two "
    "axes, and neighbours lie up to twice the largest value apart; whole numbers are exact where eager's are; where a "
    "grid comes out of many layers (deformable attention) ONNX Runtime was found 2.2 times as far off as eager",
    strays=2e-3,
    own=4.0,
    count=WHOLE,
)

TOLERANCES = {
    "fp32": FP32,
    "openvino": replace(
        FP32,
        output=Bound(2e-6, 2e-5),
        multiple=32.0,
        reason="float32 files in OpenVINO, which sums long products in blocks of its own order and computes float64 in "
        "float32: it was found 2.2 times beyond the usual bound and 15 times eager's own error, on constant images",
    ),
    "cudnn": replace(
        FP32,
        theta=Bound(2e-5, 2e-5),
        grid=Bound(1e-3, 2e-5),
        warped=Bound(1e-3),
        output=Bound(3.5e-6, 5e-5),
        multiple=128.0,
        own=64.0,
        reason="float32 files on a GPU, where cuDNN may compute convolutions of 3×3 and 5×5 by Winograd's method: "
        "planted on the CPU, in tiles of 6×6 outputs, it was 47 times as far off as eager; TF32 exceeds these bounds",
    ),
    "tf32": replace(
        FP16, reason="float32 files whose products a GPU computes in TF32, which keeps 11 bits as half precision does"
    ),
    "approximate": replace(
        FP16,
        reason="float32 files in runtimes that trade exactness for speed (MNN and ncnn: approximate exponentials, "
        "Winograd's convolutions): they were found 1e-4 of the largest value off, and are bounded as half precision is",
    ),
    "fp16": FP16,
    "bf16": Tolerance(
        theta=Bound(0.05, 0.05),
        grid=Bound(1.0, 0.05),
        warped=Bound(1.0),
        output=Bound(0.03, 0.15),
        resampled=Bound(0.03, 0.15),
        multiple=float("inf"),
        agreement=0.98,
        accuracy_loss=0.01,
        reason="bfloat16 keeps 8 bits, 4e-3 a rounding, through some ten layers",
    ),
    "int8": Tolerance(
        theta=ANY,
        grid=ANY,
        warped=ANY,
        output=ANY,
        resampled=ANY,
        multiple=float("inf"),
        agreement=0.9,
        accuracy_loss=0.01,
        reason="quantised activations saturate on inputs unlike the calibration set: judged by its predictions where "
        "there are labels, every other output by its relative root mean squared error over the examples",
        rms=0.2,
    ),
}

# The runner that must have checked an artifact of each format before a run counts as verified.
REQUIRED_RUNNERS = {
    "torchscript": "torchscript-cpu",
    "pt2": "eager-cpu",
    "aotinductor": "aotinductor-cpu",
    "aotinductor-cuda": "aotinductor-cuda",
    "onnx": "onnxruntime-cpu",
    "native": "native-cpu",
    "executorch": "executorch-cpu",
    "litert": "litert-cpu",
}


# Pure comparison of arrays. An empty comparison and a shape mismatch are failures.


NOTHING = "there was nothing to compare"
KINDS = (THETA, GRID, WARPED, OUTPUT)  # of points with errors that are magnitudes


def compare(
    actual: np.ndarray, expected: np.ndarray, tolerance: Bound, strays: int = 0, room: np.ndarray | float = 0.0
) -> Comparison:
    """Compare two arrays element by element, and their argmax along the last axis.

    Non-finite elements pass where both arrays hold the same; all others are compared.

    Args:
        actual: values to check.
        expected: values to compare with.
        tolerance: the bound of every element.
        strays: how many elements, those furthest beyond their bound, count as right.
        room: added to the bound, element by element; broadcasts to the shape of ``expected``.
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
    """Return absolute differences in float64: 0 where both hold the same infinity or NaN, infinite where unlike.

    Whole numbers that differ are at least 1 apart, also where both round to the same float64.
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
    """Describe elements that are finite in one array only, or other infinities; empty where there are none."""
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
    """Return ``difference / bound``: 0 where there is no difference, infinite where there is one and the bound is 0."""
    bound = np.broadcast_to(bound, difference.shape)
    units = np.where(difference > 0, np.inf, 0.0)
    return np.divide(difference, bound, out=units, where=(bound > 0) & (difference > 0))


def compare_typed(
    actual: np.ndarray, expected: np.ndarray, tolerance: Bound, room: np.ndarray | float = 0.0
) -> Comparison:
    """Compare arrays of any one type: floats within their tolerance, everything else exactly."""
    if actual.dtype != expected.dtype:
        return Comparison(f"type {actual.dtype} instead of {expected.dtype}")
    if actual.dtype.kind in "fiub":
        floats = actual.dtype.kind == "f"
        return compare(actual, expected, tolerance if floats else WHOLE, room=room if floats else 0.0)
    equal = expected.size > 0 and np.array_equal(actual, expected)
    return Comparison("" if equal else "values differ, or there was nothing to compare")


def worst_by_kind(errors: Mapping[str, Number], points: Mapping[str, PointEntry]) -> dict[str, Number]:
    """Return the largest error of each kind of point, in the kinds' order; None where one is no number."""
    values: dict[str, list] = defaultdict(list)
    for point, error in errors.items():
        values[points[point].kind].append(error)
    return {kind: None if None in values[kind] else max(values[kind]) for kind in KINDS if kind in values}
