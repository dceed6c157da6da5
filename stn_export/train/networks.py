"""Define the spatial transformer and the classifier behind it; nothing about training or files.

Conventions: images are N×3×32×32 float32, normalised; theta is N×2×3 and maps output to input coordinates, both in
[-1, 1] with x before y; ``align_corners`` is False everywhere and always written out.

Source: M. Jaderberg, K. Simonyan, A. Zisserman, K. Kavukcuoglu, "Spatial Transformer Networks", NeurIPS 2015; the
layers follow PyTorch's spatial transformer tutorial with three input channels.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_export.errors import require_choice
from stn_export.train.recipes import ALIGN_CORNERS, IMAGE_SHAPE, MODELS

CLASSIFIER_WIDTHS = {"cnn": 1.0, "cnn-matched": 1.5}
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def check_images(images: Tensor) -> None:
    """Require images of shape N×3×32×32.

    Raises:
        ValueError: with the actual shape. Otherwise a wrong size would silently be folded into the batch.
    """
    if torch.jit.is_tracing():  # shapes are tensors then, and the branch would be static in the trace
        return
    if images.ndim != 4 or tuple(images.shape[1:]) != IMAGE_SHAPE:
        raise ValueError(f"expected images of shape N×3×32×32, got {'×'.join(map(str, images.shape))}")


class SpatialTransformer(nn.Module):
    """Warp each image by an affine matrix that a small network predicts from it: N×3×32×32 to the same shape."""

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
        self.regressor = nn.Sequential(nn.Linear(160, 32), nn.ReLU(), last := nn.Linear(32, 6))
        nn.init.zeros_(last.weight)
        last.bias.data.copy_(torch.tensor(IDENTITY))

    def theta(self, images: Tensor) -> Tensor:
        """Predict the affine matrices, N×2×3, from output coordinates to those where each image is sampled."""
        check_images(images)
        return self.regressor(self.localisation(images)).view(-1, 2, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Sample each image bilinearly on its affine grid; zeros outside the image."""
        grid = F.affine_grid(self.theta(images), list(images.shape), align_corners=ALIGN_CORNERS)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=ALIGN_CORNERS)


class Classifier(nn.Module):
    """The plain CNN: N×3×32×32 to N×10 log-probabilities; its inner layers are ``width`` times 10, 20 and 50 wide."""

    def __init__(self, width: float = 1.0, dropout: float = 0.5) -> None:
        super().__init__()
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
        self.head = nn.Sequential(nn.Linear(25 * second, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Return natural-log probabilities of the 10 classes."""
        check_images(images)
        return F.log_softmax(self.head(self.features(images)), dim=1)


def build_model(name: str, dropout: float = 0.5) -> nn.Module:
    """Build a freshly initialised model in training mode.

    ``stn`` has 39,884 parameters, ``cnn`` is its classifier alone (31,340), and ``cnn-matched`` is that classifier
    widened until an image costs as many multiply-adds as in ``stn`` (counted by ``Program.multiply_adds``).

    Raises:
        UserError: for any other name.
    """
    require_choice("model", name, list(MODELS))
    if name != "stn":
        return nn.Sequential(OrderedDict(classifier=Classifier(CLASSIFIER_WIDTHS[name], dropout)))
    return nn.Sequential(OrderedDict(transformer=SpatialTransformer(), classifier=Classifier(dropout=dropout)))
