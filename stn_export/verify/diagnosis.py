"""Diagnose why a point differs: compute the wrong result that each known mistake would produce.

A mistake is named if its result is within tolerance of the artifact's; which mistakes are tried depends on the first
point that differs. Whether something differs is decided by ``compare``, not here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stn_export.program.program import Program
from stn_export.program.sites import MODES, PADDINGS, Site
from stn_export.program.specs import TensorSpec
from stn_export.results.tolerances import COUNT, GRID, OUTPUT, RESAMPLED, THETA, WARPED, distance
from stn_export.verify.oracle import Challenge
from stn_export.verify.points import Point, in_pixels, resizes, sampled_images

CLOSE = {
    THETA: 1e-3,
    GRID: 0.01,
    WARPED: 1e-3,
    OUTPUT: 1e-3,
    RESAMPLED: 1e-3,
    COUNT: 0.0,
}  # share of the magnitude; for a grid in pixels
FROZEN = "a size frozen in the file, as in adaptive pooling or area interpolation"
LARGEST_ORDER = 2**22  # numbers compared to find an order


@dataclass(frozen=True)
class Scene:
    """A test input seen from one point of a program."""

    point: Point
    challenge: Challenge
    program: Program
    actual: np.ndarray

    @property
    def site(self) -> Site:
        """Return the sampling site that the point belongs to.

        Raises:
            TypeError: if the point is an output.
        """
        if self.point.site is None:
            raise TypeError(f"{self.point.name} belongs to no site")
        return self.point.site

    @property
    def resized(self) -> bool:
        """Whether a dynamic size of the inputs, other than the batch, is not the one that was captured."""
        captured, batch = self.program.sizes, self.challenge.batch
        return any(
            isinstance(name, str) and captured.get(name, size) != size
            for spec in self.program.contract.inputs
            for name, size in zip(spec.nchw, batch[spec.name].shape, strict=True)
        )

    def true(self, kind: str) -> np.ndarray:
        """Return the reference's value at a point of the same site, or of the output itself."""
        return self.challenge.true[self.point.site.point(kind) if self.point.site else self.point.name]

    @cached_property
    def values(self) -> tuple[Tensor, ...]:
        """Return the inputs as tensors that the program takes."""
        return self.program.values(self.challenge.batch)

    @cached_property
    def image(self) -> Tensor:
        """Return the image that the site samples, float64."""
        return sampled_images(self.program, self.values, self.challenge.forcing)[self.site.name]

    def fed(self, index: int, change: Callable[[Tensor], Tensor]) -> np.ndarray:
        """Return the point's value if one input is changed."""
        values = [change(value) if position == index else value for position, value in enumerate(self.values)]
        points = {name: value.numpy() for name, value in self.program.exact.points(values).items()}
        return in_pixels(points, self.challenge.units)[self.point.name]

    def grid(self, theta: np.ndarray, align_corners: bool | None = None) -> np.ndarray:
        """Return the affine grid of a theta, in pixels."""
        align = self.site.grid_align_corners if align_corners is None else align_corners
        height, width = self.true(GRID).shape[1:3]
        grid = F.affine_grid(torch.from_numpy(theta), [len(theta), 1, height, width], align_corners=align).numpy()
        return grid * self.challenge.units[self.site.point(GRID)]

    def warp(self, **changes: object) -> np.ndarray:
        """Sample the image on the true grid, with some of the site's options changed."""
        grid = torch.from_numpy(self.true(GRID) / self.challenge.units[self.site.point(GRID)])
        options = {name: getattr(self.site, name) for name in ("mode", "padding_mode", "align_corners")}
        return F.grid_sample(self.image, grid, **(options | changes)).numpy()

    def moved(self) -> np.ndarray:
        """Return the theta that takes output pixels at their corners instead of their centres."""
        theta, (height, width) = self.true(THETA).copy(), self.true(GRID).shape[1:3]
        theta[:, :, 2] -= theta[:, :, 0] / width + theta[:, :, 1] / height
        return theta


Mistake = tuple[str, Callable[[], np.ndarray]]  # its name, and the point's value with it


def _mistakes(scene: Scene) -> Iterator[Mistake]:
    """Yield the mistakes that can be made at the point or before it."""
    yield from BY_KIND[scene.point.name.rpartition("/")[2] if scene.point.site else OUTPUT](scene)
    for index, spec in enumerate(scene.program.contract.inputs):
        if spec.is_picture and spec.is_float:
            for name, change in _of_picture(spec, scene.values[index]):
                yield name, partial(scene.fed, index, change)


def _of_picture(spec: TensorSpec, values: Tensor) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    if spec.pixels:
        mean, std = spec.pixels.tensors()
        yield f"{spec.name} were normalised twice", lambda x: (x - mean) / std
        yield f"{spec.name} were not normalised, only scaled to [0, 1]", lambda x: x * std + mean
        yield f"{spec.name} were not normalised, but left at 0 to 255", lambda x: (x * std + mean) * 255
    if values.shape[1] > 1:
        what = "red and blue are swapped" if values.shape[1] == 3 else "the channels are in reverse order"
        yield f"{what} in {spec.name}", lambda x: x.flip(1)
    if values.shape[2] == values.shape[3]:
        yield f"height and width of {spec.name} are swapped", lambda x: x.transpose(2, 3)


def _of_theta(scene: Scene) -> Iterator[Mistake]:
    yield "theta is transposed", lambda: _transposed(scene.true(THETA))
    yield "the base grid is half a pixel off", scene.moved
    yield "the batch is reversed", lambda: scene.true(THETA)[::-1]


def _of_grid(scene: Scene) -> Iterator[Mistake]:
    if scene.site.theta:
        theta, other = scene.true(THETA), not scene.site.grid_align_corners
        yield f"align_corners is {other}", lambda: scene.grid(theta, other)
        yield "theta is transposed", lambda: scene.grid(_transposed(theta))
        yield "the base grid is half a pixel off", lambda: scene.grid(scene.moved())
    yield "x and y are swapped", lambda: _swapped(scene)
    yield "the batch is reversed", lambda: scene.true(GRID)[::-1]


def _of_warped(scene: Scene) -> Iterator[Mistake]:
    for mode in MODES:
        if mode != scene.site.mode:
            yield f"the interpolation is {mode}", partial(scene.warp, mode=mode)
    for padding in PADDINGS:
        if padding != scene.site.padding_mode:
            yield f"the padding is {padding}", partial(scene.warp, padding_mode=padding)
    other = not scene.site.align_corners
    yield f"the sampler's align_corners is {other}", lambda: scene.warp(align_corners=other)
    yield "the batch is reversed", lambda: scene.true(WARPED)[::-1]


def _of_output(scene: Scene) -> Iterator[Mistake]:
    true = scene.true(OUTPUT)
    axis = scene.point.kind == OUTPUT and _normalised_axis(true)
    if axis:
        yield "softmax was exported instead of log-softmax", lambda: np.exp(true)
        scores = torch.from_numpy(np.ascontiguousarray(scene.actual, np.float64))
        yield "log-softmax was left out", lambda: true + scores.logsumexp(axis, keepdim=True).numpy()
    yield "the sign is inverted", lambda: -true if true.dtype.kind != "b" else ~true
    yield "the batch is reversed", lambda: true[::-1]
    if true.ndim > 1:
        what = "the classes are" if _has_classes(scene.point, true) else "the last dimension is"
        yield f"{what} in reverse order", lambda: np.flip(true, axis or -1)


BY_KIND = {THETA: _of_theta, GRID: _of_grid, WARPED: _of_warped, OUTPUT: _of_output}


def _normalised_axis(values: np.ndarray) -> int:
    """Return the axis along which values are log-probabilities; 0 if there is none."""
    axes = (axis for axis in range(values.ndim - 1, 0, -1) if values.shape[axis] > 1)
    return next((axis for axis in axes if np.abs(np.exp(np.minimum(values, 1)).sum(axis) - 1).max() < 1e-6), 0)


def _transposed(theta: np.ndarray) -> np.ndarray:
    """Transpose the 2×2 part of theta."""
    return np.concatenate([theta[:, :, :2].transpose(0, 2, 1), theta[:, :, 2:]], axis=2)


def _swapped(scene: Scene) -> np.ndarray:
    """Swap x and y, each scaled to pixels of the other side."""
    unit = scene.challenge.units[scene.site.point(GRID)]
    return (scene.true(GRID) / unit)[..., ::-1] * unit


def diagnose(point: Point, actual: np.ndarray, challenge: Challenge, program: Program) -> str:
    """Name the mistakes that would produce ``actual`` at ``point``, the first that differs, or the usual ones.

    Args:
        point: the first point that differs.
        actual: the artifact's value there, a grid in pixels.
        challenge: the test input.
        program: the reference.
    """
    scene, true = Scene(point, challenge, program, actual), challenge.true[point.name]
    close = CLOSE[point.kind] * (1.0 if point.kind == GRID else max(point.magnitude, 1e-30))
    classes = point.site is None and _has_classes(point, true)
    named = []
    for name, result in _mistakes(scene):
        with torch.inference_mode():
            if _explains(result, actual, true, close):
                named.append(name)
    if named:
        return ", or ".join(named)
    if classes and (order := class_order(actual, true, close, _normalised_axis(true) or -1)):
        return order
    return f"usually {', '.join(_usual(scene))}"


def _has_classes(point: Point, true: np.ndarray) -> bool:
    """Return whether an output may be scores by class, one example per row, or log-probabilities of classes."""
    return point.kind in (OUTPUT, COUNT) and true.ndim > 1 and (true.ndim == 2 or bool(_normalised_axis(true)))


def _usual(scene: Scene) -> Iterator[str]:
    """Yield the usual reasons why such a point differs, as far as they apply to the network."""
    kind = scene.point.name.rpartition("/")[2] if scene.point.site else scene.point.kind
    if scene.resized:  # what is wrong at any size shows in the examples, which come first
        yield FROZEN
    else:
        yield from {THETA: _usual_of_theta, GRID: _usual_of_grid}.get(kind, _usual_of_values)(scene)
    yield "precision"


def _usual_of_theta(scene: Scene) -> Iterator[str]:
    if scene.program.parameters:
        yield "other weights"
    pictures = [spec for spec in scene.program.contract.inputs if spec.is_picture and spec.is_float]
    if any(spec.pixels for spec in pictures):
        yield "a changed normalisation"
    if any(spec.nchw[1] != 1 for spec in pictures):
        yield "the order of channels"


def _usual_of_grid(scene: Scene) -> Iterator[str]:
    if scene.point.site is not None and scene.point.site.theta:
        yield from ("align_corners", "a transposed theta", "a base grid half a pixel off")
    yield "x and y swapped"


def _usual_of_values(scene: Scene) -> Iterator[str]:
    """Yield the usual reasons for warped images and outputs."""
    samples, true = scene.point.site is not None or scene.point.kind == WARPED, scene.challenge.true[scene.point.name]
    if samples:
        yield from ("the interpolation mode", "the padding mode", "align_corners")
    if scene.point.site is not None:
        return
    if scene.program.parameters:
        yield "the weights behind the samplers" if scene.program.sites else "the weights"
    if any(resizes(node) for node in scene.program.module.graph.nodes):
        yield "where pixels lie in a resized image (align_corners, half a pixel)"
    if scene.point.kind == COUNT:
        yield "a tie or a threshold decided otherwise"
    if _normalised_axis(true):
        yield "softmax for log-softmax"
    if _has_classes(scene.point, true):
        yield "the order of classes"


def _explains(result: Callable[[], np.ndarray], actual: np.ndarray, true: np.ndarray, close: float) -> bool:
    """Return whether a mistake's result is close to the artifact's, and far closer than the reference is."""
    try:
        expected = result()
    except (RuntimeError, ValueError, KeyError):  # a network may reject unusual inputs
        return False
    if not expected.shape == actual.shape == true.shape:
        return False
    off = distance(actual, true).max()
    return distance(actual, expected).max() <= min(close, 0.05 * off)


def class_order(actual: np.ndarray, expected: np.ndarray, close: float = 1e-3, axis: int = -1) -> str:
    """Describe the order of classes if values along an axis are the expected ones in another order; else empty."""
    if actual.shape != expected.shape or actual.ndim < 2 or not np.isfinite([actual, expected]).all():
        return ""
    rows = [np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]) for values in (actual, expected)]
    a, b = (side[: max(1, LARGEST_ORDER // side.shape[1] ** 2)].astype(np.float64) for side in rows)
    nearest = np.abs(a[:, :, None] - b[:, None, :]).max(axis=0)
    order = nearest.argmin(axis=1)
    straight = list(range(len(order)))
    if sorted(order) == straight != list(order) and nearest.min(axis=1).max() <= close:
        return f"the classes are in the order {', '.join(map(str, order))}"
    return ""
