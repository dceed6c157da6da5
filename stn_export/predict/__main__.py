"""Run images through any artifact of a run: ``python -m stn_export.predict photo.jpg --artifact FILE``.

An image of any size or mode is converted to what the artifact's manifest asks for, and run by the artifact's own runner
on the CPU. For a classifier the most likely classes are shown, for any other network statistics of each output.
"""

import io
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stn_export import cli
from stn_export.config import DEFAULT_RUN
from stn_export.errors import CheckFailedError, UserError, command
from stn_export.limits import require
from stn_export.program.program import Program
from stn_export.program.specs import Arrays, Batch, Contract, Pixels, by
from stn_export.run.examples import Examples, picture_of, read_picture
from stn_export.run.manifest import MANIFEST, PROGRAM_FILE, Artifact, NetworkDirectory, network_directories
from stn_export.run.store import write_out
from stn_export.runners import RUNNERS, RunnerSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Image files as the input of a network.


BATCH = 256


@dataclass(frozen=True)
class Feeder:
    """Feeds a network ``pictures`` (uint8 N×C×H×W) as its input ``name``, and the first example as its other inputs."""

    name: str
    pictures: Tensor
    examples: Examples

    @property
    def others(self) -> list[str]:
        """Return the inputs that do not come from the images."""
        return [name for name in self.examples.inputs if name != self.name]

    def rows(self, chosen: Tensor) -> Batch:
        """Return a batch of some of the images."""
        return self.examples.rows(torch.zeros_like(chosen)) | {self.name: self.pictures[chosen]}

    def parts(self, contract: Contract, chosen: Sequence[int] | None = None) -> list[tuple[int, Batch]]:
        """Return batches of all or some images, each with its number of images.

        Batches are padded if the contract's batch is static; if an input or output has no batch, each has one image.
        """
        picture = next(spec for spec in contract.inputs if spec.name == self.name)
        own = picture.shape[0]
        size = contract.batch if picture.batched else own if isinstance(own, int) else None
        single = not all(spec.batched for spec in (picture, *contract.outputs))
        parts = torch.tensor(chosen or range(len(self.pictures))).split(1 if single else size or BATCH)
        return [(len(part), self.rows(part[torch.arange(size or len(part)) % len(part)])) for part in parts]


def feeder_of(contract: Contract, examples: Examples, paths: Sequence[Path]) -> tuple[Feeder, dict[Path, str]]:
    """Read images as an artifact's input; return also why some files could not be read.

    Raises:
        UserError: if the artifact takes no images, or no file is one.
    """
    spec, (channels, height, width) = picture_of(contract, examples)
    pictures: list[Tensor] = []
    unread: dict[Path, str] = {}
    for path in paths:
        try:
            pictures.append(read_picture(path, channels, height, width))
        except UserError as error:
            if len(paths) == 1:
                raise
            unread[path] = error.message
    if not pictures:
        raise UserError(f"none of {len(paths)} files can be read: {next(iter(unread.values()))}", "name pictures")
    return Feeder(spec.name, torch.stack(pictures), examples), unread


# Results: classes, statistics, an NPZ file, and images of what a sampling site sees.


TOP = 3
SUMS_TO_ONE = 0.02  # tolerance, for probabilities at reduced precision


def probabilities(outputs: Arrays, classes: Sequence[str]) -> np.ndarray | None:
    """Return probabilities, one row per image, from the first output with one number per class; None if there is none.

    Rows that sum to one are used as they are; softmax is applied to all others, including logarithms.
    """
    for values in outputs.values():
        rows = values.reshape(len(values), -1)
        if classes and rows.shape[1] == len(classes) and rows.dtype.kind == "f":
            rows = rows.astype(np.float64)
            if rows.min() >= 0 and (abs(rows.sum(1) - 1) < SUMS_TO_ONE).all():
                return rows
            powers = np.exp(rows - rows.max(1, keepdims=True))
            return powers / powers.sum(1, keepdims=True)
    return None


def likeliest(row: np.ndarray, classes: Sequence[str]) -> list[dict]:
    """Return the ``TOP`` most likely classes of an image with their probabilities (0 to 1), the likeliest first."""
    order = np.argsort(-row, kind="stable")[:TOP]
    return [{"class": classes[index], "probability": float(row[index])} for index in order]


def described(values: np.ndarray) -> dict:
    """Return statistics of one image's output, JSON-ready."""
    figures = {name: float(getattr(values, name)()) if values.size else None for name in ("min", "mean", "max")}
    return {"shape": list(values.shape), "dtype": str(values.dtype)} | figures


def archive(outputs: Arrays) -> bytes:
    """Return the outputs as an ``.npz`` file; unlike in ``numpy.savez``, any name is allowed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, values in outputs.items():
            with packed.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(values), allow_pickle=False)
    return buffer.getvalue()


def shown(program: Program, feeder: Feeder, titles: Sequence[str]) -> bytes:
    """Draw a PNG with one row per image: the image with its title, beside each site's warped image."""
    from matplotlib.figure import Figure  # an optional dependency

    figure = Figure(figsize=(2.3 * (1 + len(program.sites)), 2.5 * len(titles)), layout="constrained", dpi=160)
    rows = figure.subplots(len(titles), 1 + len(program.sites), squeeze=False)
    pixels = next(spec.pixels for spec in program.contract.inputs if spec.name == feeder.name)
    for index, (row, title) in enumerate(zip(rows, titles, strict=True)):
        picture = feeder.pictures[index]
        [(_, batch)] = feeder.parts(program.contract, [index])
        points = program.points(program.values(batch))
        _draw(row[0], picture, title)
        for axes, site in zip(row[1:], program.sites, strict=True):
            warped, label = points[site.point("warped")], site.where if len(program.sites) > 1 else "warped"
            _draw(axes, seen(warped, len(batch[feeder.name]), len(picture), pixels), label)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def seen(warped: Tensor, batch: int, channels: int, pixels: Pixels | None) -> Tensor:
    """Return a site's warped image, for the first of ``batch`` images, as uint8 C×H×W.

    If it does not have ``channels`` channels, or ``pixels`` is None, it is the mean over channels, from black at the
    minimum to white at the maximum.
    """
    one = warped[: max(1, len(warped) // batch)].flatten(0, -3)
    if len(one) == channels and pixels is not None:
        return pixels.denormalise(one)
    mean = one.float().mean(0, keepdim=True)
    return (255 * (mean - mean.min()) / (mean.max() - mean.min()).clamp_min(1e-12)).to(torch.uint8)


def _draw(axes: "Axes", picture: Tensor, title: str) -> None:
    axes.imshow(picture.permute(1, 2, 0).expand(-1, -1, 3).numpy(), interpolation="none")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(cli.visible(title), fontsize=9, parse_math=False)  # a pair of $ must not become a formula


NAME_SHOWN = 20  # characters of a file's name that fit above its picture


def find_artifact(path: Path) -> tuple[NetworkDirectory, Artifact]:
    """Find the manifest entry of the file ``path``.

    Raises:
        UserError: if there is no manifest beside it, or it does not list this file.
    """
    directory = NetworkDirectory(path.parent)
    entries = {artifact.file: artifact for artifact in directory.artifacts.values()}
    if not entries:
        raise UserError(
            f"{path} has no {MANIFEST} beside it", f"run {command('train', 'export')} first, or name another file"
        )
    if path.name not in entries:
        raise UserError(f"{path} is not listed in the {MANIFEST} beside it", f"name one of: {', '.join(entries)}")
    return directory, entries[path.name]


def runner_for(artifact: Artifact) -> RunnerSpec:
    """Return the first runner of the artifact's format that can run on the CPU here.

    Raises:
        UserError: if there is none.
    """
    candidates = [spec for spec in RUNNERS if spec.format == artifact.format and spec.device == "cpu"]
    for spec in candidates:
        if not spec.unavailable():
            return spec
    reasons = "; ".join(f"{spec.name}: {spec.unavailable()}" for spec in candidates) or f"format {artifact.format}"
    raise UserError(f"{artifact.file} cannot run on the CPU here ({reasons})", "name an artifact of another format")


def outputs_of(directory: NetworkDirectory, artifact: Artifact, feeder: Feeder) -> Arrays:
    """Run all images through an artifact, whose bytes are checked first; outputs have one row per image."""
    runner = runner_for(artifact).open(directory.open(artifact), artifact.contract)
    results = [
        (count, runner.infer(artifact.contract.arrays(batch))) for count, batch in feeder.parts(artifact.contract)
    ]
    return {
        spec.name: np.concatenate(
            [outputs[spec.name][:count] if spec.batched else outputs[spec.name][None] for count, outputs in results]
        )
        for spec in artifact.contract.outputs
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run images through an artifact and print the result for each."""
    options = cli.parse("predict", arguments)
    directory, artifact = find_artifact(options.artifact or network_directories(DEFAULT_RUN)[0].path / PROGRAM_FILE)
    if options.trust:
        directory.trust()
    for option in (options.show, options.output):
        if option and option.exists() and any(option.samefile(path) for path in options.pictures if path.exists()):
            raise UserError(f"{option} is one of the pictures, and would be overwritten", "name another file")
    if options.show:
        _check_showing(options.show, options.pictures, directory)
    if options.output and options.output.suffix != ".npz":
        raise UserError(f"--output {options.output} is no NPZ file", "give it a name that ends in .npz")
    feeder, unread = feeder_of(artifact.contract, directory.examples(), options.pictures)
    outputs = outputs_of(directory, artifact, feeder)
    rows = found([path for path in options.pictures if path not in unread], outputs, directory.facts.classes)
    if options.show:
        write_out(options.show, shown(directory.program(), feeder, [_title(row) for row in rows]))
    if options.output:
        write_out(options.output, archive(outputs))
    facts = {
        "artifact": str(directory.path / artifact.file),
        "sha256": artifact.sha256,
        "runner": runner_for(artifact).name,
    }
    if options.format == "json":
        reasons = {str(path): why for path, why in unread.items()}
        cli.print_json(facts | {"from_first_example": feeder.others, "pictures": rows, "unread": reasons})
    else:
        _print(f"{directory.name}/{artifact.name} on {facts['runner']}", rows, feeder.others)
    if unread:
        raise CheckFailedError("; ".join([f"{len(unread)} of {len(options.pictures)} not read", *unread.values()]))


def found(pictures: Sequence[Path], outputs: Arrays, classes: Sequence[str]) -> list[dict]:
    """Return every image's most likely classes, or statistics of each output if there are no classes; JSON-ready."""
    chances = probabilities(outputs, classes)
    return [
        {"picture": str(picture)}
        | (
            {"outputs": {name: described(values[index]) for name, values in outputs.items()}}
            if chances is None
            else {"classes": likeliest(chances[index], classes)}
        )
        for index, picture in enumerate(pictures)
    ]


def _check_showing(path: Path, pictures: Sequence[Path], directory: NetworkDirectory) -> None:
    """Reject early what could not be drawn.

    Raises:
        UserError: if the file is no PNG, there are too many images, or the network does not sample.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"--show {path} is no PNG file", "give it a name that ends in .png")
    require("shown", len(pictures), "--show")
    if not directory.facts.sites:
        raise UserError(f"{directory.name} has no sampling site, so there is nothing to show", "leave out --show")


def _title(row: dict) -> str:
    name = Path(row["picture"]).name[-NAME_SHOWN:]
    return name + "".join(f": {best['class']} {best['probability']:.0%}" for best in row.get("classes", ())[:1])


def _print(title: str, rows: Sequence[dict], others: Sequence[str]) -> None:
    if others:
        cli.say(f"from the first example of the run instead of the images: {', '.join(others)}")
    if "classes" in rows[0]:
        columns = ("picture", "first", "second", "third")[: 1 + len(rows[0]["classes"])]
        cells = [
            (row["picture"], *(f"{best['class']} {best['probability']:.1%}" for best in row["classes"])) for row in rows
        ]
    else:
        columns = ("picture", "output", "shape", "min", "mean", "max")
        cells = [
            (
                row["picture"],
                name,
                f"{by(of['shape'])} {of['dtype']}",
                *(cli.figure(of[key], ".4g") for key in columns[3:]),
            )
            for row in rows
            for name, of in row["outputs"].items()
        ]
    cli.table(title, columns, cells, ("third", "second", "mean"))


if __name__ == "__main__":
    sys.exit(cli.run(main))
