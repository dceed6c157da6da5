"""Which part of the network a node belongs to: localisation, grid, sampler, classifier, or none of them.

In an ONNX graph a part is what lies between two values: theta, the grid, the warped image, the log-probabilities.
ONNX Runtime renames and fuses nodes as it optimises, but the values between the parts keep their names.
"""

from collections.abc import Iterable
from typing import NamedTuple

import onnx
from onnx import NodeProto

from stn_export.config import OUTPUT_NAME
from stn_export.program.probes import FX_NAMES

PARTS = ("localisation", "grid", "sampler", "classifier", "other")
LAST_OF_LOCALISATION = "regressor.2."  # in the names of its weights
FOLDED_INTO_GRID = "affine_grid_generator.weight"


class Timed(NamedTuple):
    """A node (or all calls of one operator in a part) and its seconds in one call of the network."""

    name: str
    op: str
    part: str
    seconds: float


def summed(nodes: Iterable[Timed]) -> dict[str, float]:
    """Seconds of every part, the whole being the sum over all nodes."""
    seconds = dict.fromkeys(PARTS, 0.0)
    for node in nodes:
        seconds[node.part] += node.seconds
    return seconds


class _Graph:
    """Nodes by the values they make and by the values they need."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.maker = {output: index for index, node in enumerate(self.nodes) for output in node.output}

    def behind(self, values: Iterable[str]) -> set[int]:
        """Every node that ``values`` are computed by."""
        found: set[int] = set()
        waiting = [self.maker[value] for value in values if value in self.maker]
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                waiting += [self.maker[value] for value in self.nodes[index].input if value in self.maker]
        return found

    def with_input(self, text: str) -> NodeProto | None:
        """The first node one of whose inputs has ``text`` in its name."""
        return next((node for node in self.nodes if any(text in value for value in node.input)), None)


def parts_of(model: onnx.ModelProto) -> dict[str, str]:
    """Every node's part by its name; names must be given and unique. What several parts need is ``other``.

    Args:
        model: of ours, as exported or as ONNX Runtime optimised it.
    """
    graph = _Graph(model)
    sampler = next((node for node in graph.nodes if node.op_type == "GridSample"), None)
    grid, warped = (sampler.input[1], sampler.output[0]) if sampler else (FX_NAMES["grid"], FX_NAMES["warped"])
    behind_grid = graph.behind([grid])
    localisation = _localisation(graph) if behind_grid else set()
    found = {
        "localisation": localisation,
        "grid": behind_grid - localisation,
        "sampler": graph.behind([warped]) - behind_grid,
        "classifier": graph.behind([OUTPUT_NAME]) - graph.behind([warped]),
    }
    elsewhere = {
        value for part in ("sampler", "classifier") for index in found[part] for value in graph.nodes[index].input
    }
    shared = graph.behind({value for index in localisation for value in graph.nodes[index].output} & elsewhere)
    return {
        node.name: next((part for part in found if index in found[part] - shared), "other")
        for index, node in enumerate(graph.nodes)
    }


def _localisation(graph: _Graph) -> set[int]:
    """All up to the layer that gives theta; where that is folded into the grid, all before the layer that gives it."""
    if last := graph.with_input(LAST_OF_LOCALISATION):
        return graph.behind(last.output)
    return graph.behind(graph.with_input(FOLDED_INTO_GRID).input)
