"""Whether a table loses a cell at some width. ``conftest`` asks it of every table that any test prints."""

import io
from collections import Counter

from rich.console import Console

from stn_export.cli import tables
from stn_export.cli.tables import Table, visible

WIDTHS = (60, 80, 120, 200, None)  # None is a pipe
draw = tables.draw


def rendered(made: Table, width: int | None) -> str:
    """As a terminal of that width shows it, or a pipe."""
    target = Console(
        file=io.StringIO(), width=width or tables.ENDLESS, force_terminal=width is not None, color_system=None
    )
    draw(made, target)
    return target.file.getvalue()


def lost(made: Table, text: str) -> Counter[str]:
    """Characters of the title, of cells in columns that are said to be there, or of the names of others, not shown."""
    named = squeezed(text.partition("columns hidden: ")[2])
    places = [place for place, column in enumerate(made.columns) if not column or squeezed(column) not in named]
    said = [row[place] for row in (made.columns, *made.plain()) for place in places]
    others = [column for place, column in enumerate(made.columns) if place not in places]
    wanted = squeezed("".join([visible(made.title), *said, *others]))
    return Counter(wanted) - Counter(squeezed(text))


def squeezed(text: str) -> str:
    """Without what stands between words and lines."""
    return "".join(text.split())


def draw_at_every_width(made: Table, target: Console) -> None:
    """Draw it where it was to be drawn, once nothing is lost elsewhere either."""
    for width in WIDTHS:
        text = rendered(made, width)
        assert not lost(made, text), f"{width} columns:\n{text}"
        assert width is None or max(map(len, text.splitlines())) <= width, text
    draw(made, target)
