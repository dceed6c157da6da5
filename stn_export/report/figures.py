"""Rows of pictures, which matplotlib lays out as pixels."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from torch import Tensor

from stn_export import cli

CAPTIONS: Any = {"font.size": 10, "figure.constrained_layout.use": True, "text.parse_math": False}


@matplotlib.rc_context(CAPTIONS)
def picture_rows(rows: Mapping[str, Tensor], titles: Sequence[str] = ()) -> Figure:
    """Pictures (uint8 N×C×H×W, grey or RGB, N the same for all) in rows by name, titles over the first."""
    count = max(map(len, rows.values()))
    figure = Figure(figsize=(0.75 * max(count, 2), 0.25 + 0.75 * len(rows) + 0.35 * bool(titles)))
    for (name, pictures), panels in zip(rows.items(), figure.subplots(len(rows), count, squeeze=False), strict=True):
        for axes, picture in zip(panels, pictures, strict=True):
            axes.imshow(picture.permute(1, 2, 0).expand(-1, -1, 3).numpy(), interpolation="none")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        panels[0].set_ylabel(cli.visible(name))
    for axes, title in zip(figure.axes, titles, strict=False):
        axes.set_title("\n".join(map(cli.visible, title.split("\n"))), loc="center", fontsize=7.5)
    return figure
