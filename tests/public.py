"""Twenty-two more networks as public repositories hold them, written anew from their papers, a few lines each.

What they take differs: no batch beside a batch, dictionaries, keywords, None, flags, float64, volumes, batches that
are limited inside. ``example(n)`` of each gives the arguments and keywords of a call with a batch of ``n``.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import around_identity, localisation

Example = tuple[tuple[Any, ...], dict[str, Any]]


def smooth(*shape: int) -> Tensor:
    """Pictures without noise, on which roundings of coordinates cost nothing."""
    coarse = torch.rand(*shape[:2], *(3 for _ in shape[2:]), generator=torch.Generator().manual_seed(sum(shape)))
    return F.interpolate(coarse, shape[2:], mode="trilinear" if len(shape) == 5 else "bilinear", align_corners=True)


def values(*shape: int, scale: float = 1.0) -> Tensor:
    """Numbers around zero."""
    return scale * (torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) - 0.5)


def pixel_grid(height: int, width: int) -> Tensor:
    """H×W×2, x before y, corners at ±1."""
    ys, xs = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack([xs, ys], -1)


class OffsetRectifier(nn.Module):
    """Text straightened by a map of offsets that is itself sampled. C. Luo et al., "MORAN", 2019, section 3.1."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets = nn.Sequential(
            nn.MaxPool2d(2), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
        )
        self.grid = pixel_grid(16, 48)[None]

    def forward(self, lines: Tensor) -> Tensor:
        assert lines.shape[0] <= 64  # as the original's buffers
        grid = self.grid.expand(lines.shape[0], -1, -1, -1)
        moved = F.grid_sample(torch.tanh(self.offsets(lines)), grid, align_corners=True)
        xs, ys = grid[..., :1], grid[..., 1:] + 0.2 * moved.permute(0, 2, 3, 1)
        return F.grid_sample(lines, torch.cat([xs, ys], -1), align_corners=True)

    @staticmethod
    def example(n: int) -> Example:
        return (smooth(n, 1, 16, 48),), {}


class CorrelationLookup(nn.Module):
    """Looks up windows of a volume of correlations at moving points. Z. Teed, J. Deng, "RAFT", 2020, section 3.2."""

    def forward(self, first: Tensor, second: Tensor, points: Tensor) -> Tensor:
        n, c, h, w = first.shape
        volume = torch.einsum("nchw,nckl->nhwkl", first, second).reshape(n * h * w, 1, h, w) / c**0.5
        window = 3 * pixel_grid(3, 3)
        found = []
        for level in range(2):
            places = points.permute(0, 2, 3, 1).reshape(n * h * w, 1, 1, 2) / 2**level + window
            size = torch.tensor([volume.shape[-1] - 1.0, volume.shape[-2] - 1.0])
            found.append(F.grid_sample(volume, 2 * places / size - 1, align_corners=True).view(n, h, w, -1))
            volume = F.avg_pool2d(volume, 2)
        return torch.cat(found, -1).permute(0, 3, 1, 2)

    @staticmethod
    def example(n: int) -> Example:
        return (smooth(n, 4, 8, 12), smooth(n, 4, 8, 12).flip(-1), 8 * smooth(n, 2, 8, 12)), {}


class FlowPyramid(nn.Module):
    """Flow from coarse to fine, the second picture warped before each step. A. Ranjan, M. Black, "SPyNet", 2017."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Conv2d(4, 2, 3, padding=1) for _ in range(3))

    def forward(self, pair: tuple[Tensor, Tensor]) -> list[Tensor]:
        flows: list[Tensor] = []
        for scale, step in zip((4, 2, 1), self.steps, strict=True):
            first, second = (F.avg_pool2d(each, scale) if scale > 1 else each for each in pair)
            flow = (
                F.interpolate(flows[-1], scale_factor=2.0, mode="bilinear") * 2
                if flows
                else torch.zeros_like(first[:, :1]).repeat(1, 2, 1, 1)
            )
            h, w = first.shape[-2:]
            grid = pixel_grid(h, w) + flow.permute(0, 2, 3, 1) * torch.tensor([2 / (w - 1), 2 / (h - 1)])
            warped = F.grid_sample(second, grid, padding_mode="border", align_corners=True)
            flows.append(flow + step(torch.cat([first, warped, flow], 1)))
        return flows

    @staticmethod
    def example(n: int) -> Example:
        return ((smooth(n, 1, 16, 24), smooth(n, 1, 16, 24).flip(-1)),), {}


class Integrated(nn.Module):
    """A velocity field integrated by scaling and squaring, then applied. G. Balakrishnan et al., "VoxelMorph", 2019."""

    def __init__(self) -> None:
        super().__init__()
        self.velocity = nn.Conv2d(2, 2, 5, padding=2)

    def forward(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        grid = pixel_grid(*moving.shape[-2:])
        field = torch.tanh(self.velocity(torch.cat([moving, fixed], 1))) / 2**4
        for _ in range(3):
            field = field + F.grid_sample(field, grid + field.permute(0, 2, 3, 1), align_corners=True)
        return F.grid_sample(moving, grid + field.permute(0, 2, 3, 1), align_corners=True), field

    @staticmethod
    def example(n: int) -> Example:
        return (smooth(n, 1, 16, 16), smooth(n, 1, 16, 16).flip(-1)), {}


class VolumeRegistration(nn.Module):
    """A volume aligned by a 3×4 matrix that a network finds. B. de Vos et al., "DLIR", 2019 (affine stage)."""

    def __init__(self) -> None:
        super().__init__()
        self.find = nn.Sequential(
            nn.Conv3d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 12)
        )

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        theta = torch.eye(3, 4) + 0.2 * torch.tanh(self.find(torch.cat([moving, fixed], 1))).view(-1, 3, 4)
        return F.grid_sample(moving, F.affine_grid(theta, list(moving.shape), align_corners=False), align_corners=False)

    @staticmethod
    def example(n: int) -> Example:
        return (smooth(n, 1, 6, 7, 8), smooth(n, 1, 6, 7, 8).flip(-1)), {}


class BilateralSlice(nn.Module):
    """Coefficients of colour read out of a grid of space and brightness. M. Gharbi et al., "HDRNet", 2017."""

    def __init__(self) -> None:
        super().__init__()
        self.grid, self.guide = nn.Conv2d(3, 12 * 4, 8, stride=8), nn.Conv2d(3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        n, _, h, w = images.shape
        cells = self.grid(images).view(n, 12, 4, h // 8, w // 8)
        places = torch.cat(
            [pixel_grid(h, w).expand(n, -1, -1, -1), torch.tanh(self.guide(images)).permute(0, 2, 3, 1)], -1
        )
        found = F.grid_sample(cells, places[:, None], padding_mode="border", align_corners=False).squeeze(2)
        return (found[:, :9].view(n, 3, 3, h, w) * images[:, None]).sum(2) + found[:, 9:]

    @staticmethod
    def example(n: int) -> Example:
        return (smooth(n, 3, 16, 24),), {}


class Rotated(nn.Module):
    """Pictures turned by angles in degrees about their centre. E. Riba et al., "Kornia", 2020 (geometry.transform)."""

    def forward(self, images: Tensor, angles: Tensor, *, mode: str = "bilinear", mask: Tensor | None = None) -> Tensor:
        turn, (h, w) = torch.deg2rad(angles), images.shape[-2:]
        cos, sin, zero = turn.cos(), turn.sin(), torch.zeros_like(turn)
        theta = torch.stack([cos, sin * h / w, zero, -sin * w / h, cos, zero], -1).view(-1, 2, 3)
        warped = F.grid_sample(
            images, F.affine_grid(theta, images.shape, align_corners=True), mode=mode, align_corners=True
        )
        return warped if mask is None else warped * mask

    @staticmethod
    def example(n: int) -> Example:
        return (smooth(n, 3, 12, 20), 60 * values(n)), {"mode": "bilinear", "mask": smooth(n, 1, 12, 20)}


class FramePatches(nn.Module):
    """Patches cut out at local affine frames, any number an image. D. Mishkin et al., "AffNet", 2018, section 3."""

    def forward(self, images: Tensor, frames: Tensor, mask: None = None, size: int = 8) -> Tensor:
        n, k = frames.shape[:2]
        grid = F.affine_grid(frames.reshape(n * k, 2, 3), [n * k, images.shape[1], size, size], align_corners=False)
        sources = images[:, None].expand(-1, k, -1, -1, -1).reshape(n * k, *images.shape[1:])
        return F.grid_sample(sources, grid, padding_mode="border", align_corners=False).view(n, k, -1, size, size)

    @staticmethod
    def example(n: int) -> Example:
        frames = torch.eye(2, 3) * 0.3 + values(n, 5, 2, 3, scale=0.4)
        return (smooth(n, 1, 20, 20), frames, None, 8), {}


class DepthWarp(nn.Module):
    """Another frame seen from here, by depth, camera (3×3, no batch) and pose. T. Zhou et al., "SfMLearner", 2017."""

    def forward(self, source: Tensor, depth: Tensor, camera: Tensor, pose: Tensor) -> Tensor:
        h, w = depth.shape[-2:]
        pixels = (pixel_grid(h, w) + 1) / 2 * torch.tensor([w - 1.0, h - 1.0])
        rays = torch.cat(
            [(pixels - camera[:2, 2]) / torch.stack([camera[0, 0], camera[1, 1]]), torch.ones(h, w, 1)], -1
        )
        points = torch.cat([rays * depth.permute(0, 2, 3, 1), torch.ones(depth.shape[0], h, w, 1)], -1)
        seen = points.flatten(1, 2) @ (camera @ pose).transpose(1, 2)
        places = seen[..., :2] / seen[..., 2:].clamp_min(1e-3) / torch.tensor([w - 1.0, h - 1.0]) * 2 - 1
        return F.grid_sample(source, places.view(-1, h, w, 2), padding_mode="border", align_corners=True)

    @staticmethod
    def example(n: int) -> Example:
        camera = torch.tensor([[10.0, 0.0, 7.5], [0.0, 10.0, 5.5], [0.0, 0.0, 1.0]])
        return (
            smooth(n, 3, 12, 16),
            1 + smooth(n, 1, 12, 16),
            camera,
            torch.eye(3, 4) + values(n, 3, 4, scale=0.1),
        ), {}


class MaskedWarp(nn.Module):
    """Features warped by flow, zero where the flow comes from outside. D. Sun et al., "PWC-Net", 2018."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        features, flow = batch["features"], batch["flow"]
        h, w = features.shape[-2:]
        grid = pixel_grid(h, w) + 2 * flow.permute(0, 2, 3, 1) / torch.tensor([w - 1.0, h - 1.0])
        inside = F.grid_sample(torch.ones_like(features), grid, align_corners=True) > 0.9
        return {"warped": F.grid_sample(features, grid, align_corners=True) * inside, "inside": inside}

    @staticmethod
    def example(n: int) -> Example:
        return ({"features": smooth(n, 4, 10, 14), "flow": 3 * smooth(n, 2, 10, 14)},), {}


class Polar(nn.Module):
    """Log-polar pictures about a predicted origin. C. Esteves et al., "Polar Transformer Networks", 2018, section 4."""

    def __init__(self) -> None:
        super().__init__()
        self.heat = nn.Conv2d(1, 1, 5, padding=2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        h, w = images.shape[-2:]
        weights = self.heat(images).flatten(1).softmax(-1)
        origin = weights @ pixel_grid(h, w).view(-1, 2)
        radius = torch.exp(torch.linspace(-3, 0, w))
        angle = torch.arange(h) * (2 * torch.pi / h)
        rays = torch.stack([angle.cos()[:, None] * radius, angle.sin()[:, None] * radius], -1)
        return F.grid_sample(images, origin[:, None, None] + rays, align_corners=True), origin

    @staticmethod
    def example(n: int) -> Example:
        return (smooth(n, 1, 16, 16),), {}


class ControlPoints(nn.Module):
    """A thin-plate spline through given control points, of words by name. B. Shi et al., "ASTER", 2019, section 3.1."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", values(12 * 32, 10).softmax(-1), persistent=False)

    def forward(self, images: Tensor, options: dict[str, Any]) -> Tensor:
        grid = (self.weights @ options["points"]).view(-1, 12, 32, 2)
        return F.grid_sample(images, grid.clamp(-1, 1), padding_mode=options["padding"], align_corners=options["align"])

    @staticmethod
    def example(n: int) -> Example:
        return (smooth(n, 1, 12, 32), {"points": 4 * values(n, 10, 2), "padding": "border", "align": True}), {}


class BoxCrops(nn.Module):
    """Crops of one picture at any number of boxes. K. He et al., "Mask R-CNN", 2017 (RoIAlign by bilinear sampling)."""

    def forward(self, image: Tensor, boxes: Tensor) -> Tensor:
        h, w = image.shape[-2:]
        x0, y0, x1, y1 = boxes.unbind(-1)
        zero = torch.zeros_like(x0)
        theta = torch.stack([(x1 - x0) / w, zero, (x0 + x1) / w - 1, zero, (y1 - y0) / h, (y0 + y1) / h - 1], -1)
        grid = F.affine_grid(theta.view(-1, 2, 3), [boxes.shape[0], image.shape[0], 7, 7], align_corners=False)
        return F.grid_sample(image.expand(boxes.shape[0], -1, -1, -1), grid, align_corners=False)

    @staticmethod
    def example(n: int) -> Example:
        corners = 8 * values(n, 2).abs()
        return (smooth(1, 3, 20, 24)[0], torch.cat([corners, corners + 6], -1)), {}


class DeformableTaps(nn.Module):
    """A 3×3 convolution whose taps move. J. Dai et al., "Deformable Convolutional Networks", 2017, section 2.1."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets, self.mix = nn.Conv2d(4, 18, 3, padding=1), nn.Conv2d(36, 4, 1)

    def forward(self, features: Tensor) -> Tensor:
        n, _, h, w = features.shape
        moved = self.offsets(features).view(n, 9, 2, h, w).permute(1, 0, 3, 4, 2)
        taps = pixel_grid(3, 3).view(9, 1, 1, 1, 2)
        places = pixel_grid(h, w) + (taps + moved) * torch.tensor([2 / (w - 1), 2 / (h - 1)])
        return self.mix(torch.cat([F.grid_sample(features, each, align_corners=True) for each in places], 1))

    @staticmethod
    def example(n: int) -> Example:
        return (smooth(n, 4, 9, 11),), {}


class Panorama(nn.Module):
    """A view out of an equirectangular picture, turned by one matrix without a batch. Y.-C. Su, K. Grauman, 2017."""

    def forward(self, panoramas: Tensor, rotation: Tensor) -> Tensor:
        plane = pixel_grid(12, 16)
        rays = torch.cat([plane * torch.tensor([0.8, 0.6]), torch.ones(12, 16, 1)], -1) @ rotation.T
        longitude, latitude = (
            torch.atan2(rays[..., 0], rays[..., 2]),
            torch.atan2(rays[..., 1], rays[..., ::2].norm(dim=-1)),
        )
        grid = torch.stack([longitude / torch.pi, 2 * latitude / torch.pi], -1)
        return F.grid_sample(
            panoramas, grid.expand(panoramas.shape[0], -1, -1, -1), padding_mode="border", align_corners=False
        )

    @staticmethod
    def example(n: int) -> Example:
        return (smooth(n, 3, 16, 32), torch.eye(3) + values(3, 3, scale=0.2)), {}


class Undistorted(nn.Module):
    """Lens distortion taken out by radial polynomials; the grid is built inside. J. Heikkilä, O. Silvén, 1997."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("radial", torch.tensor([0.12, -0.03]))

    def forward(self, images: Tensor) -> Tensor:
        grid = pixel_grid(*images.shape[-2:])
        squared = grid.square().sum(-1, keepdim=True)
        moved = grid * (1 + self.radial[0] * squared + self.radial[1] * squared**2)
        return F.grid_sample(images, moved[None].repeat(images.shape[0], 1, 1, 1), mode="bicubic", align_corners=True)

    @staticmethod
    def example(n: int) -> Example:
        return (smooth(n, 3, 14, 18),), {}


class Averaged(nn.Module):
    """Any number of views warped and averaged, each by a matrix of its own. M. Jaderberg et al., 2015, section 3.4."""

    def forward(self, theta: Tensor, *views: Tensor) -> Tensor:
        grid = F.affine_grid(theta, views[0].shape, align_corners=False)
        return sum(F.grid_sample(view, grid, align_corners=False) for view in views) / len(views)

    @staticmethod
    def example(n: int) -> Example:
        return (around_identity(values(n, 6)), smooth(n, 1, 8, 8), smooth(n, 1, 8, 8).flip(-1)), {}


class DoubleRegistration(nn.Module):
    """Rigid registration in float64. M. Jenkinson, S. Smith, "A global optimisation method for registration", 2001."""

    def forward(self, images: Tensor, angle: Tensor, shift: Tensor) -> Tensor:
        rows = [
            torch.cat([angle.cos(), -angle.sin(), shift[:, :1]], 1),
            torch.cat([angle.sin(), angle.cos(), shift[:, 1:]], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), images.shape, align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)

    @staticmethod
    def example(n: int) -> Example:
        return (smooth(n, 1, 9, 9).double(), values(n, 1).double(), values(n, 2).double()), {}


class Retina(nn.Module):
    """Glimpses of growing size about a point. V. Mnih et al., "Recurrent Models of Visual Attention", 2014."""

    def forward(self, images: Tensor, where: Tensor, scales: int = 3) -> Tensor:
        seen = []
        for level in range(scales):
            zoom = torch.eye(2).mul(0.2 * 2**level).expand(images.shape[0], 2, 2)
            theta = torch.cat([zoom, where[:, :, None]], 2)
            grid = F.affine_grid(theta, [images.shape[0], images.shape[1], 6, 6], align_corners=False)
            seen.append(F.grid_sample(images, grid, align_corners=False))
        return torch.stack(seen, 1)

    @staticmethod
    def example(n: int) -> Example:
        return (smooth(n, 1, 20, 20), values(n, 2)), {"scales": 3}


class TriPlanes(nn.Module):
    """Points of space looked up on three learned planes. E. Chan et al., "EG3D", 2022, section 4.1."""

    def __init__(self) -> None:
        super().__init__()
        self.planes = nn.Parameter(smooth(3, 4, 10, 10))
        self.head = nn.Linear(4, 3)

    def forward(self, points: Tensor) -> Tensor:
        n, p, _ = points.shape
        places = torch.stack([points[..., [0, 1]], points[..., [0, 2]], points[..., [1, 2]]])  # 3×N×P×2
        found = F.grid_sample(self.planes, places.view(3, n, p, 2), padding_mode="border", align_corners=True)
        return self.head(found.mean(0).permute(1, 2, 0))

    @staticmethod
    def example(n: int) -> Example:
        return (2 * values(n, 9, 3),), {}


class SharedView(nn.Module):
    """One matrix for the whole batch, a brightness without dimensions, and a switch. J. Shi, C. Tomasi, 1994."""

    def forward(self, images: Tensor, theta: Tensor, gain: Tensor, flip: bool = False) -> Tensor:
        grid = F.affine_grid(theta.expand(images.shape[0], -1, -1), images.shape, align_corners=False)
        warped = gain * F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
        return warped.flip(-1) if flip else warped

    @staticmethod
    def example(n: int) -> Example:
        return (smooth(n, 3, 10, 10), around_identity(values(1, 6)), torch.tensor(0.7), True), {}


class StaticDecoder(nn.Module):
    """A batch that decides what is computed, so that no capture can leave it open. Y. Zhao et al., "RT-DETR", 2024."""

    def __init__(self) -> None:
        super().__init__()
        self.find = localisation(1, 6)

    def forward(self, images: Tensor) -> Tensor:
        theta = around_identity(self.find(images))
        if int(images.shape[0]) % 2:
            theta = theta * 0.9
        tokens = torch.arange(images.shape[0] * 4).view(-1, 4).float()[:, :1, None, None]
        warped = F.grid_sample(images, F.affine_grid(theta, images.shape, align_corners=False), align_corners=False)
        return warped + 0.1 * tokens

    @staticmethod
    def example(n: int) -> Example:
        return (smooth(n, 1, 28, 28),), {}


PUBLIC = {
    each.__name__: each
    for each in (
        OffsetRectifier, CorrelationLookup, FlowPyramid, Integrated, VolumeRegistration, BilateralSlice, Rotated,
        FramePatches, DepthWarp, MaskedWarp, Polar, ControlPoints, BoxCrops, DeformableTaps, Panorama, Undistorted,
        Averaged, DoubleRegistration, Retina, TriPlanes, SharedView, StaticDecoder,
    )
}  # fmt: skip


def built(name: str) -> nn.Module:
    """With the same weights every time, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return PUBLIC[name]().eval()
