"""Modules with spatial transformers that are not ours, as people bring them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GreyDigits(nn.Module):
    """The MNIST tutorial's: 28×28 grey images, the regressor's last layer straight into the grid."""

    inputs = (torch.rand(2, 1, 28, 28),)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 7), nn.MaxPool2d(4), nn.ReLU(), nn.Flatten())
        self.theta = nn.Linear(100, 6)
        self.head = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        theta = self.theta(self.features(images)).view(-1, 2, 3)
        grid = F.affine_grid(theta, images.size(), align_corners=False)
        warped = F.grid_sample(images, grid, align_corners=False)
        return self.head(warped.flatten(1)).log_softmax(1)


class PlateRectifier(nn.Module):
    """Licence plates: 24×94 RGB, corners aligned, edges repeated; gives the rectified picture."""

    inputs = (torch.rand(3, 3, 24, 94),)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.AdaptiveAvgPool2d((4, 12)), nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Flatten())
        self.theta = nn.Linear(40, 6)

    def forward(self, plates: Tensor) -> Tensor:
        theta = self.theta(self.features(plates)).reshape(-1, 2, 3)
        grid = F.affine_grid(theta, [plates.shape[0], 3, 16, 64], align_corners=True)
        return F.grid_sample(plates, grid, mode="bilinear", padding_mode="border", align_corners=True)


class TwoSteps(nn.Module):
    """Two transformers in one net; the second theta is composed with the first."""

    inputs = (torch.rand(2, 2, 20, 20),)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(800, 6), nn.Linear(800, 6)

    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images.flatten(1)).view(-1, 2, 3)
        warped = F.grid_sample(images, F.affine_grid(first, images.shape, align_corners=False), align_corners=False)
        second = self.second(warped.flatten(1)).view(-1, 2, 3)
        bottom = torch.tensor([[[0.0, 0.0, 1.0]]]).expand(images.shape[0], -1, -1)
        composed = first @ torch.cat([second, bottom], 1)
        grid = F.affine_grid(composed, images.shape, align_corners=False)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


class ThinPlate(nn.Module):
    """A rectifier whose grid is a spline through control points: no affine_grid at all."""

    inputs = (torch.rand(2, 1, 16, 48),)

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Linear(768, 16)
        self.register_buffer("spline", torch.randn(16 * 48, 8) * 0.3)

    def forward(self, images: Tensor) -> Tensor:
        points = self.points(images.flatten(1)).view(-1, 8, 2)
        grid = (self.spline @ points).view(-1, 16, 48, 2)
        return F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=True)


class TwoInputs(nn.Module):
    """Warps a picture as a second input says; also gives theta."""

    inputs = (torch.rand(2, 3, 12, 10), torch.rand(2, 5))

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Linear(5, 6)

    def forward(self, images: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        theta = self.theta(pose).view(-1, 2, 3)
        grid = F.affine_grid(theta, images.shape, align_corners=False)
        return F.grid_sample(images, grid, mode="nearest", align_corners=False), theta


class SharedGrid(nn.Module):
    """Samples twice through one grid, the second time what the first one gave; gives that and the grid."""

    inputs = (torch.rand(2, 1, 8, 8),)

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Linear(64, 6)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        grid = F.affine_grid(self.theta(images.flatten(1)).view(-1, 2, 3), images.shape, align_corners=False)
        warped = F.grid_sample(images, grid, align_corners=False)
        return F.grid_sample(warped, grid, align_corners=False), grid


FOREIGN = (GreyDigits, PlateRectifier, TwoSteps, ThinPlate, TwoInputs)


class Sampler(nn.Module):
    """affine_grid and grid_sample with any options, at the size of the image; theta is an input."""

    inputs = (torch.rand(2, 3, 9, 11), torch.rand(2, 2, 3))

    def __init__(self, mode: str, padding_mode: str, align_corners: bool) -> None:
        super().__init__()
        self.options = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}

    def forward(self, images: Tensor, theta: Tensor) -> Tensor:
        grid = F.affine_grid(theta, images.shape, self.options["align_corners"])
        return F.grid_sample(images, grid, **self.options)


class Undecided(nn.Module):
    """Does what depends on its values, which no graph can."""

    def forward(self, values: Tensor) -> Tensor:
        return values if values.sum() > 0 else -values


class Volume(nn.Module):
    """Samples 5-D volumes, which few runtimes can."""

    inputs = (torch.rand(2, 1, 4, 4, 4), torch.rand(2, 3, 4))

    def forward(self, volumes: Tensor, theta: Tensor) -> Tensor:
        grid = F.affine_grid(theta, volumes.shape, align_corners=False)
        return F.grid_sample(volumes, grid, align_corners=False)
