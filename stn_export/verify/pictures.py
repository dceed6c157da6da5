"""Structured images told by a few numbers each, which put into words say how to draw them again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

STRIPES = ("rows", "columns", "a checkerboard")
Colour = tuple[int, ...]  # a level of 255 for each channel


class Picture(Protocol):
    """One image, told by its parameters; ``str`` puts them into words."""

    def draw(self, images: Tensor) -> Tensor:
        """uint8 C×H×W; ``images`` are the examples to start from, uint8 N×C×H×W."""


@dataclass(frozen=True)
class Changed:
    """An example cut, mirrored, stretched about grey and made brighter, in this order."""

    index: int
    margin: int  # pixels cut off every side before it is enlarged again
    mirrored: bool
    contrast: int  # per cent more
    brightness: int  # steps of 255

    def draw(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        rows, columns = (slice(self.margin, size - self.margin) for size in (height, width))
        image = F.interpolate(images[self.index, None, :, rows, columns].float(), (height, width))[0]
        image = image.flip(-1) if self.mirrored else image
        return _bytes((image - 127.5) * (1 + self.contrast / 100) + 127.5 + self.brightness)

    def __str__(self) -> str:
        changes = {
            f"without its outer {self.margin} px": self.margin,
            "mirrored": self.mirrored,
            f"contrast {self.contrast:+d} %": self.contrast,
            f"brightness {self.brightness:+d}": self.brightness,
        }
        return ", ".join([f"example {self.index}", *(words for words, made in changes.items() if made)])


@dataclass(frozen=True)
class Noisy:
    """An example blended with uniform noise; where no input is a picture, all its floating inputs."""

    index: int
    share: int  # per cent of noise
    seed: int

    def draw(self, images: Tensor) -> Tensor:
        noise = torch.randint(256, images.shape[1:], generator=torch.Generator().manual_seed(self.seed))
        return _bytes(images[self.index] * (1 - self.share / 100) + noise * (self.share / 100))

    def blend(self, row: Mapping[str, Tensor], ranges: Mapping[str, tuple[float, float]]) -> dict[str, Tensor]:
        """The example's inputs; ``ranges`` are those of the floating ones, which the noise has too."""
        random, blended = torch.Generator().manual_seed(self.seed), dict(row)
        for name, (low, high) in ranges.items():
            noise = low + (high - low) * torch.rand(row[name].shape, generator=random)
            blended[name] = row[name] * (1 - self.share / 100) + noise.to(row[name].dtype) * (self.share / 100)
        return blended

    def __str__(self) -> str:
        return f"example {self.index} under {self.share} % noise (seed {self.seed})"


@dataclass(frozen=True)
class Stripes:
    """Stripes of one width, or the squares of a checkerboard."""

    kind: str  # one of STRIPES
    width: int
    colours: tuple[Colour, Colour]

    def draw(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        y, x = torch.arange(height)[:, None] // self.width, torch.arange(width) // self.width
        second = {"rows": y + 0 * x, "columns": x + 0 * y, "a checkerboard": x + y}[self.kind] % 2
        return torch.where(second.bool(), _flat(self.colours[1]), _flat(self.colours[0]))

    def __str__(self) -> str:
        return f"{self.kind} of {self.width} px in {_name(self.colours[0])} and {_name(self.colours[1])}"


@dataclass(frozen=True)
class Edge:
    """Two flat halves, side by side or one over the other."""

    upright: bool
    at: int  # where the second begins, in pixels
    colours: tuple[Colour, Colour]

    def draw(self, images: Tensor) -> Tensor:
        image = _flat(self.colours[0]).expand(images.shape[1:]).clone()
        (image[:, :, self.at :] if self.upright else image[:, self.at :])[:] = _flat(self.colours[1])
        return image

    def __str__(self) -> str:
        if self.colours[0] == self.colours[1]:
            return f"flat {_name(self.colours[0])}"
        axis = "column" if self.upright else "row"
        return f"{_name(self.colours[0])} up to {axis} {self.at}, from there {_name(self.colours[1])}"


@dataclass(frozen=True)
class Sparse:
    """Black but for a few pixels."""

    pixels: tuple[tuple[int, int, Colour], ...]  # y, x, colour

    def draw(self, images: Tensor) -> Tensor:
        image = torch.zeros(images.shape[1:], dtype=torch.uint8)
        for y, x, colour in self.pixels:
            image[:, y, x] = torch.tensor(colour, dtype=torch.uint8)
        return image

    def __str__(self) -> str:
        pixels = [f"{_name(colour)} at row {y}, column {x}" for y, x, colour in self.pixels]
        return f"black but for {', '.join(pixels)}"


def _bytes(image: Tensor) -> Tensor:
    return image.round().clamp(0, 255).to(torch.uint8)


def _flat(colour: Colour) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8)[:, None, None]


def _name(colour: Colour) -> str:
    return f"grey {colour[0]}" if len(set(colour)) == 1 else f"{'RGB' if len(colour) == 3 else 'levels'} {colour}"
