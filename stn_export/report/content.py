"""The content of a report, between the functions that gather it and the templates that show it."""

from dataclasses import dataclass, field, fields

from matplotlib.figure import Figure


@dataclass
class Report:
    """What the templates show; ``subject`` and ``plain`` are the labels of those networks, where there are such."""

    name: str
    subject: str = ""
    plain: str = ""
    summary: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    networks: list[dict] = field(default_factory=list)
    training: list[dict] = field(default_factory=list)  # a row each network and setting
    gains: list[dict] = field(default_factory=list)  # a row each paired difference
    learned: list[dict] = field(default_factory=list)  # an entry each site
    unshown: list[str] = field(default_factory=list)  # sites that have none
    parity: list[dict] = field(default_factory=list)
    sites: list[dict] = field(default_factory=list)  # tables, see report.parity.site_tables
    unavailable: dict[str, str] = field(default_factory=dict)
    differing: dict[str, str] = field(default_factory=dict)  # a sentence by figure
    reduced: list[dict] = field(default_factory=list)
    portability: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)
    advice: list[list[str]] = field(default_factory=list)  # a paragraph in parts for each device
    bench: dict[str, dict] = field(default_factory=dict)  # tables, see report.bench.tables
    environment: dict = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What it is about."""
        about = f"{self.subject} against {self.plain}" if self.plain else self.subject
        return f"{about[:1].upper()}{about[1:]}: {self.name}"

    def has(self, figure: str) -> bool:
        """Whether any parity row knows it."""
        return any(row[figure] is not None for row in self.parity)

    def as_dict(self) -> dict:
        """JSON-ready: everything but the figures and the single comparisons."""
        content = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "figures"}
        counted = ("parity", "reduced")
        return content | {
            name: [row | {"comparisons": len(row["comparisons"])} for row in content[name]] for name in counted
        }
