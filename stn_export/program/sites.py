"""Find a captured network's sampling sites, and the part of the network that each node belongs to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch.fx import Graph, Node

from stn_export.program.capture import (
    AFFINE_GRIDS,
    GRID_SAMPLES,
    location,
    named_shape,
    number,
    operand,
    samples_pictures,
)

MODES = ("bilinear", "nearest", "bicubic")  # in the order of PyTorch's enumeration
PADDINGS = ("zeros", "border", "reflection")
TAPS = {"bilinear": 4, "nearest": 0, "bicubic": 16}  # multiply-adds of one sampled value
UNSEEN = ("deform_conv2d", "roi_align", "ps_roi_align", "grid_sample of volumes")  # sample, but are no sites
POINTS = ("theta", "grid", "warped")  # in the network's order
SHAPING = (
    "view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "transpose", "permute", "clone", "expand",
    "select", "slice", "split", "split_with_sizes", "getitem", "contiguous", "detach",
    "stack", "cat",
)  # fmt: skip
WEIGHTED = ("linear", "addmm", "conv2d", "conv1d", "gru_cell", "grid_sampler", "grid_sampler_2d")  # ends of the search


@dataclass(frozen=True)
class Site:
    """One sampler. ``image``, ``grid``, ``warped`` and ``theta`` are names of graph nodes; ``theta`` may be empty.

    ``source`` describes what theta, or else the grid, is computed from; ``where`` names the module and line that
    sample; ``grid_align_corners`` belongs to the affine grid and is None without one.
    """

    name: str
    where: str
    source: str
    mode: str
    padding_mode: str
    align_corners: bool
    grid_align_corners: bool | None
    image_shape: tuple[int | str, ...]
    warped_shape: tuple[int | str, ...]
    image: str
    grid: str
    warped: str
    theta: str = ""

    @property
    def kind(self) -> str:
        """The operators of the site: an affine grid and its sampler, or a sampler with another grid."""
        return "affine_grid + grid_sample" if self.theta else "grid_sample, own grid"

    def point(self, name: str) -> str:
        """Return the public name of one of its points: ``site0/theta``."""
        return f"{self.name}/{name}"

    def nodes(self, kinds: Sequence[str] = POINTS) -> dict[str, str]:
        """Return the graph's nodes by point; theta only where there is one."""
        return {self.point(kind): node for kind in kinds if (node := getattr(self, kind))}

    def as_dict(self) -> dict:
        """Return the site JSON-ready, with its kind."""
        return asdict(self) | {"kind": self.kind}


def find_sites(graph: Graph, symbols: Mapping[str, str]) -> tuple[Site, ...]:
    """Find every sampler of a captured graph, in the order in which they run; ``symbols`` names dynamic sizes."""
    samplers = [node for node in graph.nodes if samples_pictures(node)]
    varying = _varying(graph)
    return tuple(_site(index, node, symbols, varying) for index, node in enumerate(samplers))


def not_looked_into(graph: Graph) -> tuple[str, ...]:
    """Describe each other operator that samples, one sentence each: only the network's outputs are compared for it."""
    sites = []
    for node in graph.nodes:
        operator = str(node.target).split(".")[1] if str(node.target).startswith("torchvision.") else ""
        if node.target in GRID_SAMPLES and not samples_pictures(node):
            operator = "grid_sample of volumes"
        if node.op == "call_function" and operator in UNSEEN:
            sites.append(f"{operator} in {location(node)}: not looked into, outputs compared")
    return tuple(sites)


def _site(index: int, node: Node, symbols: Mapping[str, str], varying: set[Node]) -> Site:
    image, grid = operand(node, 0), operand(node, 1)
    affine = grid if grid.target in AFFINE_GRIDS else None
    theta = operand(affine) if affine else None
    return Site(
        name=f"site{index}",
        where=location(node),
        source=_origin(theta or grid, varying),
        mode=MODES[number(node, 2)],
        padding_mode=PADDINGS[number(node, 3)],
        align_corners=bool(node.args[4]),
        grid_align_corners=bool(affine.args[2]) if affine else None,
        image_shape=named_shape(image.meta["val"].shape, symbols),
        warped_shape=named_shape(node.meta["val"].shape, symbols),
        image=image.name,
        grid=grid.name,
        warped=node.name,
        theta=theta.name if theta else "",
    )


def _origin(node: Node, varying: set[Node]) -> str:
    """Describe what a value is computed from, and later arithmetic: ``linear of localisation.4, then tanh``."""
    behind: list[str] = []
    while node.op == "call_function" and _operator(node) not in WEIGHTED:
        if _operator(node) not in SHAPING:
            behind.insert(0, _operator(node))
        before = [source for source in node.all_input_nodes if source in varying]
        if not before:
            break
        node = before[0]
    return _source(node) + (f", then {', '.join(dict.fromkeys(behind))}" if behind else "")


def _source(node: Node) -> str:
    if node.op != "call_function":
        return f"input {node.name}" if node.op == "placeholder" else f"constant {node.target}"
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return f"{_operator(node)} of {stack[-1][0]}" if stack and stack[-1][0] else _operator(node)


def _operator(node: Node) -> str:
    return getattr(node.target, "__name__", str(node.target)).split(".")[0].strip("_")


def _varying(graph: Graph) -> set[Node]:
    """Return the nodes that depend on an input's values, not just on its size."""
    nodes: set[Node] = set()
    for node in graph.nodes:
        size = isinstance(node.meta.get("val"), torch.SymInt)
        if node.op == "placeholder" or not (size or nodes.isdisjoint(node.all_input_nodes)):
            nodes.add(node)
    return nodes


# Which part of a network a node belongs to, by reachability: localisation, grid, sampler, or the rest of it.


PARTS = ("localisation", "grid", "sampler", "rest")


class Step(NamedTuple):
    """A node of any graph: its name, the values it reads and those it makes."""

    name: str
    reads: Sequence[str]
    makes: Sequence[str]


class Values(NamedTuple):
    """The values of a site; ``theta`` is empty where there is none, or a lowering removed it."""

    image: str
    grid: str
    warped: str
    theta: str = ""


def parts_of(steps: Iterable[Step], sites: Sequence[Values], outputs: Sequence[str]) -> dict[str, str]:
    """Return the part of the network that each node belongs to, by its name.

    ``sampler`` lies between image and grid and the warped image, ``grid`` between theta and the grid; ``localisation``
    is needed for theta only. What anything else needs, such as a shared backbone, is ``rest``; that a value on the way
    to a grid is also an output of the network does not count as such a need.
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
        """Return every node that ``values`` depend on, not looking past ``stops``."""
        stops, nodes = set(stops), set()
        waiting = list(values)
        while waiting:
            value = waiting.pop()
            step = self.maker.get(value)
            if value in stops or step is None or step.name in nodes:
                continue
            nodes.add(step.name)
            waiting += step.reads
        return nodes
