"""Examples: the tensor file that a run's networks are tried on, and images made into tensors."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from stn_export.errors import UserError, command
from stn_export.limits import LIMITS, regular, require
from stn_export.program.specs import Batch, Contract, TensorSpec
from stn_export.run.store import checked, load_tensors, serialise

EXAMPLES_FILE = "examples.pt"
SCHEMA = "stn_export/examples/1"

Size = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True)
class Examples:
    """Inputs by name.

    Attributes:
        inputs: those in ``batched`` hold one example per row, the others are the same for all.
        batched: the names of those inputs.
        labels: int64, one per example, or None.
        classes: their names in label order, or none.
        calibration: inputs that int8 is calibrated on; by default the examples themselves.
        calibration_labels: int64, one per calibration input, or None; unused where the examples calibrate.
        source: where they come from, in words.
    """

    inputs: dict[str, Tensor]
    batched: tuple[str, ...]
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    calibration: dict[str, Tensor] = field(default_factory=dict)
    source: str = ""
    calibration_labels: Tensor | None = None

    def __post_init__(self) -> None:
        """Reject inputs of different lengths, and empty ones.

        Raises:
            UserError: naming them.
        """
        lengths = {name: len(self.inputs[name]) for name in self.batched}
        if self.labels is not None:
            lengths["labels"] = len(self.labels)
        if len(set(lengths.values())) > 1 or not all(lengths.values()):
            counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise UserError(
                f"examples differ in number, or there are none: {counts}", "give as many of each, at least one"
            )

    def __len__(self) -> int:
        return len(self.inputs[self.batched[0]]) if self.batched else 1

    def rows(self, chosen: slice | Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Select some of the examples."""
        return {name: value[chosen] if name in self.batched else value for name, value in self.inputs.items()}

    def take(self, count: int) -> Batch:
        """Return the first ``count`` examples, repeated where there are fewer."""
        return self.rows(torch.arange(count) % len(self))

    def first(self, count: int) -> "Examples":
        """Return the first ``count`` examples, or all where there are fewer."""
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, inputs=self.rows(slice(count)), labels=labels)

    @property
    def calibrators(self) -> "Examples":
        """What int8 is calibrated and judged on, as examples."""
        labels = self.calibration_labels if self.calibration else self.labels
        return Examples(self.calibration or self.inputs, self.batched, labels, self.classes)

    def to_bytes(self) -> bytes:
        """Serialise; equal examples give equal bytes."""
        content = {name: value for name, value in vars(self).items() if value is not None}
        return serialise(content | {"schema": SCHEMA})


def load_examples(path: Path) -> Examples:
    """Read what ``Examples.to_bytes`` wrote.

    Raises:
        UserError: where the file is missing or holds something else.
    """
    content = load_tensors(path)
    if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
        raise UserError(f"{path} holds no examples of stn_export", f"run {command('train')} or adopt again")
    return checked(path, content, Examples)


def scored_output(contract: Contract, examples: Examples) -> TensorSpec | None:
    """Return the first output with one value per class, where the examples have labels; else None."""
    if examples.labels is None:
        return None
    classes, least = len(examples.classes), int(examples.labels.max()) + 1
    for spec in contract.outputs:
        sizes = [size for size in spec.shape[1:] if size != 1]
        if not (spec.batched and spec.is_float and len(sizes) == 1 and isinstance(sizes[0], int)):
            continue
        if sizes[0] == classes if classes else sizes[0] >= least:
            return spec
    return None


def random_examples(contract: Contract, count: int, seed: int = 0, sizes: Mapping[str, int] | None = None) -> Examples:
    """Draw examples for a network without any, see ``Contract.random``; a static batch is no limit."""
    contract = Contract(tuple(spec.opened() for spec in contract.inputs), ())
    batched = tuple(spec.name for spec in contract.inputs if spec.batched)
    source = f"{count} random examples, seed {seed}: none were given"
    return Examples(contract.random(count, seed, sizes), batched, source=source)


def picture_of(contract: Contract, examples: Examples) -> tuple[TensorSpec, Size]:
    """Return the input that takes images, and their size; dynamic sizes are those of the examples.

    Raises:
        UserError: where there is none with a known normalisation, or it is neither grey nor RGB.
    """
    spec = next(
        (
            candidate
            for candidate in contract.inputs
            if candidate.is_picture and (candidate.pixels or not candidate.is_float)
        ),
        None,
    )
    if spec is None:
        inputs = "; ".join(f"{spec.name}: {spec.text}" for spec in contract.inputs)
        raise UserError(
            f"no input takes pictures ({inputs})",
            "adopt it again and say with --mean and --std how its pictures are normalised",
        )
    shape = examples.inputs[spec.name].shape
    channels, height, width = (
        size if isinstance(size, int) else shape[axis] for axis, size in enumerate(spec.nchw[1:], start=1)
    )
    if channels not in (1, 3):
        raise UserError(
            f"input {spec.name} has {channels} channels", "pictures are grey (1) or RGB (3): run it in Python"
        )
    return spec, (channels, height, width)


# Image files as network inputs: upright, on white, resized, in grey, RGB or RGBA.


FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")  # decoded here; EPS would start Ghostscript
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by channels


def read_picture(path: Path, channels: int, height: int | None = None, width: int | None = None) -> Tensor:
    """Read an image of any format, size and mode as uint8 C×H×W.

    The EXIF orientation is applied, transparency becomes white unless there is a channel for it, 16-bit greys become
    8-bit ones, and the image is resized bilinearly with antialiasing, without keeping its proportions.

    Args:
        path: the file.
        channels: a key of ``MODES``.
        height: in pixels; by default the image's own.
        width: likewise.

    Raises:
        UserError: where there is no such file, it is no image, too large, or its values have no stated range.
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
    except Exception as error:  # Pillow and its codecs raise many types, by kind of damage
        raise UserError(f"{path} is no {', '.join(FORMATS)} picture, or is damaged", hint) from error
    return torch.from_numpy(pixels.reshape(size[1], size[0], channels)).permute(2, 0, 1)


def on_white(image: Image.Image, subject: str = "the picture") -> Image.Image:
    """Convert an image to 8-bit grey or RGB, transparent parts on white.

    Raises:
        UserError: where the range of its values is not known.
    """
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise UserError(f"{subject} has 32-bit values of an unknown range", "convert it to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit greys, which Pillow would clip at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
