"""Define the spatial transformer and the classifier behind it; nothing about training or files.

Conventions: images are N×3×S×S float32, normalised. The layers follow from S and from the number of classes; CIFAR-10's
networks are those of 32 pixels and 10 classes. Theta is N×2×3 and maps output to input coordinates, both in [-1, 1]
with x before y; ``align_corners`` is False everywhere and always written out.

Source: M. Jaderberg, K. Simonyan, A. Zisserman, K. Kavukcuoglu, "Spatial Transformer Networks", NeurIPS 2015; the
layers follow PyTorch's spatial transformer tutorial with three input channels.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_export.errors import UserError, require_choice
from stn_export.limits import require
from stn_export.train.recipes import ALIGN_CORNERS, CHANNELS, CIFAR10_SIZES, MODELS, Sizes

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
LOCALISATION_KERNELS, CLASSIFIER_KERNELS = (7, 5), (5, 5)
SMALLEST = 18  # pixels: of a smaller image the localisation network's second pooling leaves nothing
WIDEST = 10  # times the plain classifier, which is more than any size needs


def pooled(size: int, kernels: tuple[int, int]) -> int:
    """Return the side of the feature maps behind two unpadded convolutions, each followed by a pooling by 2."""
    for kernel in kernels:
        size = (size - kernel + 1) // 2
    return size


def check_images(images: Tensor, size: int) -> None:
    """Require images of shape N×3×size×size.

    Raises:
        ValueError: with the actual shape. Otherwise a wrong size would silently be folded into the batch.
    """
    if torch.jit.is_tracing():  # shapes are tensors then, and the branch would be static in the trace
        return
    if images.ndim != 4 or tuple(images.shape[1:]) != (CHANNELS, size, size):
        raise ValueError(f"expected images of shape N×3×{size}×{size}, got {'×'.join(map(str, images.shape))}")


class SpatialTransformer(nn.Module):
    """Warp each image by an affine matrix that a small network predicts from it: N×3×S×S to the same shape."""

    def __init__(self, size: int = CIFAR10_SIZES.size) -> None:
        super().__init__()
        self.size = size
        self.localisation = nn.Sequential(
            nn.Conv2d(3, 8, kernel_size=7),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(8, 10, kernel_size=5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
        )
        features = 10 * pooled(size, LOCALISATION_KERNELS) ** 2
        self.regressor = nn.Sequential(nn.Linear(features, 32), nn.ReLU(), last := nn.Linear(32, 6))
        nn.init.zeros_(last.weight)
        last.bias.data.copy_(torch.tensor(IDENTITY))

    def theta(self, images: Tensor) -> Tensor:
        """Predict the affine matrices, N×2×3, from output coordinates to those where each image is sampled."""
        check_images(images, self.size)
        return self.regressor(self.localisation(images)).view(-1, 2, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Sample each image bilinearly on its affine grid; zeros outside the image."""
        grid = F.affine_grid(self.theta(images), list(images.shape), align_corners=ALIGN_CORNERS)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=ALIGN_CORNERS)


class Classifier(nn.Module):
    """The plain CNN: N×3×S×S to log-probabilities, N×classes; its inner layers are ``width`` × 10, 20 and 50 wide."""

    def __init__(self, width: float = 1.0, dropout: float = 0.5, size: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.size = size
        first, second, hidden = (round(width * channels) for channels in (10, 20, 50))
        self.features = nn.Sequential(
            nn.Conv2d(3, first, kernel_size=5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(first, second, kernel_size=5),
            nn.Dropout2d(dropout),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
        )
        flat = second * pooled(size, CLASSIFIER_KERNELS) ** 2
        self.head = nn.Sequential(nn.Linear(flat, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Return natural-log probabilities of the classes."""
        check_images(images, self.size)
        return F.log_softmax(self.head(self.features(images)), dim=1)


def build_model(name: str, dropout: float = 0.5, size: int = 32, classes: int = 10) -> nn.Module:
    """Build a freshly initialised model in training mode.

    ``cnn`` is the classifier of ``stn`` alone, and ``cnn-matched`` is that classifier widened until an image costs as
    many multiply-adds as in ``stn`` (counted by ``Program.multiply_adds``). For CIFAR-10, ``stn`` has 39,884
    parameters, ``cnn`` 31,340, and ``cnn-matched`` is 1.5 times as wide.

    Args:
        name: a key of ``MODELS``.
        dropout: probability.
        size: of the square images, in pixels, from ``SMALLEST``.
        classes: their number, from 2.

    Raises:
        UserError: for any other name or size.
    """
    require_choice("model", name, list(MODELS))
    sizes = checked_sizes(Sizes(size, classes))
    width = matched_width(sizes) if name == "cnn-matched" else 1.0
    if name != "stn":
        return nn.Sequential(OrderedDict(classifier=Classifier(width, dropout, size, classes)))
    transformer = SpatialTransformer(size)  # first: the order in which weights are drawn
    return nn.Sequential(OrderedDict(transformer=transformer, classifier=Classifier(width, dropout, size, classes)))


def checked_sizes(sizes: Sizes) -> Sizes:
    """Return sizes that a network can be built for.

    Raises:
        UserError: where the images are too small or too large, or the classes too few or too many.
    """
    if sizes.size < SMALLEST:
        raise UserError(f"images of {sizes.size} pixels a side are too small", f"give at least {SMALLEST}")
    require("side", sizes.size, "images")
    if sizes.classes < 2:
        raise UserError("a classifier needs classes to tell apart", "give at least 2")
    require("classes", sizes.classes, "classes")
    return sizes


def matched_width(sizes: Sizes) -> float:
    """Return the width of the classifier whose multiply-adds are nearest to those of the transformer and ``cnn``."""
    cost = _transformer_cost(sizes.size) + _classifier_cost(10, sizes)
    channels = min(range(10, 10 * WIDEST), key=lambda first: abs(_classifier_cost(first, sizes) - cost))
    return channels / 10


def _classifier_cost(first: int, sizes: Sizes) -> int:
    """Return the multiply-adds of an image in a classifier whose first layer has so many channels."""
    second, hidden = 2 * first, 5 * first
    once, twice = sizes.size - 4, (sizes.size - 4) // 2 - 4  # sides of the convolutions' outputs
    flat = second * pooled(sizes.size, CLASSIFIER_KERNELS) ** 2
    return 25 * (CHANNELS * first * once**2 + first * second * twice**2) + hidden * (flat + sizes.classes)


def _transformer_cost(size: int) -> int:
    """Return the multiply-adds of an image in the transformer: 4 for every value sampled."""
    once, twice = size - 6, (size - 6) // 2 - 4
    flat = 10 * pooled(size, LOCALISATION_KERNELS) ** 2
    return 49 * CHANNELS * 8 * once**2 + 25 * 8 * 10 * twice**2 + 32 * (flat + 6) + 4 * CHANNELS * size**2
