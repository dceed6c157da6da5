"""What usually makes a point differ, tried out: each row computes the wrong result that a known mistake would give.

A mistake whose result lies within tolerance of what the artifact gave is named; the first point that differs tells
which rows to try. Nothing here decides whether something differs: ``compare`` has done that.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_export.config import OUTPUT_NAME
from stn_export.program.probes import PIXELS_PER_UNIT, eager_points

Points = dict[str, np.ndarray]
CLOSE = {"theta": 1e-3, "grid": 0.01, "warped": 1e-3, OUTPUT_NAME: 1e-3}  # a mistake is named within these
USUAL = {
    "theta": "other weights, another precision, a changed normalisation or channel order",
    "grid": "align_corners, a transposed theta, x and y swapped, a base grid half a pixel off, precision",
    "warped": "the interpolation mode, the padding mode, align_corners",
    OUTPUT_NAME: "the classifier's weights, softmax for log-softmax, the order of classes",
}


@dataclass(frozen=True)
class Mistake:
    """What the point would be, given the true points, the model and its normalised images."""

    point: str
    name: str
    result: Callable[[Points, nn.Module, Tensor], np.ndarray]


def _grid(theta: np.ndarray, images: Tensor, align_corners: bool = False) -> np.ndarray:
    return F.affine_grid(torch.from_numpy(theta), images.shape, align_corners=align_corners).numpy() * PIXELS_PER_UNIT


def _transposed(theta: np.ndarray) -> np.ndarray:
    """The 2×2 part transposed."""
    return np.concatenate([theta[:, :, :2].transpose(0, 2, 1), theta[:, :, 2:]], axis=2)


def _warp(
    points: Points, images: Tensor, mode: str = "bilinear", padding: str = "zeros", align: bool = False
) -> np.ndarray:
    grid = torch.from_numpy(points["grid"] / PIXELS_PER_UNIT).to(images.dtype)
    return F.grid_sample(images, grid, mode=mode, padding_mode=padding, align_corners=align).numpy()


def _theta_of(change: Callable[[Tensor], Tensor]) -> Callable[[Points, nn.Module, Tensor], np.ndarray]:
    return lambda points, model, images: eager_points(model, change(images))["theta"]


def _output_of(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Points, nn.Module, Tensor], np.ndarray]:
    return lambda points, model, images: change(points[OUTPUT_NAME])


MISTAKES = (
    Mistake("theta", "the images were normalised twice", _theta_of(lambda x: (x - 0.5) / 0.5)),
    Mistake("theta", "the images were not normalised, only scaled to [0, 1]", _theta_of(lambda x: x * 0.5 + 0.5)),
    Mistake(
        "theta", "the images were not normalised, but left at 0 to 255", _theta_of(lambda x: (x * 0.5 + 0.5) * 255)
    ),
    Mistake("theta", "red and blue are swapped", _theta_of(lambda x: x.flip(1))),
    Mistake("theta", "height and width are swapped", _theta_of(lambda x: x.transpose(2, 3))),
    Mistake("grid", "align_corners is True", lambda p, m, x: _grid(p["theta"], x, align_corners=True)),
    Mistake("grid", "theta is transposed", lambda p, m, x: _grid(_transposed(p["theta"]), x)),
    Mistake("grid", "x and y are swapped", lambda p, m, x: p["grid"][..., ::-1]),
    Mistake("grid", "the base grid is half a pixel off", lambda p, m, x: _shifted_base(p["theta"], x)),
    Mistake("warped", "the interpolation is nearest", lambda p, m, x: _warp(p, x, mode="nearest")),
    Mistake("warped", "the interpolation is bicubic", lambda p, m, x: _warp(p, x, mode="bicubic")),
    Mistake("warped", "the padding is border", lambda p, m, x: _warp(p, x, padding="border")),
    Mistake("warped", "the padding is reflection", lambda p, m, x: _warp(p, x, padding="reflection")),
    Mistake("warped", "the sampler's align_corners is True", lambda p, m, x: _warp(p, x, align=True)),
    Mistake(OUTPUT_NAME, "softmax was written for log-softmax", _output_of(np.exp)),
    Mistake(OUTPUT_NAME, "the sign is turned", _output_of(np.negative)),
    Mistake(OUTPUT_NAME, "the batch is reversed", _output_of(lambda values: values[::-1])),
    Mistake(OUTPUT_NAME, "the classes are in reverse order", _output_of(lambda values: values[:, ::-1])),
)


def _shifted_base(theta: np.ndarray, images: Tensor) -> np.ndarray:
    """The grid of output pixels taken at their corners instead of their centres."""
    moved = theta.copy()
    moved[:, :, 2] -= theta[:, :, :2].sum(axis=2) / images.shape[-1]
    return _grid(moved, images)


def diagnose(point: str, actual: np.ndarray, true: Points, model: nn.Module, images: Tensor) -> str:
    """Name the mistakes that would give ``actual`` at the first ``point`` that differs, or what usually does.

    Args:
        point: one of ``probes.POINTS``.
        actual: the artifact's value there, the grid in pixels.
        true: all points of the reference.
        model: the reference model, of the images' precision.
        images: normalised, N×3×32×32.
    """
    named = []
    for mistake in MISTAKES:
        if mistake.point == point:
            with torch.inference_mode():
                expected = mistake.result(true, model, images)
            if _explains(expected, actual, true[point], CLOSE[point]):
                named.append(mistake.name)
    if named:
        return ", or ".join(named)
    if point == OUTPUT_NAME and (order := class_order(actual, true[OUTPUT_NAME])):
        return order
    return f"usually {USUAL[point]}"


def _explains(expected: np.ndarray, actual: np.ndarray, true: np.ndarray, close: float) -> bool:
    """Whether a mistake's result is close to what was found, and far closer than the truth is."""
    if not expected.shape == actual.shape == true.shape:
        return False
    return np.abs(actual - expected).max() <= min(close, 0.05 * np.abs(actual - true).max())


def class_order(actual: np.ndarray, expected: np.ndarray) -> str:
    """Says so where the columns are the expected ones in another order."""
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return ""
    nearest = np.abs(actual[:, :, None] - expected[:, None, :]).max(axis=0)
    order = nearest.argmin(axis=1)
    straight = list(range(len(order)))
    if sorted(order) == straight != list(order) and nearest.min(axis=1).max() <= CLOSE[OUTPUT_NAME]:
        return f"the classes are in the order {', '.join(map(str, order))}"
    return ""
