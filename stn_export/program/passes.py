"""Rewrite captured graphs: remove dead code, use float64, change the device, bypass samplers, bound memory."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import is_not
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_leaves

from stn_export.errors import UserError
from stn_export.program.capture import operand, operator_of, samples_pictures

CHECKS = (  # nodes that compute nothing
    torch.ops.aten._assert_tensor_metadata.default,
    torch.ops.aten._assert_scalar.default,
    torch.ops.aten.sym_constrain_range_for_size.default,
    torch.ops.aten.sym_constrain_range.default,
)
NOTHING = (
    torch.ops.aten.dropout.default,
    torch.ops.aten.feature_dropout.default,
    torch.ops.aten.alias.default,
    torch.ops.aten.detach.default,  # gradients are never needed
    torch.ops.aten.detach_.default,
)


def bare(module: GraphModule) -> GraphModule:
    """Remove what computes nothing in evaluation mode, and replace in-place operators where that is safe."""
    _out_of_place(module)
    _keep_what_is_given(module)
    for node in list(module.graph.nodes):
        if node.target in CHECKS or (node.op == "call_module" and not node.users):
            module.graph.erase_node(node)
        elif node.target in NOTHING:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module.eval().requires_grad_(False)


def _out_of_place(module: GraphModule) -> None:
    """Replace in-place operators such as ``relu_`` by ``relu``, unless a view of the value exists.

    An in-place operator would change a value that is recorded, and would never be removed as dead code.
    """
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    for node in list(module.graph.nodes):
        plain = _plain_operator(node)
        if plain is None or any(_is_view(viewer) for viewer in (node.args[0], *node.args[0].users)):
            continue
        with module.graph.inserting_before(node):
            made = module.graph.call_function(plain, node.args, node.kwargs)
        made.meta, order[made] = dict(node.meta), order[node]
        changed = node.args[0]
        changed.replace_all_uses_with(made, delete_user_cb=lambda user, at=order[node]: order[user] > at)
        node.replace_all_uses_with(made)
        module.graph.erase_node(node)


def _keep_what_is_given(module: GraphModule) -> None:
    """Let the remaining in-place operators write into copies, so that no call changes inputs, parameters or buffers."""
    first = next((node for node in module.graph.nodes if node.op not in ("placeholder", "get_attr")), None)
    written = {root: None for node in module.graph.nodes if _writes(node) and (root := _root(node.args[0]))}
    for root in written:
        with module.graph.inserting_before(first):
            made = module.graph.call_function(torch.ops.aten.clone.default, (root,))
        made.meta = {"val": root.meta["val"]} if "val" in root.meta else {}
        root.replace_all_uses_with(made, delete_user_cb=partial(is_not, made))


def _writes(node: Node) -> bool:
    """Return whether an operator writes into its first argument."""
    first = node.target._schema.arguments[:1] if isinstance(node.target, OpOverload) else ()
    return any(argument.alias_info is not None and argument.alias_info.is_write for argument in first)


def _root(node: object) -> Node | None:
    """Return the input, parameter or buffer whose memory a value shares; None where it has its own."""
    while isinstance(node, Node) and node.op == "call_function" and (_is_view(node) or _writes(node)):
        node = node.args[0]
    return node if isinstance(node, Node) and node.op in ("placeholder", "get_attr") else None


def _plain_operator(node: Node) -> OpOverload | None:
    """Return the out-of-place form of an in-place operator; None where there is none for these types."""
    target = node.target
    if not isinstance(target, OpOverload) or not target._schema.name.endswith("_") or not target._schema.is_mutable:
        return None
    packet = getattr(torch.ops.aten, target._schema.name.removeprefix("aten::")[:-1], None)
    plain = getattr(packet, target._overloadname, None)
    types = {
        operand_node.meta["val"].dtype
        for operand_node in node.all_input_nodes
        if isinstance(operand_node.meta.get("val"), torch.Tensor)
    }
    fits = plain is not None and len(types) == 1 and not any(returned.alias_info for returned in plain._schema.returns)
    return plain if fits else None


def overwrites(module: GraphModule) -> bool:
    """Return whether the graph writes in place, perhaps into an input or a recorded point."""
    targets = (node.target for node in module.graph.nodes)
    return any(isinstance(target, OpOverload) and target._schema.is_mutable for target in targets)


def _is_view(node: Node) -> bool:
    returns = node.target._schema.returns if isinstance(node.target, OpOverload) else ()
    return any(returned.alias_info is not None and not returned.alias_info.is_write for returned in returns)


def sharing_copy(module: GraphModule) -> GraphModule:
    """Copy the graph but share its tensors, as weights may be large."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})


def in_float64(module: GraphModule) -> GraphModule:
    """Copy the graph to compute in float64, also where it names a narrower float type."""
    wide = copy.deepcopy(module).double()
    narrow = (torch.float32, torch.float16, torch.bfloat16)
    for node in wide.graph.nodes:
        rewrite(node, lambda value: torch.float64 if value in narrow else value)
    wide.recompile()
    return wide


def forget_unused(module: GraphModule) -> None:
    """Remove the parameters and buffers that the graph does not read."""
    used = {node.target for node in module.graph.find_nodes(op="get_attr")}
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, _ in tensors:
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(owner), attribute)
    module.recompile()


def rewrite(node: Node, change: Callable[[Any], Any]) -> None:
    """Apply ``change`` to every value in a node's arguments, nested ones included."""
    node.args, node.kwargs = map_aggregate(node.args, change), map_aggregate(node.kwargs, change)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set PyTorch's default float type within this block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def resized(module: GraphModule, sampler: Node) -> Node:
    """Return the sampler's image, resized bilinearly to the size of its output where the two differ."""
    image, size = operand(sampler), sampler.meta["val"].shape[-2:]
    if image.meta["val"].shape[-2:] == size:
        return image
    with module.graph.inserting_before(sampler):
        sizes = [size if isinstance(size, int) else _size_of_input(module, size) for size in size]
        resize = module.graph.call_function(torch.ops.aten.upsample_bilinear2d.vec, (image, sizes, False, None))
    resize.meta["val"] = sampler.meta["val"]
    return resize


def _size_of_input(module: GraphModule, length: torch.SymInt) -> Node:
    """Add a node that reads a dynamic size from an input."""
    for node in module.graph.find_nodes(op="placeholder"):
        for axis, size in enumerate(node.meta["val"].shape):
            if str(size) == str(length):
                return module.graph.call_function(torch.ops.aten.sym_size.int, (node, axis))
    raise UserError(f"a sampler gives pictures of an open size, {length}, that no input has", "give one with --plain")


def on_device(module: GraphModule, device: torch.device) -> GraphModule:
    """Move the module itself to a device, and the devices that its graph names."""
    for node in module.graph.nodes:
        rewrite(node, lambda value: device if isinstance(value, torch.device) else value)
    module.recompile()
    return module.to(device)


def without_samplers(module: GraphModule) -> GraphModule:
    """Copy the graph with every sampler bypassed: its image is passed on, resized where the sizes differ."""
    module = sharing_copy(module)
    for node in list(module.graph.nodes):
        if samples_pictures(node):
            node.replace_all_uses_with(resized(module, node))
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    forget_unused(module)
    return module


# Measure the memory of a run of a captured graph, and bound the workspace of its convolutions.


PROBE_BYTES = 2**29  # of live values in a float64 run that may choose its batch
WINDOW_BYTES = 2**22  # of a convolution's windows at once and per thread, so that they stay in the caches
CONVOLUTIONS = tuple(
    getattr(getattr(torch.ops.aten, name), overload)
    for name in ("conv1d", "conv2d", "conv3d")
    for overload in ("default", "padding")
)


class Meter(Interpreter):
    """An interpreter that records the peak of bytes of live values; weights do not count."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.peak = 0

    def run_node(self, node: Node) -> Any:
        """Run a node and update the peak."""
        result = bounded(self, node)
        held = [value for source, value in self.env.items() if source.op != "get_attr"]
        leaves = tree_leaves([held, result if node.op != "get_attr" else None])
        storages = [tensor.untyped_storage() for tensor in leaves if isinstance(tensor, Tensor)]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        self.peak = max(self.peak, sum(sizes.values()) + self._windows(node))
        return result

    def _windows(self, node: Node) -> int:
        """Return the bytes of a convolution's unfolded windows at once; 0 for other operators."""
        if node.target not in CONVOLUTIONS:
            return 0
        image, weight = self.fetch_args_kwargs_from_env(node)[0][:2]
        return min(len(image) * _window_bytes(image, weight), max(WINDOW_BYTES, _window_bytes(image, weight)))


def live_bytes(module: GraphModule, values: Sequence[Tensor]) -> int:
    """Return the peak bytes of live values while a graph runs on these inputs, convolution windows included."""
    meter = Meter(module)
    with torch.no_grad():
        meter.run(*values)
    return meter.peak


def bounded(interpreter: Interpreter, node: Node) -> Any:
    """Run a node; a float64 convolution on the CPU in parts of the batch, which changes no value."""
    if node.op != "call_function" or node.target not in CONVOLUTIONS:
        return Interpreter.run_node(interpreter, node)
    (image, weight, *others), keywords = interpreter.fetch_args_kwargs_from_env(node)
    count = max(1, torch.get_num_threads() * WINDOW_BYTES // _window_bytes(image, weight))
    if image.dtype != torch.float64 or image.device.type != "cpu" or count >= len(image):
        return Interpreter.run_node(interpreter, node)
    convolution = operator_of(node)
    return torch.cat([convolution(part, weight, *others, **keywords) for part in image.split(count)])


def _window_bytes(image: Tensor, weight: Tensor) -> int:
    """Return the bytes of all windows of one example, one per pixel, all channels of a group included."""
    return max(1, weight[0].numel() * image[0, 0].numel() * image.element_size())
