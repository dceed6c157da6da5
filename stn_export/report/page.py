"""What a page is made of: sections of paragraphs, tables and pictures, and the content that they show."""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property

import msgspec
from matplotlib.figure import Figure

from stn_export.cli import NONE, markdown
from stn_export.cli.tables import NUMBER
from stn_export.onnx_graph.calls import HowToCall
from stn_export.report.charts import Chart
from stn_export.report.drawing import to_png, to_svg
from stn_export.results.choice import Marks, Portability, Shipped
from stn_export.results.text import percent
from stn_export.run.records import Check, GridPixels, Number, Timing

MANY = 8  # rows from which on a table can be filtered


@dataclass(frozen=True)
class Cell:
    """Text, of a ``kind`` that has a colour (``good``, ``bad``), and more to say of it in ``title``."""

    text: str
    kind: str = ""
    title: str = ""


def cell(content: "str | Cell") -> Cell:
    """Text as a cell."""
    return content if isinstance(content, Cell) else Cell(content)


@dataclass(frozen=True)
class Table:
    """Rows that a reader can sort and filter; ``note`` says what the columns are."""

    title: str
    columns: Sequence[str]
    cells: Sequence[Sequence[str | Cell]]
    note: str = ""
    heading: bool = True

    kind = "table"

    @cached_property
    def rows(self) -> list[list[Cell]]:
        """Its cells."""
        return [list(map(cell, row)) for row in self.cells]

    @property
    def filtered(self) -> bool:
        """Whether it has so many rows that one looks for some."""
        return len(self.cells) >= MANY

    @cached_property
    def sides(self) -> list[str]:
        """The side that each column stands on: numbers right, words left."""
        return [
            "number" if index and all(NUMBER.match(row[index].text) for row in self.rows) else "text"
            for index in range(len(self.columns))
        ]

    @property
    def markdown(self) -> str:
        """Without its title."""
        lines = [self.columns, ["--:" if side == "number" else "---" for side in self.sides]]
        lines += [
            [f"{each.text}: {each.title}" if each.kind == "bad" and each.title else each.text for each in row]
            for row in self.rows
        ]
        return "\n".join("| " + " | ".join(map(markdown, line)) + " |" for line in lines)


@dataclass(frozen=True)
class Text:
    """A paragraph; ``note`` in small type, ``warning`` in a box."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Code:
    """Lines of a program, below their ``title``; ``language`` as Markdown's fences call it."""

    title: str
    language: str
    text: str

    kind = "code"


@dataclass(frozen=True)
class Picture:
    """A chart, or pixels that matplotlib laid out; ``text`` says what it shows to who does not see it."""

    name: str
    drawn: Chart | Figure
    text: str = ""

    kind = "picture"

    @property
    def said(self) -> str:
        """Its text, with the numbers."""
        return self.drawn.text if isinstance(self.drawn, Chart) else self.text

    @property
    def title(self) -> str:
        """Shown above."""
        return self.drawn.title if isinstance(self.drawn, Chart) else self.text

    @cached_property
    def png(self) -> bytes:
        """For Markdown."""
        return to_png(self.drawn) if isinstance(self.drawn, Chart) else figure_png(self.drawn)

    @cached_property
    def svg(self) -> str:
        """What is printed, and shown without a script."""
        return to_svg(self.drawn) if isinstance(self.drawn, Chart) else ""

    @property
    def data(self) -> str:
        """The pixels as an address."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()

    @property
    def spec(self) -> str:
        """What makes it interactive, for a script element; empty for pixels."""
        if not isinstance(self.drawn, Chart):
            return ""
        return json.dumps(self.drawn.spec, separators=(",", ":")).replace("<", "\\u003c")

    @property
    def logarithmic(self) -> bool:
        """Whether it has a scale that may be made linear."""
        return '"type":"log"' in self.spec


Block = Table | Text | Picture | Code


@dataclass
class Section:
    """A chapter with its address on the page."""

    id: str
    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def pictures(self) -> list[Picture]:
        """Its pictures."""
        return [block for block in self.blocks if isinstance(block, Picture)]


@dataclass(frozen=True)
class Page:
    """All of it; ``card`` is what it opens with."""

    title: str
    sections: Sequence[Section]
    card: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    lead: str = ""


def figure_png(figure: Figure) -> bytes:
    """A figure of matplotlib's without dates or versions in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, dpi=160)
    return buffer.getvalue()


def number(value: float | None, form: str) -> str:
    """A number, or a dash."""
    return NONE if value is None else format(value, form)


def share(value: float | None) -> str:
    """A share in per cent, or a dash."""
    return NONE if value is None else percent(value)


def minus(text: str) -> str:
    """With a minus that looks like one."""
    return text.replace("-", "−")


def signed(value: float) -> str:
    """With its sign."""
    return minus(f"{value:+.2f}")


# The content of a report, between the functions that gather it and the templates that show it.


@dataclass(frozen=True)
class ParityRow:
    """A check with what the parity table shows of it: worst errors of grids (pixels) and outputs.

    ``pixels`` are those of the site whose grid is worst over the examples.
    """

    check: Check
    grid: Number
    output: Number
    pixels: GridPixels

    def as_dict(self) -> dict:
        """Return it for ``report.json``, which counts the single comparisons."""
        shown = {"grid": self.grid, "output": self.output, "pixels": msgspec.to_builtins(self.pixels)}
        return self.check.as_dict() | shown | {"comparisons": len(self.check.comparisons)}


@dataclass(frozen=True)
class SiteRow:
    """Worst errors by place of a lowering (or format, with any precision below float32) in a runner."""

    lowering: str
    runner: str
    errors: dict[str, Number]


@dataclass(frozen=True)
class SiteTable:
    """A network's rows; ``places`` are its sites and outputs that they have errors of."""

    network: str
    rows: list[SiteRow]
    places: list[str]


@dataclass
class Report:
    """What the templates show; ``subject`` and ``plain`` are the labels of those networks, where there are such."""

    name: str
    subject: str = ""
    plain: str = ""
    card: list[tuple[str, str]] = field(default_factory=list)  # see answer.card
    answer: dict = field(default_factory=dict)  # the same for a script
    warnings: list[str] = field(default_factory=list)
    networks: list[dict] = field(default_factory=list)
    training: list[dict] = field(default_factory=list)  # a row each network and setting
    gains: list[dict] = field(default_factory=list)  # a row each paired difference
    verdicts: list[str] = field(default_factory=list)  # of gains, a sentence each run
    learned: list[dict] = field(default_factory=list)  # an entry each site
    unshown: list[str] = field(default_factory=list)  # sites that have none
    parity: list[ParityRow] = field(default_factory=list)
    sites: list[SiteTable] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)
    differing: dict[str, str] = field(default_factory=dict)  # a sentence by figure
    portability: Portability = field(default_factory=dict)
    bench: dict[str, dict] = field(default_factory=dict)  # tables, see report.bench.tables
    calls: list[HowToCall] = field(default_factory=list)  # of the first network's files
    environment: dict = field(default_factory=dict)
    figures: dict[str, Chart | Figure] = field(default_factory=dict)
    cards: dict[str, dict[str, str]] = field(default_factory=dict)  # by run, where several stand side by side
    timings: list[Timing] = field(default_factory=list)
    shipped: dict[str, Shipped] = field(default_factory=dict)  # by device
    marks: Marks = field(default_factory=lambda: Marks([]))  # of figures

    @property
    def title(self) -> str:
        """What it is about."""
        about = f"{self.subject} against {self.plain}" if self.plain else self.subject
        return f"{about[:1].upper()}{about[1:]}: {self.name}"

    def pictures(self, *names: str) -> Iterator[Picture]:
        """The charts whose names begin so, in the order of the names."""
        for name in names:
            for each, drawn in self.figures.items():
                if each == name or each.startswith(f"{name}-"):
                    yield Picture(each, drawn)

    def as_dict(self) -> dict:
        """JSON-ready: everything but the figures and the single comparisons."""
        left_out = ("figures", "timings", "shipped", "marks")
        content = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in left_out}
        parity, sites = [row.as_dict() for row in self.parity], list(map(asdict, self.sites))
        bench = msgspec.to_builtins(self.bench)
        return content | {"bench": bench, "parity": parity, "sites": sites, "calls": list(map(asdict, self.calls))}
