"""What artifacts are verified on: images of every kind, and thetas that a trained network would rarely give."""

import copy
import math
from collections.abc import Callable

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from stn_export.config import IMAGE_SHAPE, VERIFY_BATCHES
from stn_export.train.data import Dataset, example_images

CHANNELS, HEIGHT, WIDTH = IMAGE_SHAPE
NOISE_BATCHES = (1, 64)
GREYS = (0, 1, 127, 128, 254, 255)
ONE_HOT = tuple((y, x) for y in (0, 1, 15, 16, 31) for x in (0, 16, 31))


def _rotation(degrees: float) -> list[list[float]]:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [[cos, sin, 0.0], [-sin, cos, 0.0]]


THETAS = {
    "identity": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
    "turned by 30°": _rotation(30),
    "turned by 90°": _rotation(90),
    "mirrored left to right": [[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
    "upside down": [[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]],
    "scale 0.1": [[0.1, 0.0, 0.0], [0.0, 0.1, 0.0]],
    "scale 10": [[10.0, 0.0, 0.0], [0.0, 10.0, 0.0]],
    "off the image": [[1.0, 0.0, 3.0], [0.0, 1.0, -3.0]],
    "a third of a pixel right": [[1.0, 0.0, 2 / 3 / WIDTH], [0.0, 1.0, 0.0]],
    "halfway over the border": [[1.0, 0.0, 1.0], [0.0, 1.0, 0.7]],
    "sheared, not square": [[1.3, 0.4, 0.1], [-0.2, 0.6, -0.3]],
}


def image_challenges(dataset: Dataset) -> dict[str, Tensor]:
    """uint8 batches N×3×32×32 by name: test images, noise, constants, single bright pixels."""
    random = torch.Generator().manual_seed(0)
    batches = {f"test images ×{batch}": example_images(dataset, batch) for batch in VERIFY_BATCHES}
    for batch in NOISE_BATCHES:
        batches[f"noise ×{batch}"] = torch.randint(256, (batch, *IMAGE_SHAPE), generator=random, dtype=torch.uint8)
    batches["constants"] = torch.tensor(GREYS, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, *IMAGE_SHAPE)
    single = torch.zeros(len(ONE_HOT), *IMAGE_SHAPE, dtype=torch.uint8)
    for image, (y, x) in zip(single, ONE_HOT, strict=True):
        image[:, y, x] = 255
    return batches | {"single pixels": single}


def force_theta(model: nn.Module, theta: list[list[float]]) -> nn.Module:
    """A copy of a model of ours whose transformer gives ``theta`` for every image."""
    forced = copy.deepcopy(model)
    last = forced.transformer.regressor[-1]
    last.weight.data.zero_()
    last.bias.data.copy_(torch.tensor(theta).flatten())
    return forced


def force_onnx_theta(model: onnx.ModelProto, theta: list[list[float]], grid: np.ndarray) -> onnx.ModelProto | None:
    """The same in an exported graph, where it has the regressor's last layer or, folded, the layer that gives the grid.

    Args:
        theta: 2×3.
        grid: H×W×2, what ``theta`` gives, for a folded graph.
    """
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "regressor.2.weight": np.zeros_like,
        "regressor.2.bias": lambda old: np.array(theta, old.dtype).ravel(),
        "affine_grid_generator.weight": np.zeros_like,
        "affine_grid_generator.bias": lambda old: grid.astype(old.dtype).ravel(),
    }
    forced, changed = onnx.ModelProto(), 0
    forced.CopyFrom(model)
    for tensor in forced.graph.initializer:
        for ending, change in changes.items():
            if tensor.name.endswith(ending):
                tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
                changed += 1
    return forced if changed == 2 else None
