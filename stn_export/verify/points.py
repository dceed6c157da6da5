"""Define the points where artifacts are compared: theta, grid and warped image of every site, then the outputs."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from stn_export.program.program import Program
from stn_export.program.sites import Site
from stn_export.program.specs import Arrays, TensorSpec, whole
from stn_export.results.tolerances import COUNT, GRID, OUTPUT, RESAMPLED, THETA, WARPED, Bound, Tolerance, distance
from stn_export.run.examples import Examples
from stn_export.run.records import PointEntry
from stn_export.verify.challenges import rows_of, size_of

# Kinds of outputs: the tolerance follows from the operators that compute an output.


@dataclass(frozen=True)
class OutputKind:
    """The column of ``TOLERANCES`` that bounds an output; ``side`` is the longest side of the images resized for it."""

    kind: str
    side: int = 0


def output_kinds(program: Program) -> dict[str, OutputKind]:
    """Return the kind of every output by name: warped image, resized image, integer or other."""
    results = next(iter(reversed(program.module.graph.nodes))).args[0]
    specs = program.contract.outputs
    return {spec.name: _kind(spec, node, program) for spec, node in zip(specs, results, strict=True)}


def _kind(spec: TensorSpec, node: Node, program: Program) -> OutputKind:
    if not spec.is_float:
        return OutputKind(COUNT)
    behind = list(_behind(node))
    samplers = {site.warped for site in program.sites}
    if _is_image(spec) and any(node.name in samplers for node in behind):
        return OutputKind(WARPED)
    resized = [node for node in behind if resizes(node)]
    if resized and any(size != 1 for size in spec.shape[2:]):
        return OutputKind(RESAMPLED, max(size for node in resized for size in (*_sizes(node), 1)))
    return OutputKind(OUTPUT)


def _is_image(spec: TensorSpec) -> bool:
    """Return whether both height and width are more than 1: a vector with four dimensions is no image."""
    return spec.is_picture and 1 not in spec.shape[2:]


def resizes(node: Node) -> bool:
    """Return whether a node resizes by blending neighbouring pixels; resizing to the nearest pixel does not count."""
    name = node.target._schema.name.partition("::")[2] if isinstance(node.target, OpOverload) else ""
    return name.lstrip("_").startswith("upsample_") and "nearest" not in name


def _behind(node: object) -> Iterator[Node]:
    """Yield the nodes that a value is computed from, starting with its own."""
    seen: set[Node] = set()
    waiting = [node] if isinstance(node, Node) else []
    while waiting:
        if (current := waiting.pop()) not in seen:
            seen.add(current)
            waiting += current.all_input_nodes
            yield current


def _sizes(node: Node) -> Iterator[int]:
    """Yield the static sizes of a resized image before and after."""
    for neighbour in (node, *node.all_input_nodes):
        value = neighbour.meta.get("val")
        if isinstance(value, Tensor):
            yield from (size for size in value.shape[2:] if isinstance(size, int))


TRIED = 3  # examples used to find the rows of a point per example
SAME = 1e-9  # in float64, of the largest magnitude
STEADY = 0.999  # the quantile of float32 eager's errors that counts behind a nearest-mode sampler
ULP = 2.0**-24  # half a unit in float32's last place
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Point:
    """A value at which artifacts are compared.

    Attributes:
        name: ``site0/theta`` and so on, or an output's name.
        kind: the column of ``TOLERANCES`` that bounds it.
        site: its sampling site; None for an output.
        rows: how many rows of its first dimension belong to one example; 0 if it is not per example.
        scale: the unit of its bound, see ``Tolerance``.
        magnitude: its largest magnitude over the examples.
        steady: whether no nearest-mode sampler comes before it.
        eager_error: float32 eager's largest error over all test inputs.
        side: the longest side of the images that were resized for it, as far as it is static.
    """

    name: str
    kind: str
    site: Site | None = None
    rows: int = 0
    scale: float = 1.0
    magnitude: float = 0.0
    steady: bool = True
    eager_error: float = 0.0
    side: int = 0

    def bound(self, tolerance: Tolerance) -> Bound:
        """Return how far an artifact may differ from the reference here."""
        return tolerance.at(self.kind, self.scale, self.eager_error)

    def error(self, actual: np.ndarray, true: np.ndarray) -> float:
        """Return float32 eager's largest error; behind a nearest-mode sampler a high quantile of it."""
        error = distance(actual, true)
        return float(error.max() if self.steady else np.quantile(error, STEADY, method="lower"))

    @property
    def rounding(self) -> float:
        """Return the smallest error to be expected of float32."""
        return ULP * self.magnitude or TINY

    def entry(self) -> PointEntry:
        """Return the point's entry in ``verify.json``."""
        kind = self.name.rpartition("/")[2] if self.site else COUNT if self.kind == COUNT else OUTPUT
        site = self.site.name if self.site else None
        return PointEntry(kind=kind, site=site, eager_error=self.eager_error, scale=self.magnitude)


def points_of(program: Program, examples: Examples) -> tuple[dict[str, Point], list[str]]:
    """Return every point of a program with its rows, and notes on outputs that mix the examples of a batch."""
    specs, outputs = {spec.name: spec for spec in program.contract.outputs}, output_kinds(program)
    kinds = {site.point(kind): (kind, site) for site in program.sites for kind in (THETA, GRID, WARPED)}
    rows, points, steady, notes = _rows(program, examples), {}, True, []
    for name, count in rows.items():
        kind, site = kinds.get(name, ("", None))
        declared = OutputKind(kind) if site else outputs[name]
        if site is None:
            kind = declared.kind
            if specs[name].batched and not count:
                notes.append(f"{name} mixes the examples of a batch in float64 too: not tried among other neighbours")
        steady = steady and not (kind == WARPED and site and site.mode == "nearest")
        points[name] = Point(name, kind, site, count, steady=steady, side=declared.side)
    return points, notes


def _rows(program: Program, examples: Examples) -> dict[str, int]:
    """Return, by point, how many rows belong to one example and depend on no other; 0 if they do."""
    contract = program.contract
    batch = examples.take(contract.batch or TRIED)
    size = size_of(batch, contract)
    orders = torch.arange(size), torch.arange(size).flip(0), torch.zeros(size, dtype=torch.long)
    straight, backwards, first = (
        program.exact.points(program.values(rows_of(batch, contract, order))) for order in orders
    )
    batched = {spec.name: spec.batched for spec in contract.outputs}
    points = {}
    for name, value in straight.items():
        count = len(value) // size if value.ndim and len(value) % size == 0 and batched.get(name, True) else 0
        alike = count and all(
            _same(value.view(size, count, *value.shape[1:])[order].flatten(0, 1), other)
            for order, other in zip(orders[1:], (backwards[name], first[name]), strict=True)
        )
        points[name] = count if alike else 0
    return points


def _same(value: Tensor, other: Tensor) -> bool:
    value, other = value.double(), other.double()
    scale = float(value.abs().nan_to_num(0.0, 0.0).max()) if value.numel() else 0.0
    return torch.allclose(value, other, rtol=0, atol=SAME * scale, equal_nan=True)


def in_pixels(points: Arrays, units: Mapping[str, np.ndarray]) -> Arrays:
    """Return the points with grids in pixels."""
    return {name: value * units[name] if name in units else value for name, value in points.items()}


def units_of(program: Program, values: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    """Return the pixels per unit of x and of y, by grid: half the image's size, or of size - 1 with align_corners."""
    if all(isinstance(size, int) for site in program.sites for size in site.image_shape[-2:]):
        sizes = {site.name: whole(site.image_shape[-2:]) for site in program.sites}
    else:
        sizes = {name: whole(image.shape[-2:]) for name, image in sampled_images(program, values, {}).items()}
    return {
        site.point(GRID): np.array([max(1, size - site.align_corners) for size in reversed(sizes[site.name])]) / 2
        for site in program.sites
    }


def sampled_images(program: Program, values: tuple[Tensor, ...], forced: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the image that every site samples, N×C×H×W float64, by the site's name."""
    points = program.exact.points(values, forced, ("image",))
    return {site.name: points[site.point("image")] for site in program.sites}


def measured(point: Point, true: Iterable[Arrays], units: Mapping[str, np.ndarray], errors: Iterable[float]) -> Point:
    """Return a point with its scale, its magnitude and float32 eager's error.

    Args:
        point: without them.
        true: float64 values for the examples.
        units: of their grids.
        errors: float32 eager's, over the test inputs.
    """
    values = [values[point.name] for values in true if point.name in values]
    magnitude = max(map(largest, values), default=0.0)
    located = replace(point, magnitude=magnitude, eager_error=max(errors, default=0.0))
    halves = {name: float(unit.max()) / 16 for name, unit in units.items()}
    side = halves.get(point.site.point(GRID) if point.site else "", max(halves.values(), default=1.0))
    moved = magnitude * max(1.0, side)  # in larger images the grid, and so what is sampled, moves by more pixels
    longest = max((point.side, *(size for value in values[:1] for size in value.shape[2:])), default=0)
    resized = magnitude * max(1.0, longest / 32)
    scales = {GRID: side, WARPED: moved, RESAMPLED: resized, OUTPUT: magnitude}
    return replace(located, scale=max(scales[point.kind], TINY) if point.kind in scales else 1.0)


def largest(values: np.ndarray) -> float:
    """Return the largest magnitude of the finite elements; 0 if there is none."""
    return float(np.abs(values, where=np.isfinite(values), out=np.zeros(values.shape)).max(initial=0.0))
