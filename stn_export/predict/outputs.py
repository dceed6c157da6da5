"""What came out of a network, for a person or a script: classes, figures, a file, and pictures of what a site sees."""

import io
import zipfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stn_export import cli
from stn_export.predict.pictures import Feeder
from stn_export.program.program import Program
from stn_export.program.specs import Arrays, Pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOP = 3
SUMS_TO_ONE = 0.02  # how far probabilities of a reduced precision may be from it


def probabilities(outputs: Arrays, classes: Sequence[str]) -> np.ndarray | None:
    """Probabilities, a row a picture, in the first output that has a number for each class; None where none has.

    What sums to one is taken as it is; softmax makes probabilities of the rest, also of their logarithms.
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
    """The ``TOP`` classes of a picture with their probabilities (0 to 1), the likeliest first."""
    order = np.argsort(-row, kind="stable")[:TOP]
    return [{"class": classes[index], "probability": float(row[index])} for index in order]


def described(values: np.ndarray) -> dict:
    """One picture's output in figures, JSON-ready."""
    figures = {name: float(getattr(values, name)()) if values.size else None for name in ("min", "mean", "max")}
    return {"shape": list(values.shape), "dtype": str(values.dtype)} | figures


def archive(outputs: Arrays) -> bytes:
    """An ``.npz`` file; unlike ``numpy.savez`` this takes any name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, values in outputs.items():
            with packed.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(values), allow_pickle=False)
    return buffer.getvalue()


def shown(program: Program, feeder: Feeder, titles: Sequence[str]) -> bytes:
    """A PNG with a row a picture: it under its title, beside the warped image of each site."""
    from matplotlib.figure import Figure  # an extra

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
    """A site's warped image of the first of ``batch`` pictures as uint8 C×H×W.

    Where it is no picture of so many ``channels`` normalised by ``pixels``, it is the mean over channels, the least in
    black and the most in white.
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
    axes.set_title(cli.visible(title), fontsize=9, parse_math=False)  # a pair of $ is no formula
