"""Networks that other people publish, with random weights: their packages need not be installed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Real:
    """One of them: what it needs, what makes it, its inputs by name, and how many samplers it has."""

    package: str
    build: Callable[[], nn.Module]
    inputs: Mapping[str, tuple[int | str, ...]]
    sites: int


def mobilenet() -> nn.Module:
    """torchvision's MobileNet V3 behind a transformer that another one of them steers."""
    from torchvision.models import mobilenet_v3_small

    class Rectified(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.localisation, self.classifier = mobilenet_v3_small(num_classes=6), mobilenet_v3_small(num_classes=7)

        def forward(self, images: Tensor) -> Tensor:
            theta = torch.eye(2, 3) + 0.2 * torch.tanh(self.localisation(images)).view(-1, 2, 3)
            grid = F.affine_grid(theta, images.shape, align_corners=False)
            return self.classifier(F.grid_sample(images, grid, align_corners=False))

    return Rectified()


def homography() -> nn.Module:
    """kornia's ``HomographyWarper`` by matrices that a small network gives."""
    from kornia.geometry.transform import HomographyWarper

    class Upright(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(308, 9))
            self.warper = HomographyWarper(32, 48)

        def forward(self, images: Tensor) -> Tensor:
            return self.warper(images, torch.eye(3) + 0.1 * torch.tanh(self.matrix(images)).view(-1, 3, 3))

    return Upright()


def deformable() -> nn.Module:
    """The deformable attention of transformers' Deformable DETR."""
    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr import modeling_deformable_detr as modeling

    levels = [(8, 12), (4, 6), (2, 3)]
    config = DeformableDetrConfig(d_model=32, num_feature_levels=3, use_timm_backbone=False, backbone=None)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = modeling.DeformableDetrMultiscaleDeformableAttention(config, num_heads=4, n_points=4)

        def forward(self, queries: Tensor, points: Tensor, values: Tensor) -> Tensor:
            return self.attention(
                hidden_states=queries,
                encoder_hidden_states=values,
                reference_points=points,
                spatial_shapes=torch.tensor(levels),
                spatial_shapes_list=levels,
                level_start_index=torch.tensor([0, 96, 120]),
            )[0]

    return Attention()


REAL = {
    "mobilenet": Real("torchvision", mobilenet, {"images": ("N", 3, 64, 64)}, sites=1),
    "homography": Real("kornia", homography, {"images": ("N", 3, 32, 48)}, sites=1),
    "deformable": Real(
        "transformers",
        deformable,
        {"queries": ("N", 9, 32), "points": ("N", 9, 3, 2), "values": ("N", 126, 32)},
        sites=3,
    ),
}
