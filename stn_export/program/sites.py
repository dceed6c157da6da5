"""The places where a captured network samples, and what the grids there come from.

A site is a ``grid_sample`` node of the graph with the value it samples (image), where (grid), what comes of it (warped)
and, where the grid is an ``affine_grid``, the matrices that it is made from (theta).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch.fx import Graph, Node

from stn_export.program.capture import AFFINE_GRIDS, GRID_SAMPLES, location, named_shape

MODES = ("bilinear", "nearest", "bicubic")  # by PyTorch's numbers
PADDINGS = ("zeros", "border", "reflection")
TAPS = {"bilinear": 4, "nearest": 0, "bicubic": 16}  # multiply-adds of one sampled value
POINTS = ("theta", "grid", "warped")  # in the network's order
SHAPING = ("view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "transpose", "permute", "clone", "expand")
SHAPING += ("select", "slice", "split", "getitem", "contiguous")


@dataclass(frozen=True)
class Site:
    """One sampler. ``image``, ``grid``, ``warped`` and ``theta`` are the names of graph nodes, ``theta`` may be empty.

    ``source`` says in words what theta, or else the grid, comes from, ``where`` in which module and line it samples;
    ``grid_align_corners`` is the affine grid's own, None without one.
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
        """How the grid is made."""
        return "affine_grid + grid_sample" if self.theta else "grid_sample, own grid"

    def point(self, name: str) -> str:
        """The name of one of its points for everyone outside the graph: ``site0/theta``."""
        return f"{self.name}/{name}"

    @property
    def points(self) -> dict[str, str]:
        """Its points, in the network's order, and the nodes that give them."""
        nodes = {"theta": self.theta, "grid": self.grid, "warped": self.warped}
        return {self.point(name): node for name, node in nodes.items() if node}

    def as_dict(self) -> dict:
        """JSON-ready."""
        return asdict(self) | {"kind": self.kind}


def find_sites(graph: Graph, symbols: Mapping[str, str]) -> tuple[Site, ...]:
    """Every sampler of a captured graph, in the order in which they run; ``symbols`` names open sizes."""
    samplers = [node for node in graph.nodes if node.target in GRID_SAMPLES]
    return tuple(_site(index, node, symbols) for index, node in enumerate(samplers))


def _site(index: int, node: Node, symbols: Mapping[str, str]) -> Site:
    image, grid, mode, padding, align = node.args
    affine = grid if grid.target in AFFINE_GRIDS else None
    return Site(
        name=f"site{index}",
        where=location(node),
        source=_origin(affine.args[0] if affine else grid),
        mode=MODES[mode],
        padding_mode=PADDINGS[padding],
        align_corners=bool(align),
        grid_align_corners=bool(affine.args[2]) if affine else None,
        image_shape=named_shape(image.meta["val"].shape, symbols),
        warped_shape=named_shape(node.meta["val"].shape, symbols),
        image=image.name,
        grid=grid.name,
        warped=node.name,
        theta=affine.args[0].name if affine else "",
    )


def _origin(node: Node) -> str:
    """What gives a value, seen through changes of its shape only."""
    while node.op == "call_function" and _operator(node) in SHAPING:
        node = node.args[0]
    if node.op != "call_function":
        return f"input {node.name}" if node.op == "placeholder" else f"constant {node.target}"
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return f"{_operator(node)} of {stack[-1][0]}" if stack and stack[-1][0] else _operator(node)


def _operator(node: Node) -> str:
    return getattr(node.target, "__name__", str(node.target)).split(".")[0].lstrip("_")
