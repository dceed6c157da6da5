"""How ``F.affine_grid`` becomes ONNX: one function per lowering and the table of them.

The dynamo exporter has no translation for ``aten.affine_grid_generator`` and would decompose it into a broadcast
product and a reduction, 2.4 times slower in ONNX Runtime on a CPU. Each function here is such a translation: it gets
theta (N×2×3), the size ``[N, C, H, W]`` and ``align_corners``, and returns the grid, N×H×W×2 with x before y.

Source: ``aten/src/ATen/native/AffineGridGenerator.cpp`` for the base grid.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import numpy_helper
from onnxscript import opset18, opset20

from stn_export.errors import UserError

Value = Any  # a symbolic tensor of the graph being built


@dataclass(frozen=True)
class Lowering:
    """A translation of ``affine_grid`` and the opsets it may be exported at; None leaves it to the exporter."""

    translate: Callable[..., Value] | None
    opsets: range


def base_coordinates(size: int, align_corners: bool) -> np.ndarray:
    """Where ``size`` pixel centres lie in [-1, 1], float32; the corners' own centres at ±1 with ``align_corners``."""
    if size == 1:
        return np.zeros(1, np.float32)
    steps = torch.linspace(-1, 1, size)
    return (steps if align_corners else steps * (size - 1) / size).numpy()


def base_grid(height: int, width: int, align_corners: bool) -> np.ndarray:
    """Homogeneous output coordinates, 3×HW float32: rows x, y and 1, pixels in row-major order."""
    x, y = np.meshgrid(base_coordinates(width, align_corners), base_coordinates(height, align_corners))
    return np.stack([x.ravel(), y.ravel(), np.ones(height * width, np.float32)])


def matmul(theta: Value, size: list, align_corners: bool = False) -> Value:
    """One MatMul of theta with the constant base grid."""
    height, width = _image_size(size)
    base = opset18.Constant(value=numpy_helper.from_array(base_grid(height, width, align_corners)))
    grid = opset18.Transpose(opset18.MatMul(theta, base), perm=[0, 2, 1])
    return opset18.Reshape(grid, opset18.Constant(value_ints=[-1, height, width, 2]))


def affinegrid(theta: Value, size: list, align_corners: bool = False) -> Value:
    """The ``AffineGrid`` operator of opset 20."""
    batch = size[0]
    if not isinstance(batch, int):
        batch = opset20.Reshape(batch, opset20.Constant(value_ints=[1]))
        shape = opset20.Concat(batch, opset20.Constant(value_ints=list(size[1:])), axis=0)
    else:
        shape = opset20.Constant(value_ints=list(size))
    return opset20.AffineGrid(theta, shape, align_corners=int(align_corners))


def _image_size(size: list) -> tuple[int, int]:
    if len(size) != 4 or not all(isinstance(side, int) for side in size[2:]):
        raise UserError(f"affine_grid to size {size} cannot be lowered", "export with a fixed height and width, in 2-D")
    return size[2], size[3]


LOWERINGS = {
    "matmul": Lowering(matmul, range(16, 20)),
    "affinegrid": Lowering(affinegrid, range(20, 24)),
    "plain": Lowering(None, range(16, 24)),
}
