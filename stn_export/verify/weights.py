"""Parameters that an artifact shows: in float32 they are the program's to the bit, or folded with what follows them."""

from collections.abc import Mapping

import numpy as np
import torch
from torch.fx import Node

from stn_export.program.program import Program
from stn_export.program.specs import Arrays, numbers_of

FOLDED = 1e-6  # of the largest: a product of three is rounded
BATCH_NORM = torch.ops.aten.batch_norm.default


def weights_of(program: Program) -> Arrays:
    """Parameters and buffers by name."""
    return {name: numbers_of(tensor) for name, tensor in program.state().items()}


def folded_weights(program: Program) -> Arrays:
    """What weights and biases become where an exporter folds the batch normalisation behind them into them."""
    state = {name: value.astype(np.float64) for name, value in weights_of(program).items()}
    found = {}
    for node in program.module.graph.find_nodes(op="call_function", target=BATCH_NORM):
        layer, *parameters = node.args[:5]
        names = [_name(each) for each in (*(*layer.args[1:3], None, None)[:2], *parameters)]
        weight, bias, gain, shift, mean, variance = map(state.get, names)
        if weight is None or mean is None or variance is None:
            continue
        factor = (1.0 if gain is None else gain) / np.sqrt(variance + node.args[7])
        if len(weight) == len(factor):
            found[names[0]] = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
            offset = (0.0 if bias is None else bias) - mean
            found[names[1]] = offset * factor + (0.0 if shift is None else shift)
    return found


def _name(value: object) -> str:
    return str(value.target) if isinstance(value, Node) and value.op == "get_attr" else ""


def check_weights(actual: Arrays, expected: Arrays, folded: Mapping[str, np.ndarray]) -> str:
    """What is wrong with the parameters that an artifact shows, or an empty string."""
    for name, array in expected.items():
        found = actual.get(name, array)
        if found.shape != array.shape:
            return f"first wrong at weights: {name} has shape {found.shape} instead of {array.shape}"
        product = folded.get(name, array)
        close = name in folded and np.abs(found - product).max() <= FOLDED * np.abs(product).max()
        if not close and not np.array_equal(found, array):
            difference = np.abs(found.astype(np.float64) - array)
            at = tuple(map(int, np.unravel_index(difference.argmax(), array.shape)))
            return f"first wrong at weights: {name} is {difference[at]:.1e} off at {at}; usually other weights"
    return ""
