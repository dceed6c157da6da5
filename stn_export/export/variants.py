"""The same network at another precision, or fed with raw pictures: passes over its flat graph.

Half-precision grids are off by pixels, so localisation's linear layers, the grid, the sampler and every softmax stay in
float32 whatever the rest computes in.
"""

from dataclasses import replace
from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from stn_export.errors import UserError
from stn_export.program.program import Program
from stn_export.program.specs import Contract, Pixels, TensorSpec
from stn_export.program.surgery import sharing_copy

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
LINEAR = {"linear", "matmul", "mm", "bmm", "addmm", "baddbmm"}
CONVOLUTIONS = {"convolution", *(f"conv{kind}{rank}d" for kind in ("", "_transpose") for rank in (1, 2, 3))}
FOLLOWING = {  # what computes in half where all that it reads does
    *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "gelu", "silu", "silu_", "mish", "prelu", "tanh"),
    *("sigmoid", "hardtanh", "hardtanh_", "hardsigmoid", "hardswish", "hardswish_", "clamp", "batch_norm"),
    *("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"),
    *("flatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "contiguous", "cat", "add", "add_"),
}


def at_precision(program: Program, precision: str) -> GraphModule:
    """A copy of the network in which convolutions, and linear layers of ``rest``, compute in ``precision``.

    Raises:
        UserError: where it has no such layer.
    """
    dtype = HALVES.get(precision)
    if dtype is None:
        return program.module
    module, parts = sharing_copy(program.module), program.parts()
    halved: set[Node] = set()
    for node in module.graph.nodes:
        if _computes_in_half(node, parts.get(node.name), halved):
            halved.add(node)
    if not halved:
        raise UserError(f"no layer of it may compute in {precision}", "use fp32")
    _halve_weights(module, halved, dtype)
    casts: dict[tuple[Node, torch.dtype], Node] = {}
    for node in list(module.graph.nodes):
        for source in node.all_input_nodes:
            if _is_float32(source) and (node in halved) != (source in halved):
                wanted = source, dtype if node in halved else torch.float32
                if wanted not in casts:
                    casts[wanted] = _cast(node, *wanted)
                node.replace_input_with(source, casts[wanted])
    module.recompile()
    return module


def _computes_in_half(node: Node, part: str | None, halved: set[Node]) -> bool:
    if part not in ("localisation", "rest") or not _is_float32(node):
        return False
    operator = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
    computed = [source for source in node.all_input_nodes if source.op != "get_attr" and _is_float32(source)]
    follows = operator in FOLLOWING and bool(computed) and halved.issuperset(computed)
    return operator in CONVOLUTIONS or (operator in LINEAR and part == "rest") or follows


def _is_float32(node: Node) -> bool:
    """Whether it gives one tensor of float32, as the network was captured."""
    value = _held(node) if node.op == "get_attr" else node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _held(node: Node) -> Tensor | None:
    """The tensor that a ``get_attr`` node reads; None where it reads something else."""
    value = attrgetter(str(node.target))(node.graph.owning_module)
    return value if isinstance(value, Tensor) else None


def _halve_weights(module: GraphModule, halved: set[Node], dtype: torch.dtype) -> None:
    """Keep in ``dtype`` what only ``halved`` nodes read, which are then among them."""
    weights = [node for node in module.graph.find_nodes(op="get_attr") if _is_float32(node)]
    shared = {node.target for node in weights if not halved.issuperset(node.users)}
    for node in weights:
        value, (owner, _, name) = _held(node), str(node.target).rpartition(".")
        if value is not None and node.target not in shared:
            half = value.detach().to(dtype)
            half = nn.Parameter(half, requires_grad=False) if isinstance(value, nn.Parameter) else half
            setattr(module.get_submodule(owner), name, half)
            halved.add(node)


def _cast(user: Node, source: Node, dtype: torch.dtype) -> Node:
    with user.graph.inserting_before(user):
        cast = user.graph.call_function(torch.ops.aten.to.dtype, (source, dtype))
    cast.meta = {"val": source.meta.get("val")}  # its shape is asked for, no more
    return cast


class FromBytes(nn.Module):
    """Raw uint8 pictures, NCHW or NHWC, to what a network takes."""

    scale: Tensor
    shift: Tensor

    def __init__(self, pixels: Pixels, layout: str) -> None:
        super().__init__()
        self.layout = layout
        mean, std = pixels.tensors()
        self.register_buffer("scale", 255 * std)
        self.register_buffer("shift", mean / std)

    def forward(self, pictures: Tensor) -> Tensor:
        """Normalised N×C×H×W."""
        pictures = pictures.permute(0, 3, 1, 2) if self.layout == "NHWC" else pictures
        return pictures.float() / self.scale - self.shift


def from_bytes(module: GraphModule, contract: Contract, layout: str) -> GraphModule:
    """A copy that takes pictures raw, ``NCHW`` or ``NHWC``, wherever its contract knows how they are normalised."""
    module = sharing_copy(module)
    for spec, node in zip(contract.inputs, module.graph.find_nodes(op="placeholder"), strict=True):
        if spec.pixels is not None:
            name = f"from_bytes_{node.name}"
            module.add_submodule(name, FromBytes(spec.pixels, layout))
            with module.graph.inserting_after(node):
                normalised = module.graph.call_module(name, (node,))
            normalised.meta = dict(node.meta)
            node.replace_all_uses_with(normalised, delete_user_cb=lambda user, new=normalised: user is not new)
    module.recompile()
    return module


def raw(contract: Contract, layout: str) -> Contract:
    """What the copy takes and gives."""
    return replace(contract, inputs=tuple(_raw(spec, layout) for spec in contract.inputs))


def _raw(spec: TensorSpec, layout: str) -> TensorSpec:
    if spec.pixels is None:
        return spec
    batch, channels, *sides = spec.shape
    shape = (batch, *sides, channels) if layout == "NHWC" else spec.shape
    return replace(spec, dtype="uint8", shape=shape, layout=layout, pixels=None)
