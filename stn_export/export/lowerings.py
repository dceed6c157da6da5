"""Translate ``F.affine_grid`` and ``F.grid_sample`` to ONNX: one function per lowering, and the table of lowerings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir
import torch
from onnx import numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import opset18, opset20
from onnxscript import opset18 as op

from stn_export.errors import UserError, require_choice
from stn_export.export.translations import OPERATORS, number, whole, wholes
from stn_export.program.capture import AFFINE_GRIDS, GRID_SAMPLES
from stn_export.program.sites import PADDINGS

# Lowering ``folded``: fold the Linear that predicts theta and the affine grid behind it into one Gemm.


FOLDED = "affine_grids_folded"


def fold_grids(model: onnx_ir.Model) -> dict[str, str]:
    """Fold every affine grid, lowered as one MatMul, whose theta comes straight from a Gemm and has no other use.

    Returns:
        Metadata: how many of how many grids were folded; the others are unchanged.
    """
    products = [node for node in model.graph if _is_grid_product(node)]
    folded = sum(_fold(model, product) for product in products)
    RemoveUnusedNodesPass()(model)
    return {FOLDED: f"{folded} of {len(products)}"}


def _is_grid_product(node: onnx_ir.Node) -> bool:
    """Return whether a node multiplies theta (N×2×3) by a constant base grid (3×HW)."""
    if node.op_type != "MatMul":
        return False
    theta, base = node.inputs[0], _constant(node.inputs[1])
    if theta is None or theta.shape is None or base is None:
        return False
    return list(theta.shape[1:]) == [2, 3] and base.ndim == 2 and base.shape[0] == 3


def _fold(model: onnx_ir.Model, product: onnx_ir.Node) -> bool:
    theta, base = _producer(product.inputs[0], "Reshape"), _constant(product.inputs[1])
    gemm = _producer(theta, "Gemm")
    transpose = _only_user(product, "Transpose")
    reshape = transpose and _only_user(transpose, "Reshape")
    if base is None or theta is None or gemm is None or reshape is None:
        return False
    if not (_serves_one(gemm) and _serves_one(theta)):
        return False
    weights = fold_linear(base, *_linear_of(gemm))
    if weights is None:
        return False
    _replace(model, gemm, reshape, *weights)
    return True


def fold_linear(
    base: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Compute the weight, K×2P, and the bias, 2P, of the Gemm that outputs the grid (x before y, pixel by pixel).

    Args:
        base: the homogeneous base grid, 3×P.
        weight: of the Linear, K×6, theta's in row-major order.
        bias: of the Linear, 6.

    Returns:
        None if weight or bias is missing, or the Linear does not output a 2×3 theta.
    """
    if weight is None or bias is None or weight.shape[1:] != (6,):
        return None
    base64 = base.astype(np.float64)
    columns = weight.astype(np.float64).reshape(-1, 2, 3) @ base64  # K×2×P
    offsets = bias.astype(np.float64).reshape(2, 3) @ base64
    to_pixels = columns.transpose(0, 2, 1).reshape(len(columns), -1)
    return to_pixels.astype(weight.dtype), offsets.T.ravel().astype(weight.dtype)


def _linear_of(gemm: onnx_ir.Node) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the K×6 weight and the bias of a plain ``x @ W + b``; None for each if they are not constants."""
    weight = _constant(gemm.inputs[1])
    bias = _constant(gemm.inputs[2]) if len(gemm.inputs) > 2 else None
    scaled = any(gemm.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    turned_input: int = gemm.attributes.get_int("transA", 0)
    if weight is None or scaled or turned_input:
        return None, None
    turned: int = gemm.attributes.get_int("transB", 0)
    return (weight.T if turned else weight), bias


def _replace(
    model: onnx_ir.Model, gemm: onnx_ir.Node, reshape: onnx_ir.Node, weight: np.ndarray, bias: np.ndarray
) -> None:
    """Replace a grid's computation by a new Gemm and the Reshape behind it; the grid keeps its name."""
    grid = reshape.outputs[0]
    initialisers = []
    for array, role in ((weight, "weight"), (bias, "bias")):
        tensor = onnx_ir.tensor(array, name=f"{grid.name}.{role}")
        shape, kind = onnx_ir.Shape(array.shape), onnx_ir.TensorType(tensor.dtype)
        value = onnx_ir.Value(name=tensor.name, shape=shape, type=kind, const_value=tensor)
        model.graph.register_initializer(value)
        initialisers.append(value)
    flat = onnx_ir.node("Gemm", [gemm.inputs[0], *initialisers], name=f"{grid.name}.folded")
    flat.outputs[0].name = f"{grid.name}.flat"
    model.graph.insert_before(reshape, flat)
    reshape.replace_input_with(0, flat.outputs[0])


def _constant(value: onnx_ir.Value | None) -> np.ndarray | None:
    tensor = None if value is None else onnx_ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _producer(source: onnx_ir.Value | onnx_ir.Node | None, op_type: str) -> onnx_ir.Node | None:
    """Return the node that computes a value, or a node's first input, if it is of this type."""
    value = source.inputs[0] if isinstance(source, onnx_ir.Node) else source
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _serves_one(node: onnx_ir.Node) -> bool:
    return len(node.outputs[0].uses()) == 1 and not node.outputs[0].is_graph_output()


def _only_user(node: onnx_ir.Node, op_type: str) -> onnx_ir.Node | None:
    users = [use.node for use in node.outputs[0].uses()]
    return users[0] if len(users) == 1 and users[0].op_type == op_type else None


# Lowering ``gather``: ``F.grid_sample`` as Gather, Mul and Add, for runtimes without a GridSample operator.


Value = Any  # a symbolic tensor of the graph being built
Tap = tuple[Value, Value | None]  # an index along an axis, float and within bounds; its weight, None for 1

BILINEAR, NEAREST, BICUBIC = range(3)
ZEROS, BORDER, REFLECTION = range(3)
CUBIC = -0.75
VOLUME_MODES = ("linear", "nearest")


def gather_grid_sample(
    image: Value, grid: Value, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Value:
    """Sample N×C×H×W images on an N×P×Q×2 grid (x before y): N×C×P×Q. Volumes use GridSample of opset 20."""
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
    """Return the indices that the grid's coordinates along one axis read, with their weights."""
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
    """Clamp a tap's index to the image; with zeros padding a tap outside gets weight 0."""
    inside = op.Max(op.Min(index, last), number(0.0, index))
    if padding == ZEROS:
        weight = op.Mul(weight, op.CastLike(op.Equal(inside, index), weight))
    return inside, weight


def _to_pixels(x: Value, side: Value, align_corners: bool) -> Value:
    """Convert coordinates in [-1, 1] to pixels, with centres at 0 to side - 1."""
    scaled = op.Add(x, number(1.0, x))
    if align_corners:
        return op.Mul(scaled, op.Div(op.Sub(side, number(1.0, x)), number(2.0, x)))
    return op.Div(op.Sub(op.Mul(scaled, side), number(1.0, x)), number(2.0, x))


def _pad(x: Value, side: Value, padding: int, align_corners: bool) -> Value:
    """Move coordinates outside the image as border or reflection padding does; zeros padding leaves them unchanged."""
    if padding == ZEROS:
        return x
    if padding == REFLECTION:
        x = _reflect(x, side, align_corners)
    return op.Max(op.Min(x, op.Sub(side, number(1.0, x))), number(0.0, x))


def _reflect(x: Value, side: Value, align_corners: bool) -> Value:
    """Reflect coordinates at the corner pixels' centres (``align_corners``) or the image's edges: a triangle wave."""
    low = number(0.0 if align_corners else -0.5, x)
    span = op.Sub(side, number(1.0, x)) if align_corners else side
    span = op.Max(span, number(1e-6, x))  # with align_corners one pixel has no span; the clip below gives 0
    period = op.Mul(span, number(2.0, x))
    distance = op.Abs(op.Sub(x, low))
    phase = op.Sub(distance, op.Mul(op.Floor(op.Div(distance, period)), period))
    return op.Add(op.Min(phase, op.Sub(period, phase)), low)


def _cubic_weights(part: Value) -> dict[int, Value]:
    """Return the weights of the taps at offsets -1 to 2 for a position ``part`` of the way from tap 0 to tap 1."""
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
    """Evaluate a polynomial by Horner's scheme, highest power first."""
    result = number(coefficients[0], x)
    for coefficient in coefficients[1:]:
        result = op.Add(op.Mul(result, x), number(coefficient, x))
    return result


def _side(image: Value, axis: int) -> Value:
    """Return one dimension as a tensor of one int64, constant if the size is static."""
    side = image.shape[axis]
    return wholes([side]) if isinstance(side, int) else op.Shape(image, start=axis, end=axis + 1)


def _to_int(x: Value, side: Value) -> Value:
    """Convert an index to int64 and clamp it again: NaN may become any integer. The weight of such a tap is NaN."""
    index = op.Cast(x, to=onnx_ir.DataType.INT64)
    return op.Max(op.Min(index, op.Sub(side, wholes([1]))), wholes([0]))


@dataclass(frozen=True)
class Lowering:
    """Translations of the two operators (None leaves one to the exporter), a pass over the finished graph, and opsets.

    ``rewrite`` returns entries for the file's metadata.
    """

    affine_grid: Callable[..., Value] | None
    opsets: range
    default_opset: int
    grid_sample: Callable[..., Value] | None = None
    rewrite: Callable[[onnx_ir.Model], dict[str, str]] | None = None

    @property
    def translations(self) -> dict[Callable, Callable]:
        """Return the ``custom_translation_table`` for ``torch.onnx.export``."""
        rows = {
            **dict.fromkeys(AFFINE_GRIDS, self.affine_grid),
            **dict.fromkeys(GRID_SAMPLES, self.grid_sample),
        }
        return OPERATORS | {operator: function for operator, function in rows.items() if function is not None}


def base_coordinates(size: int, align_corners: bool, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Return the positions of ``size`` pixel centres in [-1, 1]; with ``align_corners`` the outermost are at ±1."""
    if size == 1:
        return torch.zeros(1, dtype=dtype).numpy()
    steps = torch.linspace(-1, 1, size, dtype=dtype)
    return (steps if align_corners else steps * (size - 1) / size).numpy()


def base_grid(*sides: int, align_corners: bool, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Return homogeneous output coordinates: 3×HW for H×W pixels (rows x, y, 1; row-major), 4×DHW for D×H×W voxels."""
    places = np.meshgrid(*(base_coordinates(side, align_corners, dtype) for side in sides), indexing="ij")
    return np.stack([*(coordinate.ravel() for coordinate in reversed(places)), np.ones_like(places[0]).ravel()])


def matmul(theta: Value, size: list, align_corners: bool = False) -> Value:
    """Multiply theta by the base grid in one MatMul; the base grid is constant if all sizes are static.

    Raises:
        UserError: for volumes with dynamic sizes.
    """
    sides = size[2:]
    base: Value
    shape: Value
    if all(isinstance(side, int) for side in sides):
        dtype = torch.float64 if theta.dtype == onnx_ir.DataType.DOUBLE else torch.float32
        grid = base_grid(*sides, align_corners=align_corners, dtype=dtype)
        base = opset18.Constant(value=numpy_helper.from_array(grid))
        shape = opset18.Constant(value_ints=[-1, *sides, len(sides)])
    elif len(sides) == 2:
        height, width = sides
        base = _symbolic_base(height, width, align_corners)
        shape = opset18.Concat(*(_as_1d(side) for side in (-1, *sides, 2)), axis=0)
    else:
        raise UserError("affine_grid of volumes of open sizes cannot be lowered", "fix depth, height and width")
    grid = opset18.MatMul(theta, opset18.CastLike(base, theta))
    return opset18.Reshape(opset18.Transpose(grid, perm=[0, 2, 1]), shape)


def affinegrid(theta: Value, size: list, align_corners: bool = False) -> Value:
    """Write the ``AffineGrid`` operator of opset 20."""
    shape = opset20.Concat(*(_as_1d(side) for side in size), axis=0)
    return opset20.AffineGrid(theta, shape, align_corners=int(align_corners))


def _symbolic_base(height: int | Value, width: int | Value, align_corners: bool) -> Value:
    """Compute ``base_grid`` in the graph."""
    sides = opset18.Concat(_as_1d(height), _as_1d(width), axis=0)
    x = opset18.Expand(_symbolic_coordinates(width, align_corners), sides)
    column: Value = _symbolic_coordinates(height, align_corners)
    last: Value = opset18.Constant(value_ints=[1])
    column = opset18.Unsqueeze(column, last)
    y = opset18.Expand(column, sides)
    flat: Value = opset18.Constant(value_ints=[1, -1])
    x, y = opset18.Reshape(x, flat), opset18.Reshape(y, flat)
    ones = opset18.Add(opset18.Mul(x, _number(0.0)), _number(1.0))
    return opset18.Concat(x, y, ones, axis=0)


def _symbolic_coordinates(side: int | Value, align_corners: bool) -> Value:
    """Compute ``base_coordinates`` in the graph for a side known at run time; a single pixel is at 0."""
    count = opset18.Cast(opset18.Squeeze(_as_1d(side)), to=onnx_ir.DataType.FLOAT)
    index = opset18.Range(_number(0.0), count, _number(1.0))
    twice = opset18.Sub(opset18.Mul(index, _number(2.0)), opset18.Sub(count, _number(1.0)))  # -(n-1), -(n-3), ..., n-1
    span = opset18.Max(opset18.Sub(count, _number(1.0)), _number(1.0)) if align_corners else count
    return opset18.Div(twice, span)


def _number(value: float) -> Value:
    return opset18.Constant(value_float=value)


def _as_1d(side: int | Value) -> Value:
    """Return a size as a tensor of one int64."""
    if isinstance(side, int):
        return opset18.Constant(value_ints=[side])
    one: Value = opset18.Constant(value_ints=[1])
    return opset18.Reshape(side, one)


LOWERINGS = {
    "matmul": Lowering(matmul, range(16, 20), 18),
    "folded": Lowering(matmul, range(16, 20), 18, rewrite=fold_grids),
    "affinegrid": Lowering(affinegrid, range(20, 24), 20),
    "decomposed": Lowering(None, range(16, 24), 18),
    "gather": Lowering(matmul, range(16, 24), 18, grid_sample=gather_grid_sample),
    "plain": Lowering(None, range(16, 24), 18),
}


def translations(lowering: str = "matmul") -> dict[Callable, Callable]:
    """Return a lowering's table for your own ``torch.onnx.export(..., dynamo=True, custom_translation_table=...)``.

    Names of sampling sites, and passes over the finished graph such as that of ``folded``, are only applied by
    ``export_onnx``.

    Args:
        lowering: a key of ``LOWERINGS``; ``matmul`` and ``gather`` are for opset 18, ``affinegrid`` from 20 on.

    Raises:
        UserError: for an unknown lowering.
    """
    return dict(LOWERINGS[require_choice("lowering", lowering, list(LOWERINGS))].translations)
