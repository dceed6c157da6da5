"""``points.pt``: what the sites of a run's networks see, kept so that a report needs no network.

Pictures are uint8 k×C×H×W with C 1 or 3, at the indices of the first examples and of those that differ most.
"""

from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

import msgspec
from torch import Tensor

from stn_export.artifacts.files import AGAIN, checked, load_tensors
from stn_export.artifacts.manifest import POINTS_FILE
from stn_export.errors import UserError

SCHEMA = "stn_export/points/1"


class SitePoints(TypedDict):
    """A site over all examples: theta N×2×3 where there is one, the share N of its grid outside the image."""

    theta: NotRequired[Tensor]
    outside: Tensor
    image_size: Annotated[list[int], msgspec.Meta(min_length=2, max_length=2)]  # height and width
    align_corners: bool


class Pictures(TypedDict):
    """Some examples, and what each site made of them."""

    of: str
    indices: Tensor
    input: Tensor
    warped: dict[str, Tensor]
    labels: NotRequired[Tensor]


class Points(TypedDict):
    """Of one network; ``program`` is its sha256."""

    program: str
    examples: int
    sites: dict[str, SitePoints]
    pictures: NotRequired[Pictures]


class _File(TypedDict):
    networks: dict[str, Points]


def read_points_file(run: Path) -> dict[str, Points]:
    """By network; nothing where ``verify`` has not been there.

    Raises:
        UserError: where the file is not one of ours.
    """
    path = run / POINTS_FILE
    if not path.exists():
        return {}
    content = load_tensors(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UserError(f"{path} is not of schema {SCHEMA}", AGAIN)
    return checked(path, content, _File)["networks"]
