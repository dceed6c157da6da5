"""Classify pictures through any artifact of a run: ``python -m stn_export.predict photo.jpg --artifact FILE``.

A picture of any size or mode is turned upright, resized to 32×32 and classified on the CPU by the artifact's own
runner, with the input that its manifest asks for.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.markup import escape
from torch import Tensor

from stn_export import cli
from stn_export.artifacts.files import write_atomically
from stn_export.artifacts.manifest import MANIFEST, Artifact, NetworkDirectory
from stn_export.config import ARTIFACTS, DEFAULT_DATASET, IMAGE_SHAPE
from stn_export.errors import UserError
from stn_export.report import figures
from stn_export.runners import RUNNERS, RunnerSpec
from stn_export.train.checkpoint import load_checkpoint
from stn_export.train.data import class_names, contract_batch, denormalise, normalise

DEFAULT_ARTIFACT = ARTIFACTS / DEFAULT_DATASET / "stn" / "matmul-fp32.onnx"
TOP = 3
BATCH = 256
MOST_SHOWN = 64
NAME_SHOWN = 20  # characters of a file's name that fit above its picture
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # all of them Pillow's, by kind of damage


@dataclass(frozen=True)
class Prediction:
    """A picture's likeliest classes with their probabilities (0 to 1), the likeliest first."""

    picture: str
    classes: tuple[tuple[str, float], ...]

    def as_dict(self) -> dict:
        """JSON-ready."""
        return {
            "picture": self.picture,
            "classes": [{"class": name, "probability": probability} for name, probability in self.classes],
        }


def read_picture(path: Path) -> Tensor:
    """A picture of any format, size and mode as uint8 3×32×32 RGB.

    Its EXIF orientation is applied, what is transparent becomes white, 16-bit greys become 8-bit ones, and it is
    resized bilinearly with antialiasing, whatever its proportions.

    Raises:
        UserError: where there is no such file or it is no picture.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(to_rgb(ImageOps.exif_transpose(image)).resize(IMAGE_SHAPE[:0:-1], Image.BILINEAR))
    except UNREADABLE as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "no picture that Pillow can read"
        raise UserError(f"{path} cannot be classified: {reason}", "name a PNG, JPEG or other picture file") from error
    return torch.tensor(pixels).permute(2, 0, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB, as a viewer would show it on white."""
    if image.mode.startswith("I"):  # Pillow would clip 16-bit greys at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def find_artifact(path: Path) -> tuple[NetworkDirectory, Artifact]:
    """The entry of the file ``path`` in the manifest beside it.

    Raises:
        UserError: where there is no manifest, or it does not list this file.
    """
    directory = NetworkDirectory(path.parent)
    entries = {artifact.file: artifact for artifact in directory.artifacts.values()}
    if not entries:
        raise UserError(f"{path} has no {MANIFEST} beside it", "run 'make train export' first, or name another file")
    if path.name not in entries:
        raise UserError(f"{path} is not listed in the {MANIFEST} beside it", f"name one of: {', '.join(entries)}")
    return directory, entries[path.name]


def runner_for(artifact: Artifact) -> RunnerSpec:
    """The first runner of the artifact's format that can run on the CPU here.

    Raises:
        UserError: where there is none.
    """
    candidates = [spec for spec in RUNNERS if spec.format == artifact.format and spec.device == "cpu"]
    for spec in candidates:
        if not spec.unavailable():
            return spec
    reasons = "; ".join(f"{spec.name}: {spec.unavailable()}" for spec in candidates) or f"format {artifact.format}"
    raise UserError(f"{artifact.file} cannot run on the CPU here ({reasons})", "name an artifact of another format")


def classify(directory: NetworkDirectory, artifact: Artifact, images: Tensor) -> np.ndarray:
    """Probabilities N×10 of uint8 images N×3×32×32 through an artifact whose bytes are checked first."""
    runner = runner_for(artifact).open(directory.open(artifact), artifact.input_contract)
    parts = images.split(BATCH)
    return np.exp(np.concatenate([runner.infer(contract_batch(part, artifact.input_contract)) for part in parts]))


def predictions(pictures: Sequence[Path], names: Sequence[str], probabilities: np.ndarray) -> list[Prediction]:
    """The ``TOP`` likeliest classes of every picture."""
    result = []
    for picture, row in zip(pictures, probabilities, strict=True):
        order = np.argsort(-row, kind="stable")[:TOP]
        result.append(Prediction(str(picture), tuple((names[index], float(row[index])) for index in order)))
    return result


def load_transformer(directory: NetworkDirectory, artifact: Artifact) -> torch.nn.Module:
    """The spatial transformer of the checkpoint that ``artifact`` was made from.

    Raises:
        UserError: where the model has none.
    """
    model = load_checkpoint(directory.open(directory.checkpoint())).model
    if not hasattr(model, "transformer"):
        raise UserError(f"{artifact.model} has no transformer whose work could be shown", "name an artifact of stn")
    return model.transformer


def show(path: Path, images: Tensor, transformer: torch.nn.Module, found: Sequence[Prediction]) -> None:
    """Write every picture (uint8 N×3×32×32) beside its warped self into the PNG ``path``.

    Raises:
        UserError: where it cannot be written there.
    """
    best = [(Path(item.picture).name[-NAME_SHOWN:], *item.classes[0]) for item in found]
    titles = [f"{name}: {label} {probability:.0%}" for name, label, probability in best]
    figure = figures.warped_pairs(images, denormalise(transformer(normalise(images))), titles)
    try:
        write_atomically(path, figures.to_png(figure))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", "name another file with --show") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Classify pictures and print the likeliest classes of each."""
    parser = cli.stage("predict", "Classify pictures through an artifact of a run.")
    parser.add_argument("pictures", nargs="+", type=Path, metavar="IMAGE", help="a picture file of any size and mode")
    parser.add_argument(
        "--artifact",
        type=Path,
        default=DEFAULT_ARTIFACT,
        help="checkpoint, ONNX or TorchScript file in a run's model directory",
    )
    parser.add_argument("--show", type=cli.path_or_none, metavar="PNG", help="draw each picture beside its warped self")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)

    directory, artifact = find_artifact(options.artifact)
    transformer = load_transformer(directory, artifact) if _showable(options.show, options.pictures) else None
    images = torch.stack([read_picture(picture) for picture in options.pictures])
    probabilities = classify(directory, artifact, images)
    found = predictions(options.pictures, class_names(directory.checkpoint()), probabilities)
    if transformer is not None:
        show(options.show, images, transformer, found)
    if options.json:
        facts = {"artifact": str(options.artifact), "sha256": artifact.sha256, "runner": runner_for(artifact).name}
        cli.print_json(facts | {"pictures": [item.as_dict() for item in found]})
    else:
        _print(artifact, found)


def _showable(path: Path | None, pictures: Sequence[Path]) -> bool:
    """Whether there is something to draw, refused early where it could not be written."""
    if path is None:
        return False
    if path.suffix.lower() != ".png":
        raise UserError(f"--show {path} is no PNG file", "give it a name that ends in .png")
    if len(pictures) > MOST_SHOWN:
        raise UserError(f"--show draws up to {MOST_SHOWN} pictures, not {len(pictures)}", "name fewer pictures")
    return True


def _print(artifact: Artifact, found: Sequence[Prediction]) -> None:
    rows = [
        (escape(item.picture), *(f"{escape(name)} {probability:.1%}" for name, probability in item.classes))
        for item in found
    ]
    title = f"{artifact.model}/{artifact.name} on {runner_for(artifact).name}"
    cli.table(title, ("picture", "first", "second", "third"), rows)


if __name__ == "__main__":
    sys.exit(cli.run(main))
