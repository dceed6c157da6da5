"""Random changes to training images, a whole batch at a time on its own device.

Images are uint8 N×3×32×32 and stay so. Random numbers come from PyTorch's default generator of the images' device
unless one is given, so that a captured CUDA graph draws new ones at every replay.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stn_export.train.recipes import ALIGN_CORNERS, AffineRange


def flip_and_crop(images: Tensor, flip: bool, crop: int) -> Tensor:
    """Mirror half of the images and shift each by up to ``crop`` pixels either way; black comes in at the border."""
    if not flip and not crop:
        return images
    count, channels, height, width = images.shape
    shifts = torch.randint(2 * crop + 1, (2, count, 1), device=images.device)
    rows = torch.arange(height, device=images.device) + shifts[0]
    columns = torch.arange(width, device=images.device) + shifts[1]
    if flip:
        columns = torch.where(torch.rand(count, 1, device=images.device) < 0.5, columns.flip(1), columns)
    padded = F.pad(images, (crop,) * 4).flatten(2)
    pixels = rows[:, :, None] * (width + 2 * crop) + columns[:, None, :]  # N×H×W, into each padded plane
    return padded.gather(2, pixels.view(count, 1, -1).expand(-1, channels, -1)).view(images.shape)


def random_affine(images: Tensor, limits: AffineRange, generator: torch.Generator | None = None) -> Tensor:
    """Turn, scale and shift each image about its centre, bilinearly; black where nothing was."""
    theta = affine_matrices(len(images), limits, images.shape[-1], images.device, generator)
    grid = F.affine_grid(theta, list(images.shape), align_corners=ALIGN_CORNERS)
    warped = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=ALIGN_CORNERS)
    return warped.round_().to(torch.uint8)


def affine_matrices(
    count: int, limits: AffineRange, size: int, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Random maps from output to input coordinates, N×2×3, in units of half the image's ``size`` in pixels."""
    turn, zoom, right, down = torch.rand(4, count, device=device, generator=generator)
    angle = math.radians(limits.degrees) * (2 * turn - 1)
    low, high = limits.scale
    inverse = 1 / (low + (high - low) * zoom)  # an object half as large is sampled twice as wide
    cosine, sine = inverse * angle.cos(), inverse * angle.sin()
    dx, dy = ((2 * part - 1) * 2 * limits.shift / size for part in (right, down))
    linear = torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2)
    return torch.cat([linear, torch.bmm(linear, torch.stack([dx, dy], dim=1)[..., None])], dim=2)
