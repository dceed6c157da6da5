"""Picture files as the input that a network takes: upright, on white, resized, in grey or in RGB."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from stn_export.artifacts.examples import MODES, Examples, Size, picture_of
from stn_export.errors import UserError
from stn_export.program.specs import Batch, Contract

BATCH = 256
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # all of them Pillow's, by kind of damage


def read_pictures(paths: Sequence[Path], size: Size) -> Tensor:
    """Pictures of any format, size and mode as uint8 N×C×H×W.

    The EXIF orientation is applied, what is transparent becomes white, 16-bit greys become 8-bit ones, and all are
    resized bilinearly with antialiasing, whatever their proportions.

    Raises:
        UserError: where there is no such file or it is no picture.
    """
    return torch.stack([_read(path, size) for path in paths])


def _read(path: Path, size: Size) -> Tensor:
    channels, height, width = size
    try:
        with Image.open(path) as image:
            shown = on_white(ImageOps.exif_transpose(image)).convert(MODES[channels])
            pixels = np.asarray(shown.resize((width, height), Image.BILINEAR))
    except UNREADABLE as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "no picture that Pillow can read"
        raise UserError(f"{path} cannot be read: {reason}", "name a PNG, JPEG or other picture file") from error
    return torch.tensor(pixels.reshape(height, width, channels)).permute(2, 0, 1)


def on_white(image: Image.Image) -> Image.Image:
    """The picture in 8-bit grey or RGB, as a viewer would show it on white."""
    if image.mode.startswith("I"):  # Pillow would clip 16-bit greys at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class Feeder:
    """What a network is fed: ``pictures`` (uint8 N×C×H×W) as its input ``name``, others as in the first example."""

    name: str
    pictures: Tensor
    examples: Examples

    @property
    def others(self) -> list[str]:
        """The inputs that do not come from the pictures."""
        return [name for name in self.examples.inputs if name != self.name]

    def rows(self, chosen: Tensor) -> Batch:
        """A batch of some of the pictures."""
        return self.examples.rows(torch.zeros_like(chosen)) | {self.name: self.pictures[chosen]}

    def parts(self, contract: Contract, chosen: Sequence[int] | None = None) -> list[tuple[int, Batch]]:
        """Batches of all or some pictures, filled up where the contract fixes their size, with the number in each.

        Where an input or output has no batch, pictures go one by one.
        """
        picture = next(spec for spec in contract.inputs if spec.name == self.name)
        wanted = contract.batch if picture.batched else picture.shape[0]
        single = not all(spec.batched for spec in (picture, *contract.outputs))
        parts = torch.tensor(chosen or range(len(self.pictures))).split(1 if single else wanted or BATCH)
        return [(len(part), self.rows(part[torch.arange(wanted or len(part)) % len(part)])) for part in parts]


def feeder_of(contract: Contract, examples: Examples, paths: Sequence[Path]) -> Feeder:
    """The pictures of ``paths`` as an artifact's input.

    Raises:
        UserError: where it takes no pictures, or a file is none.
    """
    spec, size = picture_of(contract, examples)
    return Feeder(spec.name, read_pictures(paths, size), examples)
