"""How much memory a run of a captured graph takes, and convolutions whose workspace is bounded.

PyTorch lays out every window of every example for a convolution in float64: activations times the kernel's size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from stn_export.program.nodes import operator_of

PROBE_BYTES = 2**29  # of values that live at once in a float64 run that may choose its batch
WINDOW_BYTES = 2**26  # of a convolution's windows at once; one example's are the least
CONVOLUTIONS = tuple(
    getattr(getattr(torch.ops.aten, name), overload)
    for name in ("conv1d", "conv2d", "conv3d")
    for overload in ("default", "padding")
)


class Meter(Interpreter):
    """Runs a graph and notes how many bytes of values live at once, weights left out."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.peak = 0

    def run_node(self, node: Node) -> Any:
        result = bounded(self, node)
        held = [value for each, value in self.env.items() if each.op != "get_attr"]
        leaves = tree_leaves([held, result if node.op != "get_attr" else None])
        storages = [each.untyped_storage() for each in leaves if isinstance(each, Tensor)]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        self.peak = max(self.peak, sum(sizes.values()) + self._windows(node))
        return result

    def _windows(self, node: Node) -> int:
        """The bytes of a convolution's windows."""
        if node.target not in CONVOLUTIONS:
            return 0
        image, weight = self.fetch_args_kwargs_from_env(node)[0][:2]
        return min(len(image) * _window_bytes(image, weight), max(WINDOW_BYTES, _window_bytes(image, weight)))


def live_bytes(module: GraphModule, values: Sequence[Tensor]) -> int:
    """The most bytes of values that live at once while a graph runs on these inputs, and a convolution's windows."""
    meter = Meter(module)
    with torch.no_grad():
        meter.run(*values)
    return meter.peak


def bounded(interpreter: Interpreter, node: Node) -> Any:
    """What a node gives; a float64 convolution of many examples a few at a time, which changes no value of it."""
    if node.op != "call_function" or node.target not in CONVOLUTIONS:
        return Interpreter.run_node(interpreter, node)
    (image, weight, *others), keywords = interpreter.fetch_args_kwargs_from_env(node)
    count = max(1, WINDOW_BYTES // _window_bytes(image, weight))
    if image.dtype != torch.float64 or image.device.type != "cpu" or count >= len(image):
        return Interpreter.run_node(interpreter, node)
    convolution = operator_of(node)
    return torch.cat([convolution(part, weight, *others, **keywords) for part in image.split(count)])


def _window_bytes(image: Tensor, weight: Tensor) -> int:
    """Of all windows of one example, one around each pixel, with every channel that is looked at."""
    return max(1, weight[0].numel() * image[0, 0].numel() * image.element_size())
