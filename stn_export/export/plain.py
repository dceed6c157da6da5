"""Passes that keep a file to what most runtimes read; what it computes stays the same to the bit.

Each says which runtime wants it. Runtimes and their versions are in ``docs/runtimes.md``.
"""

import onnx_ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass


def plain(model: onnx_ir.Model) -> None:
    """Apply every pass of ``PASSES``."""
    for each in PASSES:
        each(model)


def lift_constants(model: onnx_ir.Model) -> None:
    """Initialisers instead of Constant nodes: pnnx (ncnn) and MNN fold only those into shapes and weights."""
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def reshape_as_before(model: onnx_ir.Model) -> None:
    """No ``allowzero``, which onnx2torch refuses: it changes a Reshape to a size of 0 only, and there is none."""
    for node in model.graph.all_nodes():
        if node.op_type == "Reshape" and node.domain == "" and not _has_zero(node.inputs[1]):
            node.attributes.pop("allowzero", None)


def _has_zero(shape: onnx_ir.Value | None) -> bool:
    constant = None if shape is None else onnx_ir.convenience.get_const_tensor(shape)
    return constant is not None and 0 in constant.numpy()


def name_in_ascii(model: onnx_ir.Model) -> None:
    """Values and nodes with ASCII names, as TVM and MNN want for what they generate; the caller's names stay his."""
    fixed = {*model.graph.inputs, *model.graph.outputs}
    values = [
        *model.graph.initializers.values(),
        *(value for node in model.graph.all_nodes() for value in node.outputs),
    ]
    named: list[onnx_ir.Node | onnx_ir.Value] = [*model.graph.all_nodes()]
    for each in (*named, *(value for value in values if value not in fixed)):
        if each.name and not each.name.isascii():
            each.name = each.name.encode("ascii", "backslashreplace").decode().replace("\\", "_")


def forget_shapes(model: onnx_ir.Model) -> None:
    """Nothing said of inner values: tract takes ``batch`` there for another size than the 1 that it is loaded with."""
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None
                value.metadata_props.clear()


def state_sizes(model: onnx_ir.Model) -> None:
    """Sizes that are known as numbers, where the exporter names a dimension ``2``: TVM and IREE take it for open."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        shape = () if value.shape is None else value.shape
        known = {axis: str(getattr(size, "value", None)) for axis, size in enumerate(shape)}
        for axis, number in known.items():
            if number.isdecimal() and value.shape is not None:
                value.shape[axis] = int(number)


PASSES = (state_sizes, lift_constants, reshape_as_before, name_in_ascii, forget_shapes)
