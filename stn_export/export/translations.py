"""Translate to ONNX operators that PyTorch lacks or writes wrongly, for ``custom_translation_table``."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir
import torch
from onnx import numpy_helper
from onnxscript import opset18 as op
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention

from stn_export.errors import UserError

Value = Any  # a symbolic tensor of the graph being built
_ZERO = numpy_helper.from_array(np.zeros(1, np.int32))
LARGEST = 32  # largest size of a matrix: elimination is unrolled, some 12 nodes per row


def copied_into(self: Value, src: Value, non_blocking: bool = False) -> Value:
    """Translate ``self.copy_(src)``: the values of ``src``, expanded to the shape of ``self``, unlike in torchlib."""
    del non_blocking
    same = src.shape is not None and self.shape is not None and list(src.shape) == list(self.shape)
    cast = op.CastLike(src, self)
    return cast if same else op.Expand(cast, op.Shape(self))


def attention(
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """Translate ``F.scaled_dot_product_attention`` with any number of leading dimensions; torchlib's own has two."""
    if len(query.shape) == 4:
        return aten_scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    size = op.CastLike(op.Shape(query, start=-1), query)
    factor = op.Div(number(1.0, query), op.Sqrt(size)) if scale is None else number(scale, query)
    turned = list(range(len(key.shape)))
    turned[-2:] = turned[-1], turned[-2]
    scores = op.Mul(op.MatMul(query, op.Transpose(key, perm=turned)), factor)
    if is_causal:
        ones = op.Expand(
            number(1.0, query), op.Concat(op.Shape(query, start=-2, end=-1), op.Shape(key, start=-2, end=-1), axis=0)
        )
        attn_mask = op.Cast(op.Trilu(ones, upper=0), to=onnx_ir.DataType.BOOL)
        scores = op.Where(attn_mask, scores, number(float("-inf"), query))
    elif attn_mask is not None and attn_mask.dtype == onnx_ir.DataType.BOOL:
        scores = op.Where(attn_mask, scores, number(float("-inf"), query))
    elif attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def inverse(A: Value) -> Value:  # noqa: N803, the operator's own name
    """Invert n×n matrices with any leading dimensions: in closed form up to 3×3, else by elimination.

    Raises:
        UserError: if n is dynamic or above ``LARGEST``.
    """
    size = _side(A)
    if size <= 3:
        return (_inverse_of_1, _inverse_of_2, _inverse_of_3)[size - 1](A)
    square: Value = op.ConstantOfShape(wholes([size, size]))
    eye: Value = op.EyeLike(square, dtype=A.dtype)
    return _eliminated(A, op.Expand(eye, op.Shape(A)), size)


def inverse_ex(A: Value, check_errors: bool = False) -> tuple[Value, Value]:  # noqa: N803, the operator's own name
    """Translate ``torch.linalg.inv_ex``: the inverse, and info 0 for every matrix: singular ones are not detected."""
    del check_errors
    return inverse(A), op.ConstantOfShape(op.Shape(A, start=0, end=-2), value=_ZERO)


def solved(A: Value, B: Value, left: bool = True) -> Value:  # noqa: N803, the operator's own names
    """Solve A X = B for n×n matrices A and n×m or n right-hand sides B, by elimination with partial pivoting.

    Raises:
        UserError: if n is dynamic or above ``LARGEST``, or X A = B is asked for.
    """
    if not left:
        raise UserError("linalg.solve(left=False) cannot be written to ONNX", "solve the transposed system")
    size, vector = _side(A), len(B.shape) == 1 or len(B.shape) == len(A.shape) - 1
    sides = op.Unsqueeze(B, wholes([-1])) if vector else B
    columns = op.Shape(sides, start=-1)
    batch = op.Concat(op.Shape(A, start=0, end=-1), columns, axis=0)
    solution = _eliminated(A, op.Expand(sides, batch), size)
    return op.Squeeze(solution, wholes([-1])) if vector else solution


def _side(matrices: Value) -> int:
    size = matrices.shape[-1]
    if not isinstance(size, int) or size > LARGEST:
        raise UserError(
            f"matrices of size {size} cannot be inverted or solved in ONNX",
            f"have them of a fixed size up to {LARGEST}",
        )
    return size


def _inverse_of_1(matrix: Value) -> Value:
    return op.Reciprocal(matrix)


def _inverse_of_2(matrix: Value) -> Value:
    """Invert by [[d, -b], [-c, a]] / (ad - bc)."""
    a, b, c, d = (_entry(matrix, row, column) for row in range(2) for column in range(2))
    adjugate = _matrix([[d, op.Neg(b)], [op.Neg(c), a]])
    return op.Div(adjugate, _minor(a, b, c, d))


def _inverse_of_3(matrix: Value) -> Value:
    """Invert by the adjugate divided by the determinant, which is expanded along the first row."""
    at = {(row, column): _entry(matrix, row, column) for row in range(3) for column in range(3)}

    def cofactor(row: int, column: int) -> Value:  # cyclic indices include the sign
        (r0, r1), (c0, c1) = ([(index + 1) % 3, (index + 2) % 3] for index in (row, column))
        return _minor(at[r0, c0], at[r0, c1], at[r1, c0], at[r1, c1])

    cofactors = {place: cofactor(*place) for place in at}
    products = [op.Mul(at[0, column], cofactors[0, column]) for column in range(3)]
    total = op.Add(op.Add(products[0], products[1]), products[2])
    return op.Div(_matrix([[cofactors[column, row] for column in range(3)] for row in range(3)]), total)


def _minor(a: Value, b: Value, c: Value, d: Value) -> Value:
    return op.Sub(op.Mul(a, d), op.Mul(b, c))


def _entry(matrix: Value, row: int, column: int) -> Value:
    """Return one entry of each matrix, …×1×1."""
    return _columns(_rows(matrix, row, row + 1), column, column + 1)


def _matrix(entries: list[list[Value]]) -> Value:
    return op.Concat(*(op.Concat(*row, axis=-1) for row in entries), axis=-2)


def _rows(matrix: Value, start: int, end: int) -> Value:
    return op.Slice(matrix, wholes([start]), wholes([end]), wholes([-2]))


def _columns(matrix: Value, start: int, end: int) -> Value:
    return op.Slice(matrix, wholes([start]), wholes([end]), wholes([-1]))


def _eliminated(matrix: Value, sides: Value, size: int) -> Value:
    """Solve by Gauss-Jordan elimination with partial pivoting; return the right-hand sides."""
    joined = op.Concat(matrix, sides, axis=-1)
    indices: Value = op.Reshape(wholes(list(range(size))), wholes([size, 1]))
    for step in range(size):
        column = _columns(joined, step, step + 1)
        below = op.Less(indices, whole(step))
        sized = op.Where(below, number(-1.0, matrix), op.Abs(column))
        chosen = op.Equal(indices, op.ArgMax(sized, axis=-2, keepdims=1))  # …×n×1
        here = op.Equal(indices, whole(step))
        pivot_row = op.ReduceSum(op.Where(chosen, joined, number(0.0, matrix)), wholes([-2]), keepdims=1)
        swapped = op.Where(chosen, _rows(joined, step, step + 1), joined)
        row = op.Div(pivot_row, _columns(pivot_row, step, step + 1))
        rest = op.Sub(swapped, op.Mul(_columns(swapped, step, step + 1), row))
        joined = op.Where(here, row, rest)
    return op.Slice(joined, wholes([size]), wholes([2**31 - 1]), wholes([-1]))


def number(value: float, like: Value) -> Value:
    """Write a constant into the graph, in the dtype of another value."""
    constant: Value = op.Constant(value_float=value)
    return op.CastLike(constant, like)


def whole(value: int) -> Value:
    """Write an int64 constant into the graph."""
    return op.Constant(value_int=value)


def wholes(values: list[int]) -> Value:
    """Write a constant int64 vector into the graph."""
    return op.Constant(value_ints=values)


def all_true(self: Value) -> Value:
    """Translate the all-true reduction of ``torch._check_tensor_all``; the check itself is not written."""
    numbers: Value = op.Cast(self, to=onnx_ir.DataType.INT32)
    least: Value = op.ReduceMin(numbers, keepdims=0)
    return op.Cast(least, to=onnx_ir.DataType.BOOL)


aten = torch.ops.aten
OPERATORS: dict[Callable, Callable] = {
    aten.copy.default: copied_into,
    aten._is_all_true.default: all_true,
    aten.scaled_dot_product_attention.default: attention,
    aten.linalg_inv.default: inverse,
    aten.inverse.default: inverse,
    aten.linalg_inv_ex.default: inverse_ex,
    aten.linalg_solve.default: solved,
}
