"""Affine maps taken apart: how far a transformer turns, scales, shears and shifts what it looks at.

Convention: theta is N×2×3 and maps output to input coordinates, x before y and y downwards. A coordinate runs from -1
to 1 over the sampled image's edges, or over the middles of its outer pixels where ``align_corners`` is True. The parts
describe, in pixels of that image, the window of it that fills the output: a scale of 0.5 is a window half as wide, in
which everything looks twice as large; a positive rotation turns the window clockwise on the screen and so what is seen
anticlockwise; a shift moves the window's centre to the right or down.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Frame:
    """A sampled image, H×W pixels, and how a site's coordinates lie over it."""

    height: int
    width: int
    align_corners: bool = False

    @property
    def half(self) -> Tensor:
        """Pixels in one unit of x and of y."""
        return torch.tensor([self.width - self.align_corners, self.height - self.align_corners]).double() / 2

    @property
    def edge(self) -> Tensor:
        """The coordinates x and y of the right and the lower edge."""
        return torch.tensor([self.width, self.height]).double() / 2 / self.half

    def pixels(self, coordinates: Tensor) -> Tensor:
        """Coordinates (..., 2), x before y, as pixels from the image's upper left edge."""
        return (coordinates + self.edge) * self.half

    def windows(self, theta: Tensor) -> Tensor:
        """The corners of what each map looks at, in pixels from the image's upper left edge: N×4×2, x before y."""
        corners = torch.tensor([(*corner, 1.0) for corner in CORNERS], dtype=theta.dtype)
        return self.pixels(corners @ theta.transpose(1, 2))

    def decompose(self, theta: Tensor) -> Affine:
        """The parts of theta, which in pixels is rotation · [[1, shear], [0, 1]] · diag(scale_x, scale_y).

        The rotation is in (-180, 180] degrees and ``scale_x`` is never negative; where the map mirrors, ``scale_y`` is.
        A map that flattens the image to a line has no finite shear.

        Source: S. W. Thomas, "Decomposing a Matrix into Simple Transformations", Graphics Gems II, 1991, in two
        dimensions: Gram and Schmidt's procedure on the columns.
        """
        (a, b, right), (c, d, lower) = (row.unbind(1) for row in theta.unbind(1))
        across, down = self.half
        b, c = b * across / down, c * down / across
        scale_x, determinant = torch.hypot(a, c), a * d - b * c
        return Affine(
            rotation=torch.atan2(c, a).rad2deg(),
            scale_x=scale_x,
            scale_y=determinant / scale_x,
            shear=(a * b + c * d) / determinant,
            shift_x=right * across,
            shift_y=lower * down,
        )
