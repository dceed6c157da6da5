"""Which part of a network a node belongs to, by reachability: localisation, grid, sampler, or the rest of it.

The same for a captured graph and for an ONNX file: nodes are given by the values that they read and make, and a site by
the values that are its image, grid, warped image and, where there is one, theta.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

PARTS = ("localisation", "grid", "sampler", "rest")


class Step(NamedTuple):
    """A node of any graph."""

    name: str
    reads: Sequence[str]
    makes: Sequence[str]


class Values(NamedTuple):
    """The values of a site; ``theta`` is empty where there is none or a lowering left none."""

    image: str
    grid: str
    warped: str
    theta: str = ""


def parts_of(steps: Iterable[Step], sites: Sequence[Values], outputs: Sequence[str]) -> dict[str, str]:
    """Every node's part by its name.

    ``sampler`` is what lies between image and grid on one side and the warped image on the other, ``grid`` what lies
    before a grid and behind its theta, ``localisation`` what only thetas need. What is needed for anything else, such
    as a backbone that serves both, is ``rest``; that a value on the way to a grid is given out too does not count.
    """
    graph = _Graph(steps)
    samplers = set().union(*(graph.behind([site.warped], {site.image, site.grid}) for site in sites))
    grids, thetas = {site.grid for site in sites}, {site.theta for site in sites if site.theta}
    before = graph.behind(grids)
    ends = [value for value in outputs if value not in graph.maker or graph.maker[value].name not in before]
    rest = graph.behind([*ends, *(site.image for site in sites)], grids) - samplers
    grids = graph.behind(grids, thetas) - samplers - rest
    return {name: _part(name, samplers, grids, rest) for name in graph.steps}


def _part(name: str, samplers: set[str], grids: set[str], rest: set[str]) -> str:
    if name in samplers:
        return "sampler"
    return "grid" if name in grids else "rest" if name in rest else "localisation"


class _Graph:
    def __init__(self, steps: Iterable[Step]) -> None:
        self.steps = {step.name: step for step in steps}
        self.maker = {value: step for step in self.steps.values() for value in step.makes}

    def behind(self, values: Iterable[str], stops: Iterable[str] = ()) -> set[str]:
        """Every node that ``values`` are computed by, not looking behind ``stops``."""
        stops, found = set(stops), set()
        waiting = list(values)
        while waiting:
            value = waiting.pop()
            step = self.maker.get(value)
            if value in stops or step is None or step.name in found:
                continue
            found.add(step.name)
            waiting += step.reads
        return found
