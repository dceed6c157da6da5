"""Affine maps taken apart: how far a transformer turns, scales, shears and shifts what it looks at.

Convention: theta is N×2×3 and maps output to input coordinates, both in [-1, 1] over the image's edges, x before y and
y downwards (``align_corners`` is False). So the parts describe the window of the input that fills the output: a scale
of 0.5 is a window half as wide, in which everything looks twice as large; a positive rotation turns the window
clockwise on the screen and so what is seen anticlockwise; a shift moves the window's centre to the right or down.
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from stn_export.config import ALIGN_CORNERS, IMAGE_SHAPE

HALF = IMAGE_SHAPE[-1] / 2  # pixels in one unit of a coordinate
CORNERS = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))


@dataclass(frozen=True)
class Affine:
    """N maps by their parts, each a tensor of N: degrees, factors, the shear's factor, pixels."""

    rotation: Tensor
    scale_x: Tensor
    scale_y: Tensor
    shear: Tensor
    shift_x: Tensor
    shift_y: Tensor

    def as_dict(self) -> dict[str, Tensor]:
        """The parts by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def compose(parts: Affine) -> Tensor:
    """Theta, N×2×3, of the parts: the matrix is rotation · [[1, shear], [0, 1]] · diag(scale_x, scale_y)."""
    angle = parts.rotation.deg2rad()
    cosine, sine = angle.cos(), angle.sin()
    first = torch.stack([cosine, sine], dim=1) * parts.scale_x[:, None]
    second = torch.stack([cosine * parts.shear - sine, sine * parts.shear + cosine], dim=1) * parts.scale_y[:, None]
    shift = torch.stack([parts.shift_x, parts.shift_y], dim=1) / HALF
    return torch.stack([first, second, shift], dim=2)


def decompose(theta: Tensor) -> Affine:
    """The parts of theta, N×2×3: ``compose`` read backwards.

    The rotation is in (-180, 180] degrees and ``scale_x`` is never negative; where the map mirrors, ``scale_y`` is.
    A map that flattens the image to a line has no finite shear.

    Source: S. W. Thomas, "Decomposing a Matrix into Simple Transformations", Graphics Gems II, 1991, in two dimensions:
    Gram and Schmidt's procedure on the columns.
    """
    (a, b, right), (c, d, down) = (row.unbind(1) for row in theta.unbind(1))
    scale_x, determinant = torch.hypot(a, c), a * d - b * c
    return Affine(
        rotation=torch.atan2(c, a).rad2deg(),
        scale_x=scale_x,
        scale_y=determinant / scale_x,
        shear=(a * b + c * d) / determinant,
        shift_x=right * HALF,
        shift_y=down * HALF,
    )


def outside_share(theta: Tensor) -> Tensor:
    """The share, N values in [0, 1], of each output grid's points that lie beyond the image's edges."""
    grid = F.affine_grid(theta, [len(theta), *IMAGE_SHAPE], align_corners=ALIGN_CORNERS)
    return (grid.abs() > 1).any(dim=3).double().mean(dim=(1, 2))


def windows(theta: Tensor) -> Tensor:
    """The corners of what each map looks at, in pixels from the image's upper left edge: N×4×2, x before y."""
    corners = torch.tensor([(*corner, 1.0) for corner in CORNERS], dtype=theta.dtype)
    return (corners @ theta.transpose(1, 2) + 1) * HALF
