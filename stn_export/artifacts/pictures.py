"""Picture files as what a network takes: upright, on white, resized, in grey, RGB or RGBA."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from stn_export.errors import UserError
from stn_export.limits import LIMITS, regular, require

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")  # decoded here; EPS would start Ghostscript
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by channels


def read_picture(path: Path, channels: int, height: int | None = None, width: int | None = None) -> Tensor:
    """A picture of any format, size and mode as uint8 C×H×W.

    The EXIF orientation is applied, what is transparent becomes white unless there is a channel for it, 16-bit greys
    become 8-bit ones, and all are resized bilinearly with antialiasing, whatever their proportions.

    Args:
        path: the file.
        channels: a key of ``MODES``.
        height: in pixels, the picture's own without.
        width: likewise.

    Raises:
        UserError: where there is no such file, it is no picture, too large, or its numbers have no stated range.
    """
    hint = "name a PNG, JPEG or other picture file"
    try:
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(regular(path, "picture", hint), formats=FORMATS) as image,
        ):
            require("pixels", image.width * image.height, str(path))
            size = width or image.width, height or image.height
            upright = ImageOps.exif_transpose(image)
            shown = upright.convert("RGBA") if channels == 4 else on_white(upright, str(path))
            pixels = np.array(shown.convert(MODES[channels]).resize(size, Image.Resampling.BILINEAR))
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} has more than {LIMITS['pixels'].value} pixels", "resize it first") from error
    except Exception as error:  # Pillow's and its codecs' own, by kind of damage
        raise UserError(f"{path} is no {', '.join(FORMATS)} picture, or is damaged", hint) from error
    return torch.from_numpy(pixels.reshape(size[1], size[0], channels)).permute(2, 0, 1)


def on_white(image: Image.Image, said: str = "the picture") -> Image.Image:
    """The picture in 8-bit grey or RGB, as a viewer would show it on white.

    Raises:
        UserError: where nobody says which of its numbers is white.
    """
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise UserError(f"{said} holds 32-bit numbers, and nothing says which is white", "convert it to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit greys, which Pillow would clip at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
