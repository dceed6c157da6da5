"""How ``F.affine_grid`` and ``F.grid_sample`` become ONNX: one function per lowering and the table of them.

The dynamo exporter has no translation for ``aten.affine_grid_generator`` and would decompose it into a broadcast
product and a reduction, 2.4 times slower in ONNX Runtime on a CPU. Each function here is such a translation: it gets
theta (N×2×3), the size ``[N, C, H, W]`` and ``align_corners``, and returns the grid, N×H×W×2 with x before y. Batch,
height and width may be integers or symbolic.

Source: ``aten/src/ATen/native/AffineGridGenerator.cpp`` for the base grid.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir
import torch
from onnx import numpy_helper
from onnxscript import opset18, opset20

from stn_export.errors import UserError, require_choice
from stn_export.export.folding import fold_grids
from stn_export.export.sampling import gather_grid_sample
from stn_export.export.translations import OPERATORS
from stn_export.program.capture import AFFINE_GRIDS, GRID_SAMPLES

Value = Any  # a symbolic tensor of the graph being built


@dataclass(frozen=True)
class Lowering:
    """Translations of the two operators (None leaves one to the exporter), a pass over the finished graph, opsets.

    ``rewrite`` returns what it has to say of itself, for the file's metadata.
    """

    affine_grid: Callable[..., Value] | None
    opsets: range
    default_opset: int
    grid_sample: Callable[..., Value] | None = None
    rewrite: Callable[[onnx_ir.Model], dict[str, str]] | None = None

    @property
    def translations(self) -> dict[Callable, Callable]:
        """The table that ``torch.onnx.export`` takes."""
        rows = {
            **dict.fromkeys(AFFINE_GRIDS, self.affine_grid),
            **dict.fromkeys(GRID_SAMPLES, self.grid_sample),
        }
        return OPERATORS | {operator: function for operator, function in rows.items() if function is not None}


def base_coordinates(size: int, align_corners: bool, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Where ``size`` pixel centres lie in [-1, 1]; the corners' own centres at ±1 with ``align_corners``."""
    if size == 1:
        return torch.zeros(1, dtype=dtype).numpy()
    steps = torch.linspace(-1, 1, size, dtype=dtype)
    return (steps if align_corners else steps * (size - 1) / size).numpy()


def base_grid(*sides: int, align_corners: bool, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Homogeneous output coordinates of H×W pixels, 3×HW: rows x, y and 1, row-major; of D×H×W voxels 4×DHW."""
    places = np.meshgrid(*(base_coordinates(side, align_corners, dtype) for side in sides), indexing="ij")
    return np.stack([*(each.ravel() for each in reversed(places)), np.ones_like(places[0]).ravel()])


def matmul(theta: Value, size: list, align_corners: bool = False) -> Value:
    """One MatMul of theta with the base grid, which is a constant where height and width are.

    Raises:
        UserError: for volumes of open sizes.
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
    """The ``AffineGrid`` operator of opset 20."""
    shape = opset20.Concat(*(_as_1d(side) for side in size), axis=0)
    return opset20.AffineGrid(theta, shape, align_corners=int(align_corners))


def _symbolic_base(height: int | Value, width: int | Value, align_corners: bool) -> Value:
    """``base_grid`` computed in the graph."""
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
    """``base_coordinates`` of a side known at run time; one pixel alone lies at 0."""
    count = opset18.Cast(opset18.Squeeze(_as_1d(side)), to=onnx_ir.DataType.FLOAT)
    index = opset18.Range(_number(0.0), count, _number(1.0))
    twice = opset18.Sub(opset18.Mul(index, _number(2.0)), opset18.Sub(count, _number(1.0)))  # -(n-1), -(n-3), ..., n-1
    span = opset18.Max(opset18.Sub(count, _number(1.0)), _number(1.0)) if align_corners else count
    return opset18.Div(twice, span)


def _number(value: float) -> Value:
    return opset18.Constant(value_float=value)


def _as_1d(side: int | Value) -> Value:
    """A size as a tensor of one int64."""
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
    """The table for ``torch.onnx.export(..., dynamo=True, custom_translation_table=...)`` of a call of your own.

    Names of sites, and passes over the finished graph as ``folded`` has one, come with ``export_onnx`` only.

    Args:
        lowering: a key of ``LOWERINGS``; ``matmul`` and ``gather`` are for opset 18, ``affinegrid`` from 20 on.

    Raises:
        UserError: for an unknown lowering.
    """
    return dict(LOWERINGS[require_choice("lowering", lowering, list(LOWERINGS))].translations)
