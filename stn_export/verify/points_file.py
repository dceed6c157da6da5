"""Collect the content of ``points.pt``, see ``run.schemas``."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from stn_export.program.sites import Site
from stn_export.program.specs import Pixels, TensorSpec
from stn_export.results.tolerances import GRID, THETA, WARPED
from stn_export.run.records import Check
from stn_export.run.schemas import Pictures, Points, SitePoints
from stn_export.verify.challenges import filled, range_of
from stn_export.verify.oracle import Reference
from stn_export.verify.points import sampled_images

FIRST = 10
MOST_DIFFERENT = 10  # in float32, and at reduced precision


def points_of(reference: Reference, checks: Iterable[Check], sha256: str) -> Points | None:
    """Return what is stored of one network; None if it does not sample.

    Args:
        reference: of the network.
        checks: of its artifacts.
        sha256: of the program.
    """
    sites = [site for site in reference.program.sites if reference.points[site.point(GRID)].rows]
    if not sites:
        return None
    kept: Points = {"program": sha256, "examples": len(reference.examples), "sites": _sites(reference, sites)}
    shown = [site for site in sites if reference.points[site.point(WARPED)].rows]
    if reference.contract.picture and shown:
        pictures = _pictures(reference, reference.contract.picture, shown, chosen(len(reference.examples), checks))
        if pictures["warped"]:
            kept["pictures"] = pictures
    return kept


def chosen(count: int, checks: Iterable[Check]) -> list[int]:
    """Return the indices of the first examples and of those that differ most, in float32 and in less, each once."""
    indices = list(range(min(FIRST, count)))
    for full in (True, False):
        worst: dict[int, float] = {}
        for check in checks:
            for index, error, _ in check.differing if (check.precision == "fp32") == full else ():
                worst[index] = max(math.inf if error is None else error, worst.get(index, 0.0))
        indices += sorted(worst, key=worst.__getitem__, reverse=True)[:MOST_DIFFERENT]
    return list(dict.fromkeys(indices))


def _sites(reference: Reference, sites: list[Site]) -> dict[str, SitePoints]:
    batch = reference.examples.take(reference.contract.batch or 1)
    images = sampled_images(reference.program, reference.program.values(batch), {})
    kept: dict[str, SitePoints] = {}
    for site in sites:
        size, theta = images[site.name].shape[-2:], reference.points.get(site.point(THETA))
        rows = reference.points[site.point(GRID)].rows
        edge = np.array([size[1], size[0]]) / 2  # from the middle, in pixels
        outside = [
            (np.abs(part[site.point(GRID)]) > edge).any(-1).reshape(len(part[site.point(GRID)]) // rows, -1).mean(1)
            for part in reference.parts
        ]
        kept[site.name] = {
            "outside": torch.from_numpy(np.concatenate(outside)).float(),
            "image_size": list(size),
            "align_corners": site.align_corners,
        }
        if theta and theta.rows == 1:
            thetas = np.concatenate([part[theta.name] for part in reference.parts])
            kept[site.name]["theta"] = torch.from_numpy(thetas).float()
    return kept


def _pictures(reference: Reference, spec: TensorSpec, sites: list[Site], indices: list[int]) -> Pictures:
    """Return the input images and each site's warped images, as bytes; sites whose sizes vary are left out."""
    examples, fixed = reference.examples, reference.contract.batch
    pictures = examples.inputs[spec.name][indices]
    warped: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    for rows, count in filled(len(indices), fixed or len(indices)):
        batch = examples.rows(torch.tensor(indices)[rows])
        points = reference.program.points(reference.program.values(batch))
        for site in sites:
            value = points[site.point(WARPED)]
            picture = value.reshape(len(value) // reference.rows[site.point(WARPED)], -1, *value.shape[-2:])
            warped[site.name].append(picture[:count])  # the channels of all its rows
    kept: Pictures = {
        "of": spec.name,
        "indices": torch.tensor(indices),
        "input": as_bytes(pictures, range_of(examples.inputs[spec.name])),
        "warped": {
            name: _seen(torch.cat(parts), pictures.shape[1], spec.pixels)
            for name, parts in warped.items()
            if len({part.shape[1:] for part in parts}) == 1
        },
    }
    if examples.labels is not None:
        kept["labels"] = examples.labels[indices]
    return kept


def _seen(warped: Tensor, channels: int, pixels: Pixels | None) -> Tensor:
    """Convert a warped image to bytes, denormalised if it has the input's channels, else over its own range."""
    if pixels and warped.shape[1] == channels:
        return as_bytes(pixels.denormalise(warped), (0, 255))
    return as_bytes(warped, range_of(warped))


def as_bytes(pictures: Tensor, span: tuple[float, float]) -> Tensor:
    """Convert images to uint8 N×C×H×W with C 1 or 3; other channels are averaged; ``span`` becomes black and white."""
    if pictures.shape[1] not in (1, 3):
        pictures = pictures.float().mean(1, keepdim=True)
    if span == (0.0, 255.0):
        return pictures.round().to(torch.uint8) if pictures.is_floating_point() else pictures.to(torch.uint8)
    low, high = span
    return ((pictures - low) * (255 / max(high - low, 1e-30))).round().clamp(0, 255).to(torch.uint8)
