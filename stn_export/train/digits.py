"""Draw ``digits``: the ten digits in twenty fonts, rotated, scaled, shifted and coloured over clutter; no download.

The fonts are those of matplotlib. Each image is one glyph sampled through a random affine grid on a dark background
with two random strokes across it, so that a network that first locates and straightens the digit has an advantage.
"""

import math
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

FONTS = (
    *(
        f"DejaVu{family}{style}"
        for family in ("Sans", "SansMono")
        for style in ("", "-Bold", "-Oblique", "-BoldOblique")
    ),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmss10", "cmtt10", "cmb10"),
)
GLYPH_SIZE = 64
GLYPH_HEIGHT = 41.0  # of a digit's outline inside the GLYPH_SIZE square, in pixels
SIZE = 32
OVERSAMPLING = 2
MAX_ANGLE = math.radians(45)
HEIGHTS = (11.0, 22.0)
MAX_SHIFT = 8.0
STROKES = 2
STROKE_WIDTHS = (0.6, 1.2)


def draw_digits(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw ``count`` images from ``seed``.

    Returns:
        uint8 images, count×3×32×32, and int64 labels, count. The classes are balanced and in random order.
    """
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count)[torch.randperm(count, generator=random)] % 10
    fonts = torch.randint(len(FONTS), (count,), generator=random)
    batches = [
        _compose(glyphs, random) for glyphs in _glyphs()[fonts, labels].split(1000)
    ]  # in thousands, so that the stroke distances stay in the cache
    return torch.cat(batches), labels


def _glyphs() -> Tensor:
    """Return coverage masks of every font's digits, fonts×10×64×64 in [0, 1]."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    masks = [
        [_glyph(ImageFont.truetype(str(folder / f"{font}.ttf"), 100), str(digit)) for digit in range(10)]
        for font in FONTS
    ]
    return torch.stack([torch.stack(row) for row in masks])


def _glyph(font: ImageFont.FreeTypeFont, digit: str) -> Tensor:
    """Return the mask of one digit, with its outline centred and GLYPH_HEIGHT high."""
    left, top, right, bottom = font.getbbox(digit)
    font = font.font_variant(size=100 * GLYPH_HEIGHT / (bottom - top))
    left, top, right, bottom = font.getbbox(digit)
    image = Image.new("L", (GLYPH_SIZE, GLYPH_SIZE))
    corner = ((GLYPH_SIZE - left - right) / 2, (GLYPH_SIZE - top - bottom) / 2)
    ImageDraw.Draw(image).text(corner, digit, fill=255, font=font)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(GLYPH_SIZE, GLYPH_SIZE) / 255


def _compose(glyphs: Tensor, random: torch.Generator) -> Tensor:
    """Warp N×64×64 masks, and paint background, strokes and digit over each other: N×3×32×32 uint8."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(glyphs), *shape, generator=random)

    grid_size = [len(glyphs), 1, SIZE * OVERSAMPLING, SIZE * OVERSAMPLING]
    theta = _theta(uniform(-MAX_ANGLE, MAX_ANGLE), uniform(*HEIGHTS), uniform(-MAX_SHIFT, MAX_SHIFT, 2))
    grid = F.affine_grid(theta, grid_size, align_corners=False)
    digit = F.avg_pool2d(F.grid_sample(glyphs[:, None], grid, align_corners=False), OVERSAMPLING)
    picture = uniform(0.0, 0.35, 3, 1, 1).expand(-1, -1, SIZE, SIZE)
    for _ in range(STROKES):
        stroke = _stroke(uniform(0, SIZE, 2), uniform(0, SIZE, 2), uniform(*STROKE_WIDTHS))
        picture = torch.lerp(picture, uniform(0.3, 1.0, 3, 1, 1), stroke)
    picture = torch.lerp(picture, uniform(0.5, 1.0, 3, 1, 1), digit)
    return (picture * 255).round().to(torch.uint8)


def _theta(angle: Tensor, height: Tensor, shift: Tensor) -> Tensor:
    """Return N×2×3 maps from output to glyph coordinates that show the digit ``height`` pixels high at ``shift``."""
    zoom = GLYPH_HEIGHT / GLYPH_SIZE * SIZE / height
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rotation = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], 1)
    offset = -rotation @ (shift[:, :, None] * 2 / SIZE)
    return torch.cat([rotation, offset], dim=2)


def _stroke(start: Tensor, end: Tensor, width: Tensor) -> Tensor:
    """Return the coverage, N×1×32×32, of a straight stroke ``width`` pixels wide between N×2 points given in pixels."""
    axis = torch.arange(SIZE) + 0.5
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)  # 32×32×2, x before y
    along, offset = (end - start)[:, None, None], pixels - start[:, None, None]
    position = ((offset * along).sum(-1) / (along * along).sum(-1).clamp(min=1e-6)).clamp(0, 1)
    distance = (offset - position[..., None] * along).norm(dim=-1)
    return (width[:, None, None] / 2 + 0.5 - distance).clamp(0, 1)[:, None]
