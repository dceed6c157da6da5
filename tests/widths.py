"""Whether a table loses a cell at some width. ``conftest`` asks it of every table that any test prints."""

import io

from rich.console import Console

from stn_export.cli import tables
from stn_export.cli.tables import Table

WIDTHS = (60, 80, 120, 200, None)  # None is a pipe
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
    named = text.partition("no room for: ")[2]
    shown = "".join(text.split())
    cells = [made.columns, *made.plain()]
    return [
        row[index]
        for row in cells
        for index, column in enumerate(made.columns)
        if column not in named and not all(piece in shown for piece in pieces(row[index], text))
    ]


def pieces(cell: str, text: str) -> list[str]:
    """The cell, or where it is folded the parts of it that stand on lines of their own."""
    if "".join(cell.split()) in "".join(text.split()):
        return []
    return cell.split() if " " in cell else [cell[:12]]


def draw_at_every_width(made: Table, target: Console) -> None:
    """Draw it where it was to be drawn, once nothing is lost elsewhere either."""
    for width in WIDTHS:
        text = rendered(made, width)
        assert lost(made, text) == [], (made.title, width)
        assert width is None or max(map(len, text.splitlines())) <= width, (made.title, width)
    draw(made, target)
