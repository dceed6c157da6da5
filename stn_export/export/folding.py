"""Fold the last Linear of a regressor and the affine grid behind it into one Gemm.

Both are linear: ``grid = base @ (W h + b)`` is ``(base W) h + base b``. The product is taken in float64 and rounded
once. What is left of MatMul, Transpose and two Reshapes is one Gemm that gives the grid directly, and theta is gone.

A theta that comes of anything but a Gemm, such as a tanh, is not linear in what lies before it. One that is read by
anything else, or given, stays as it is: the grid would no longer be made from it, so that a theta forced on the file
would move everything but the grid, and a Gemm beside it would cost K multiply-adds a coordinate instead of 3.
"""

import numpy as np
import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

FOLDED = "affine_grids_folded"


def fold_grids(model: onnx_ir.Model) -> dict[str, str]:
    """Fold every affine grid, lowered as one MatMul, whose theta comes straight from a Gemm and serves nothing else.

    Returns:
        How many of how many were folded; the others stay as they were.
    """
    products = [node for node in model.graph if _is_grid_product(node)]
    folded = sum(_fold(model, product) for product in products)
    RemoveUnusedNodesPass()(model)
    return {FOLDED: f"{folded} of {len(products)}"}


def _is_grid_product(node: onnx_ir.Node) -> bool:
    """Whether this is theta (N×2×3) times a constant base grid (3×HW)."""
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
    """Weight K×2P and bias 2P (x before y, pixel by pixel) of the Gemm that gives the grid.

    Args:
        base: the homogeneous base grid, 3×P.
        weight: K×6, theta's in row-major order.
        bias: 6.
    """
    if weight is None or bias is None or weight.shape[1:] != (6,):
        return None
    base64 = base.astype(np.float64)
    columns = weight.astype(np.float64).reshape(-1, 2, 3) @ base64  # K×2×P
    offsets = bias.astype(np.float64).reshape(2, 3) @ base64
    to_pixels = columns.transpose(0, 2, 1).reshape(len(columns), -1)
    return to_pixels.astype(weight.dtype), offsets.T.ravel().astype(weight.dtype)


def _linear_of(gemm: onnx_ir.Node) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The K×6 weight and the bias of a plain ``x @ W + b``; None where they are no constants."""
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
    """Let the grid's users read a new Gemm, reshaped, under the grid's old name."""
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
    """The node that made a value (or a node's first input), if it is of this type."""
    value = source.inputs[0] if isinstance(source, onnx_ir.Node) else source
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _serves_one(node: onnx_ir.Node) -> bool:
    return len(node.outputs[0].uses()) == 1 and not node.outputs[0].is_graph_output()


def _only_user(node: onnx_ir.Node, op_type: str) -> onnx_ir.Node | None:
    users = [use.node for use in node.outputs[0].uses()]
    return users[0] if len(users) == 1 and users[0].op_type == op_type else None
