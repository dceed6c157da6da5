"""The content of a report, between the functions that gather it and the templates that show it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields

import msgspec
from matplotlib.figure import Figure

from stn_export.answer.choice import Shipped
from stn_export.artifacts.records import Check, GridPixels, Number, Timing
from stn_export.comparison.disturbance import Marks
from stn_export.comparison.fastest import Portability
from stn_export.graphs.calls import HowToCall
from stn_export.report.charts import Chart
from stn_export.report.page import Picture


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
