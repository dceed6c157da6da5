"""``F.grid_sample`` out of Gather, Mul and Add, for runtimes that have no GridSample operator.

Every pixel of the output is a sum of taps: 2×2 for bilinear, 1×1 for nearest, 4×4 for bicubic. The taps of a row and
of a column are separable, so each axis gives a list of (index, weight) pairs, and each pair of pairs one Gather.

Source: ``aten/src/ATen/native/GridSampler.h`` for the coordinates, their padding and the cubic coefficients.
"""

from typing import Any

import onnx_ir
from onnxscript import opset18 as op
from onnxscript import opset20

from stn_export.export.translations import number, whole, wholes
from stn_export.program.sites import PADDINGS

Value = Any  # a symbolic tensor of the graph being built
Tap = tuple[Value, Value | None]  # an index along an axis, float and within bounds; its weight, None for 1

BILINEAR, NEAREST, BICUBIC = range(3)
ZEROS, BORDER, REFLECTION = range(3)
CUBIC = -0.75
VOLUME_MODES = ("linear", "nearest")


def gather_grid_sample(
    image: Value, grid: Value, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Value:
    """Sample N×C×H×W images on an N×P×Q×2 grid (x before y): N×C×P×Q. Volumes are left to GridSample of opset 20."""
    if len(image.shape) != 4:
        mode, padding = VOLUME_MODES[interpolation_mode], PADDINGS[padding_mode]
        return opset20.GridSample(image, grid, mode=mode, padding_mode=padding, align_corners=int(align_corners))
    batch, channels, height, width = (_side(image, axis) for axis in range(4))
    taps = [
        _taps(
            op.Gather(grid, whole(axis), axis=3),
            op.CastLike(side, grid),
            interpolation_mode,
            padding_mode,
            align_corners,
        )
        for axis, side in ((0, width), (1, height))
    ]
    pixels = op.Reshape(op.Transpose(image, perm=[0, 2, 3, 1]), op.Concat(wholes([-1]), channels, axis=0))
    offsets = op.Mul(op.Range(whole(0), op.Squeeze(batch), whole(1)), op.Mul(height, width))
    offsets = op.Reshape(offsets, wholes([-1, 1, 1]))  # of each image's first pixel
    total: Value = None
    for y, y_weight in taps[1]:
        row = op.Add(op.Mul(_to_int(y, height), width), offsets)
        for x, x_weight in taps[0]:
            value = op.Gather(pixels, op.Add(row, _to_int(x, width)), axis=0)  # N×P×Q×C
            if x_weight is not None:
                value = op.Mul(value, op.Unsqueeze(op.Mul(x_weight, y_weight), wholes([-1])))
            total = value if total is None else op.Add(total, value)
    return op.Transpose(total, perm=[0, 3, 1, 2])


def _taps(x: Value, side: Value, mode: int, padding: int, align_corners: bool) -> list[Tap]:
    """Where the grid's coordinates along one axis read, and with which weights."""
    last = op.Sub(side, number(1.0, x))
    pixel = _to_pixels(x, side, align_corners)
    if mode != BICUBIC:
        pixel = _pad(pixel, side, padding, align_corners)
    if mode == NEAREST:
        taps = [(op.Round(pixel), number(1.0, x))]
    else:
        first = op.Floor(pixel)
        part = op.Sub(pixel, first)
        weights = _cubic_weights(part) if mode == BICUBIC else {0: op.Sub(number(1.0, x), part), 1: part}
        taps = [(op.Add(first, number(float(offset), x)), weight) for offset, weight in weights.items()]
    if mode == BICUBIC:
        taps = [(_pad(index, side, padding, align_corners), weight) for index, weight in taps]
    return [_bounded(index, weight, last, padding) for index, weight in taps]


def _bounded(index: Value, weight: Value, last: Value, padding: int) -> Tap:
    """The tap with its index moved inside; with zeros padding it weighs nothing where it was outside."""
    inside = op.Max(op.Min(index, last), number(0.0, index))
    if padding == ZEROS:
        weight = op.Mul(weight, op.CastLike(op.Equal(inside, index), weight))
    return inside, weight


def _to_pixels(x: Value, side: Value, align_corners: bool) -> Value:
    """[-1, 1] to pixel centres, 0 to side - 1."""
    scaled = op.Add(x, number(1.0, x))
    if align_corners:
        return op.Mul(scaled, op.Div(op.Sub(side, number(1.0, x)), number(2.0, x)))
    return op.Div(op.Sub(op.Mul(scaled, side), number(1.0, x)), number(2.0, x))


def _pad(x: Value, side: Value, padding: int, align_corners: bool) -> Value:
    """Move coordinates outside the image as border or reflection padding says; zeros padding leaves them."""
    if padding == ZEROS:
        return x
    if padding == REFLECTION:
        x = _reflect(x, side, align_corners)
    return op.Max(op.Min(x, op.Sub(side, number(1.0, x))), number(0.0, x))


def _reflect(x: Value, side: Value, align_corners: bool) -> Value:
    """Fold coordinates back at the corners' centres (``align_corners``) or at the image's edges: a triangle wave."""
    low = number(0.0 if align_corners else -0.5, x)
    span = op.Sub(side, number(1.0, x)) if align_corners else side
    span = op.Max(span, number(1e-6, x))  # one pixel with align_corners has no span; the clip that follows gives 0
    period = op.Mul(span, number(2.0, x))
    distance = op.Abs(op.Sub(x, low))
    phase = op.Sub(distance, op.Mul(op.Floor(op.Div(distance, period)), period))
    return op.Add(op.Min(phase, op.Sub(period, phase)), low)


def _cubic_weights(part: Value) -> dict[int, Value]:
    """Weights of the taps at offsets -1 to 2 for a position ``part`` of the way from tap 0 to tap 1."""
    one, two = number(1.0, part), number(2.0, part)
    rest = op.Sub(one, part)
    far, near = (CUBIC, -5 * CUBIC, 8 * CUBIC, -4 * CUBIC), (CUBIC + 2, -(CUBIC + 3), 0.0, 1.0)
    return {
        -1: _polynomial(far, op.Add(part, one)),
        0: _polynomial(near, part),
        1: _polynomial(near, rest),
        2: _polynomial(far, op.Sub(two, part)),
    }


def _polynomial(coefficients: tuple[float, ...], x: Value) -> Value:
    """Horner's scheme, highest power first."""
    result = number(coefficients[0], x)
    for coefficient in coefficients[1:]:
        result = op.Add(op.Mul(result, x), number(coefficient, x))
    return result


def _side(image: Value, axis: int) -> Value:
    """One dimension as a tensor of one int64, a constant where it is known."""
    side = image.shape[axis]
    return wholes([side]) if isinstance(side, int) else op.Shape(image, start=axis, end=axis + 1)


def _to_int(x: Value, side: Value) -> Value:
    """A whole number, within bounds once more: NaN may become any. The weight of such a tap is NaN itself."""
    index = op.Cast(x, to=onnx_ir.DataType.INT64)
    return op.Max(op.Min(index, op.Sub(side, wholes([1]))), wholes([0]))
