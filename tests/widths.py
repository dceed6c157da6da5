"""Whether a table loses a cell at some width. ``conftest`` asks it of every table that any test prints."""

import io

from rich.console import Console

from stn_export.cli import tables
from stn_export.cli.tables import Table

WIDTHS = (60, 80, 120, 200, None)  # None is a pipe
FOLDED = 12  # characters, beyond which a word may be folded
draw = tables.draw


def rendered(made: Table, width: int | None) -> str:
    """As a terminal of that width shows it, or a pipe."""
    target = Console(
        file=io.StringIO(), width=width or tables.ENDLESS, force_terminal=width is not None, color_system=None
    )
    draw(made, target)
    return target.file.getvalue()


def lost(made: Table, text: str) -> list[str]:
    """Cells that a reader cannot put together from what is shown, in columns that are said to be there."""
    named = squeezed(text.partition("no room for: ")[2])
    places = [place for place, column in enumerate(made.columns) if squeezed(column) not in named]
    cells = [row[place] for row in (made.columns, *made.plain()) for place in places]
    return [cell for cell in cells if not all(piece in squeezed(text) for piece in pieces(cell, text))]


def squeezed(text: str) -> str:
    """Without what stands between words and lines."""
    return "".join(text.split())


def pieces(cell: str, text: str) -> list[str]:
    """Nothing where the cell stands there whole; else its words, and of one that has to be folded the beginning."""
    if squeezed(cell) in squeezed(text):
        return []
    return [word if len(word) <= FOLDED else word[:FOLDED] for word in cell.split()]


def draw_at_every_width(made: Table, target: Console) -> None:
    """Draw it where it was to be drawn, once nothing is lost elsewhere either."""
    for width in WIDTHS:
        text = rendered(made, width)
        assert lost(made, text) == [], f"{width} columns:\n{text}"
        assert width is None or max(map(len, text.splitlines())) <= width, text
    draw(made, target)
