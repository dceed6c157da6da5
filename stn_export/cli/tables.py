"""Print tables: all columns in a pipe, on a terminal those that fit.

A process prints in one format: a table for people, or JSON, Markdown or CSV for a program. In the latter cases
everything that is not a table goes to standard error.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Drawn
from rich.text import Text

FORMS = ("table", "json", "markdown", "csv")
GAP = 2  # between columns
NARROW = 40  # below this width numbers may be folded too
FOLDED = 28  # least width of a text column, unless its text is shorter
ENDLESS = 100_000  # width in a pipe
UNSEEN = re.compile(  # control and format characters, line separators, surrogates, fillers; not tabs
    r"[\x00-\x08\x0a-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e"
    r"\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
MARKS = re.compile(r"[\\`*\[\]|$]")  # what Markdown reads as code, emphasis, a link, a column or a formula
FORMULA = re.compile(r"[=+\-@\t\r](?![\d.,]+(e[+-]?\d+)?$)")  # what starts a formula in a spreadsheet, except numbers
NUMBER = re.compile(r"[-+−±≤]?\d|–?$")


@dataclass
class Output:
    """How this process prints: ``brief`` leaves out everything but cards, ``tables`` counts the CSV tables so far."""

    form: str = "table"
    brief: bool = False
    tables: int = 0


OUTPUT = Output()
Cell = str | Text  # plain text, or styled


def visible(text: object) -> str:
    """Escape control and invisible characters, line breaks and changes of direction, so that text stays one line."""
    return UNSEEN.sub(lambda match: match.group().encode("unicode_escape", "backslashreplace").decode(), str(text))


def by(shape: Iterable[object]) -> str:
    """Format a shape for people: ``N×3×32×32``."""
    return "×".join(map(str, shape)) or "scalar"


def normalisation(mean: Sequence[float], std: Sequence[float]) -> str:
    """Format the conversion of image bytes to input values: ``(x / 255 - 0.5) / 0.5``."""
    figures = (", ".join(f"{value:g}" for value in values) for values in (mean, std))
    return "(x / 255 - {}) / {}".format(*(f"({figure})" if "," in figure else figure for figure in figures))


class Markdown(str):
    """Trusted text that is already Markdown; in a table only ``|`` is escaped."""


def markdown(text: object) -> str:
    """Escape text for Markdown: one line without HTML, links, images or formulas, safe inside a table cell."""
    if isinstance(text, Markdown):
        return text.replace("|", r"\|")
    marked = MARKS.sub(lambda match: f"\\{match.group()}", visible(text))
    return marked.replace("&", "&amp;").replace("<", "&lt;")


def csv_cell(text: object) -> str:
    """Escape text for CSV: an apostrophe precedes what a spreadsheet would read as a formula."""
    shown = visible(text)
    return f"'{shown}" if FORMULA.match(shown) else shown


def markdown_table(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table, an empty line last."""
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(map(markdown, line))} |" for line in lines] + [""]


@dataclass(frozen=True)
class Table:
    """A table; ``drop`` lists the columns that a narrow terminal leaves out, the first ones first."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    drop: Sequence[str] = ()

    def plain(self) -> list[list[str]]:
        """Return the cells as escaped text."""
        return [[visible(cell) for cell in row] for row in self.rows]

    def widths(self) -> dict[str, int]:
        """Return the width of each column in full, in characters."""
        cells = [self.columns, *self.plain()]
        return {column: max(cell_len(row[index]) for row in cells) for index, column in enumerate(self.columns)}

    def least(self) -> dict[str, int]:
        """Return the least width of each column: full for numbers, which are never folded, else at most ``FOLDED``."""
        plain = self.plain()
        numbers = {column: all(NUMBER.match(row[index]) for row in plain) for index, column in enumerate(self.columns)}
        return {column: width if numbers[column] else min(width, FOLDED) for column, width in self.widths().items()}

    def shown(self, width: int) -> list[str]:
        """Return the columns that fit into ``width``, or all but ``drop`` where even those do not fit."""
        least = self.least()
        for column in self.drop:
            if sum(least.values()) + GAP * len(least) <= width:
                break
            least.pop(column, None)
        return list(least)

    def drawn(self, width: int, boxed: bool) -> Drawn:
        """Build the table for rich: numbers right-aligned, long text folded over several lines."""
        drawn = Drawn(
            title=Text(visible(self.title)),
            title_justify="left",
            box=box.SIMPLE_HEAD if boxed else None,
            pad_edge=False,
            padding=(0, GAP - boxed, 0, 0),
        )
        plain, shown = self.plain(), self.shown(width)
        places = [self.columns.index(column) for column in shown]
        for column, place in zip(shown, places, strict=True):
            number = place > 0 and all(NUMBER.match(row[place]) for row in plain)
            drawn.add_column(
                Text(visible(column)),
                justify="right" if number else "left",
                overflow="fold",
                no_wrap=number and width >= NARROW,
            )
        for row in self.rows:
            drawn.add_row(*(_shown(row[place]) for place in places))
        return drawn


def _shown(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(visible(cell))


def as_json(table: Table) -> str:
    """Format a table as one line of JSON: the title, and rows as objects by column."""
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.plain()]
    return json.dumps({"title": table.title.strip(), "rows": rows}, ensure_ascii=False) + "\n"


def as_markdown(table: Table) -> str:
    """Format a table as Markdown, its title above."""
    lines = markdown_table(table.columns, table.plain())
    return "\n".join(["", f"**{markdown(table.title.strip())}**", "", *lines])


def as_csv(table: Table) -> str:
    """Format a table as CSV: a header, then the rows."""
    text = io.StringIO()
    lines = [table.columns, *table.plain()]
    csv.writer(text, lineterminator="\n").writerows([csv_cell(cell) for cell in line] for line in lines)
    return text.getvalue()


WRITERS = {"json": as_json, "markdown": as_markdown, "csv": as_csv}


def console(stderr: bool = False) -> Console:
    """Make a console on standard output or standard error; plain and of unlimited width where it is no terminal."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else ENDLESS
    # a notebook's stream is written to as a pipe is: rich's own way there displays HTML, from whatever thread
    return Console(file=stream, width=width, highlight=False, soft_wrap=not stream.isatty(), force_jupyter=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], drop: Sequence[str] = ()) -> None:
    """Print a table in this process's format; ``drop`` lists the columns that a narrow terminal leaves out."""
    made = Table(title, columns, rows, drop)
    if OUTPUT.form != "table":
        if OUTPUT.form == "csv":  # CSV has no titles
            sys.stdout.write("\n" * (OUTPUT.tables > 0))
            OUTPUT.tables += 1
        sys.stdout.write(WRITERS[OUTPUT.form](made))
    elif not OUTPUT.brief:
        draw(made, console())


def draw(made: Table, target: Console) -> None:
    """Print a table on a console, and name the columns that did not fit."""
    with target.capture() as drawn:
        target.print(made.drawn(target.width, target.is_terminal))
    lines = drawn.get().splitlines()
    target.file.write("".join((line if target.is_terminal else line.rstrip()) + "\n" for line in lines))
    if left_out := [column for column in made.columns if column not in made.shown(target.width)]:
        note = f"columns hidden: {', '.join(left_out)}. A wider terminal, a pipe and --format show them."
        target.print(Text(visible(note), "dim"))
