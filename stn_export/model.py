"""The spatial transformer, the classifier behind it, and nothing about training or files.

Conventions: images are N×3×32×32 float32, normalised; theta is N×2×3 and maps output to input coordinates, both in
[-1, 1] with x before y; ``align_corners`` is False everywhere and always written out.

Source: M. Jaderberg, K. Simonyan, A. Zisserman, K. Kavukcuoglu, "Spatial Transformer Networks", NeurIPS 2015; the
layers follow PyTorch's spatial transformer tutorial with three input channels.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_export.config import ALIGN_CORNERS, IMAGE_SHAPE, MODELS
from stn_export.errors import require_choice

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def check_images(images: Tensor) -> None:
    """Refuse anything but N×3×32×32.

    Raises:
        ValueError: with the shape found. Without it a wrong size would be folded into the batch in silence.
    """
    if torch.jit.is_tracing():  # shapes are tensors there, and a traced branch would be frozen anyway
        return
    if images.ndim != 4 or tuple(images.shape[1:]) != IMAGE_SHAPE:
        raise ValueError(f"expected images of shape N×3×32×32, got {'×'.join(map(str, images.shape))}")


class SpatialTransformer(nn.Module):
    """Warps each image by an affine matrix that a small network reads off it: N×3×32×32 to the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.localisation = nn.Sequential(
            nn.Conv2d(3, 8, kernel_size=7),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(8, 10, kernel_size=5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.regressor = nn.Sequential(nn.Linear(160, 32), nn.ReLU(), nn.Linear(32, 6))
        nn.init.zeros_(self.regressor[-1].weight)
        self.regressor[-1].bias.data.copy_(torch.tensor(IDENTITY))

    def theta(self, images: Tensor) -> Tensor:
        """The affine matrices, N×2×3, that map output coordinates to where each image is sampled."""
        check_images(images)
        return self.regressor(self.localisation(images)).view(-1, 2, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Sample each image bilinearly on its affine grid; zeros outside the image."""
        grid = F.affine_grid(self.theta(images), images.shape, align_corners=ALIGN_CORNERS)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=ALIGN_CORNERS)


class Classifier(nn.Module):
    """The plain CNN: N×3×32×32 to N×10 log-probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 10, kernel_size=5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(10, 20, kernel_size=5),
            nn.Dropout2d(0.5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Linear(500, 50), nn.ReLU(), nn.Dropout(0.5), nn.Linear(50, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Natural-log probabilities of the 10 classes."""
        check_images(images)
        return F.log_softmax(self.head(self.features(images)), dim=1)


def build_model(name: str) -> nn.Module:
    """A freshly initialised ``stn`` (39,884 parameters) or ``cnn`` (31,340), in training mode.

    Raises:
        UserError: for any other name.
    """
    require_choice("model", name, MODELS)
    if name == "cnn":
        return nn.Sequential(OrderedDict(classifier=Classifier()))
    return nn.Sequential(OrderedDict(transformer=SpatialTransformer(), classifier=Classifier()))
