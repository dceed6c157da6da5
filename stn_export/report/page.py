"""Define the parts of a page (sections of paragraphs, tables and figures) and the content of a report."""

import base64
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from urllib.parse import quote

import msgspec
from matplotlib.figure import Figure

from stn_export.cli import NONE, markdown
from stn_export.cli.tables import NUMBER
from stn_export.onnx_graph.calls import HowToCall
from stn_export.report.charts import MOST_LINES, Chart
from stn_export.report.drawing import to_png, to_svg
from stn_export.results.choice import Marks, Portability, Shipped, legend
from stn_export.results.text import percent, sentence
from stn_export.run.records import Check, GridPixels, Number, Timing
from stn_export.run.schemas import Difference, ModelComparison, Trained

MANY = 8  # a table with at least this many rows can be filtered


@dataclass(frozen=True)
class Cell:
    """Text with a ``kind`` that has a colour (``good``, ``bad``), and further details in ``title``."""

    text: str
    kind: str = ""
    title: str = ""


def cell(content: "str | Cell") -> Cell:
    """Return text as a cell."""
    return content if isinstance(content, Cell) else Cell(content)


@dataclass(frozen=True)
class Table:
    """Rows that a reader can sort and filter; ``note`` explains the columns, ``order`` says how they are sorted.

    A ``folded`` block shows its title only, until a reader opens it. Of the columns after the first of a ``pairwise``
    one, a reader chooses two, and sees how they compare.
    """

    title: str
    columns: Sequence[str]
    cells: Sequence[Sequence[str | Cell]]
    note: str = ""
    heading: bool = True
    order: str = ""
    folded: bool = False
    pairwise: bool = False

    kind = "table"

    @cached_property
    def rows(self) -> list[list[Cell]]:
        """Return the rows as cells."""
        return [list(map(cell, row)) for row in self.cells]

    @property
    def explained(self) -> str:
        """Return the note and the order of the rows, as one paragraph."""
        order = sentence(f"Rows: {self.order}") if self.order and len(self.cells) > 1 else ""
        return " ".join(filter(None, (order, self.note)))

    @property
    def filtered(self) -> bool:
        """Return whether it has enough rows for a filter."""
        return len(self.cells) >= MANY

    @cached_property
    def sides(self) -> list[str]:
        """Return each column's alignment: ``number`` for right, ``text`` for left."""
        return [
            "number" if index and all(NUMBER.match(row[index].text) for row in self.rows) else "text"
            for index in range(len(self.columns))
        ]

    @property
    def markdown(self) -> str:
        """Return the table in Markdown, without its title."""
        lines = [self.columns, ["--:" if side == "number" else "---" for side in self.sides]]
        lines += [
            [f"{cell.text}: {cell.title}" if cell.kind == "bad" and cell.title else cell.text for cell in row]
            for row in self.rows
        ]
        return "\n".join("| " + " | ".join(map(markdown, line)) + " |" for line in lines)


@dataclass(frozen=True)
class Text:
    """A paragraph; ``note`` is in small type, ``warning`` in a box."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Code:
    """Lines of code below their ``title``; ``language`` is the name for Markdown's fences."""

    title: str
    language: str
    text: str

    kind = "code"


@dataclass(frozen=True)
class Picture:
    """A chart, or a matplotlib figure; ``text`` describes the latter for readers who do not see it."""

    name: str
    drawn: Chart | Figure
    text: str = ""
    folded: bool = False

    kind = "picture"

    @property
    def said(self) -> str:
        """Return its description in one sentence."""
        return self.drawn.text if isinstance(self.drawn, Chart) else self.text

    @property
    def title(self) -> str:
        """Return the title shown above it."""
        return self.drawn.title if isinstance(self.drawn, Chart) else self.text

    @property
    def figures(self) -> Table | None:
        """Return what it draws as a table, where no other table of the page holds that."""
        figures = self.drawn.figures if isinstance(self.drawn, Chart) else None
        if figures is None:
            return None
        title, note = f"In figures: {self.title}", legend(*(text for row in figures.rows for text in row))
        return Table(title, figures.columns, figures.rows, note and sentence(note), order=figures.order, folded=True)

    @property
    def lines(self) -> list[str]:
        """Return the lines that a reader may show and hide, where there are too many to draw all."""
        return self.drawn.lines if isinstance(self.drawn, Chart) else []

    @property
    def most_lines(self) -> int:
        """Return how many lines are drawn at first."""
        return min(MOST_LINES, len(self.lines))

    @cached_property
    def png(self) -> bytes:
        """Return it as a PNG, for Markdown."""
        return to_png(self.drawn) if isinstance(self.drawn, Chart) else figure_png(self.drawn)

    @cached_property
    def svg(self) -> str:
        """Return it as an SVG, for print and without scripts; empty for a matplotlib figure."""
        return to_svg(self.drawn) if isinstance(self.drawn, Chart) else ""

    @property
    def data(self) -> str:
        """Return the PNG as a data URL."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()

    @property
    def spec(self) -> str:
        """Return the Vega-Lite JSON for a script element; empty for a matplotlib figure."""
        if not isinstance(self.drawn, Chart):
            return ""
        return json.dumps(self.drawn.spec, separators=(",", ":")).replace("<", "\\u003c")

    @property
    def logarithmic(self) -> bool:
        """Return whether it has a logarithmic scale, which the reader may make linear."""
        return '"type":"log"' in self.spec


Block = Table | Text | Picture | Code


@dataclass
class Section:
    """A chapter of the page, with its anchor."""

    id: str
    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def pictures(self) -> list[Picture]:
        """Return the section's figures."""
        return [block for block in self.blocks if isinstance(block, Picture)]


@dataclass(frozen=True)
class Page:
    """A whole page; ``card`` is the summary at its top, ``call`` how the file to deploy is called."""

    title: str
    sections: Sequence[Section]
    card: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    lead: str = ""
    call: HowToCall | None = None

    @property
    def address(self) -> str:
        """Return the link to the file that ``call`` calls, relative to the page; no name makes it anything else."""
        return f"./{quote(self.call.file)}" if self.call else ""


def figure_png(figure: Figure) -> bytes:
    """Return a matplotlib figure as a PNG without dates or versions in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, dpi=160)
    return buffer.getvalue()


def number(value: float | None, form: str) -> str:
    """Format a number; a dash for None."""
    return NONE if value is None else format(value, form)


def share(value: float | None) -> str:
    """Format a share in percent; a dash for None."""
    return NONE if value is None else percent(value)


def minus(text: str) -> str:
    """Replace hyphens by minus signs."""
    return text.replace("-", "−")


def signed(value: float) -> str:
    """Format a number with its sign and two decimals."""
    return minus(f"{value:+.2f}")


# Content of a report.


@dataclass(frozen=True)
class ParityRow:
    """A check and its figures in the parity table: largest errors of grids (pixels) and outputs.

    ``pixels`` are the largest mean and the largest worst grid error of any site over the examples.
    """

    check: Check
    grid: Number
    output: Number
    pixels: GridPixels

    @property
    def name(self) -> str:
        """The artifact with its network."""
        return f"{self.check.network}/{self.check.artifact}"

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """A sort key: equal, within bounds, failed; of each the smallest error of the outputs first."""
        full = self.check.precision == "fp32"
        return not self.check.passed, not full, math.inf if self.output is None else self.output

    def as_dict(self) -> dict:
        """Return it for ``report.json``, with the comparisons as a count."""
        shown = {"grid": self.grid, "output": self.output, "pixels": msgspec.to_builtins(self.pixels)}
        return self.check.as_dict() | shown | {"comparisons": len(self.check.comparisons)}


@dataclass(frozen=True)
class SiteRow:
    """Largest errors by place of a lowering (or format; with any precision below float32) in a runner."""

    lowering: str
    runner: str
    errors: dict[str, Number]


@dataclass(frozen=True)
class SiteTable:
    """A network's rows; ``places`` are its sites and outputs for which there are errors."""

    network: str
    rows: list[SiteRow]
    places: list[str]

    @property
    def ranked(self) -> list[SiteRow]:
        """The rows, the smallest error at the last place first, unknown ones last."""
        last = self.places[-1]
        return sorted(self.rows, key=lambda row: math.inf if (error := row.errors.get(last)) is None else error)


@dataclass(frozen=True)
class NetworkRow:
    """The manifest's facts about a network; of its sites sizes are text: height×width of the image, and of the grid."""

    name: str
    label: str
    role: str
    note: str
    parameters: int
    multiply_adds: int
    examples: str
    inputs: list[str]
    outputs: list[str]
    sites: list[dict]
    refused: Mapping[str, str]


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation, median, and the 5 % and 95 % quantiles of some values."""

    mean: float
    deviation: float
    low: float
    median: float
    high: float
    label: str


@dataclass(frozen=True)
class LearnedSite:
    """What a sampler looks at: the spread of parts of theta or the grid; ``warped`` and ``charts`` name figures."""

    title: str
    network: str
    site: str
    examples: int
    warped: str
    charts: tuple[str, ...]
    parts: dict[str, Spread]

    def as_dict(self) -> dict:
        """Return it for ``report.json``, without figures that there are not."""
        return {name: value for name, value in asdict(self).items() if name not in ("warped", "charts") or value}


@dataclass(frozen=True)
class TrainedRow:
    """A network of a training in the table of trainings."""

    training: ModelComparison
    network: str
    model: Trained

    def as_dict(self) -> dict:
        """Return it for ``report.json``, with what all networks of the training share."""
        shared = ("title", "dataset", "recipe", "epochs", "precision", "measure")
        facts = {name: getattr(self.training, name) for name in shared}
        return facts | asdict(self.model) | {"network": self.network}


@dataclass(frozen=True)
class GainRow:
    """The transformer's gain over a network of a training."""

    training: ModelComparison
    network: str
    difference: Difference

    def as_dict(self) -> dict:
        """Return it for ``report.json``, with the training's title."""
        return asdict(self.difference) | {"title": self.training.title, "network": self.network}


@dataclass(frozen=True)
class Line:
    """A program on a device and its timings side by side, by column; ``placement``: where CUDA would run its nodes."""

    device: str
    network: str
    role: str
    artifact: str
    runner: str
    sha256: str
    cells: dict[str, Timing] = field(default_factory=dict)
    placement: Mapping | None = None


@dataclass(frozen=True)
class SideBySide:
    """A table of timings: a line per program, the network under test first."""

    columns: Sequence[str] = ()
    lines: Sequence[Line] = ()


@dataclass(frozen=True)
class BenchTables:
    """Timings against the plain network (``ours`` against ``other``), against other baselines, and of one example."""

    costs: SideBySide = SideBySide()
    against: SideBySide = SideBySide()
    single: SideBySide = SideBySide()
    ours: str = ""
    other: str = ""

    def as_dict(self) -> dict:
        """Return them for ``report.json``."""
        content = msgspec.to_builtins(self)
        content["costs"] |= {name: content.pop(name) for name in ("ours", "other")}
        for line in (*content["against"]["lines"], *content["single"]["lines"]):
            del line["placement"]  # which is of overheads alone
        return content


@dataclass
class Report:
    """The content for the templates; ``subject`` and ``plain`` are the labels of those networks, if they exist."""

    name: str
    subject: str = ""
    plain: str = ""
    card: list[tuple[str, str]] = field(default_factory=list)  # see answer.card
    answer: dict = field(default_factory=dict)  # the same for a script
    warnings: list[str] = field(default_factory=list)
    networks: list[NetworkRow] = field(default_factory=list)
    training: list[TrainedRow] = field(default_factory=list)  # a row per network and setting
    gains: list[GainRow] = field(default_factory=list)  # a row per paired difference
    verdicts: list[str] = field(default_factory=list)  # a sentence on the gains per run
    learned: list[LearnedSite] = field(default_factory=list)  # an entry per site
    unshown: list[str] = field(default_factory=list)  # sites without an entry
    parity: list[ParityRow] = field(default_factory=list)
    sites: list[SiteTable] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)
    differing: dict[str, str] = field(default_factory=dict)  # sentences by figure
    portability: Portability = field(default_factory=dict)
    bench: BenchTables | None = None  # None without timings
    calls: list[HowToCall] = field(default_factory=list)  # of the first network's files
    call: HowToCall | None = None  # of the file to deploy
    environment: dict = field(default_factory=dict)
    figures: dict[str, Chart | Figure] = field(default_factory=dict)
    cards: dict[str, dict[str, str]] = field(default_factory=dict)  # by run, if several are shown side by side
    timings: list[Timing] = field(default_factory=list)
    shipped: dict[str, Shipped] = field(default_factory=dict)  # by device
    marks: Marks = field(default_factory=lambda: Marks([]))  # of figures

    @property
    def title(self) -> str:
        """Return the report's title."""
        about = f"{self.subject} against {self.plain}" if self.plain else self.subject
        return f"{about[:1].upper()}{about[1:]}: {self.name}"

    def pictures(self, *names: str, folded: bool = False) -> Iterator[Picture]:
        """Yield the figures with these names or prefixes, in the order of the names."""
        for name in names:
            for figure_name, drawn in self.figures.items():
                if figure_name == name or figure_name.startswith(f"{name}-"):
                    yield Picture(figure_name, drawn, folded=folded)

    def as_dict(self) -> dict:
        """Convert to JSON-ready values: everything but the figures and the single comparisons."""
        left_out = ("figures", "timings", "shipped", "marks", "call")
        content = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in left_out}
        content |= {
            "training": [row.as_dict() for row in self.training],
            "gains": [row.as_dict() for row in self.gains],
        }
        content |= {"parity": [row.as_dict() for row in self.parity], "networks": list(map(asdict, self.networks))}
        content |= {"learned": [row.as_dict() for row in self.learned]}
        content |= {"sites": list(map(asdict, self.sites)), "calls": list(map(asdict, self.calls))}
        return content | {"bench": self.bench.as_dict() if self.bench else {}}
