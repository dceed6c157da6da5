"""The content of a report, between the functions that gather it and the templates that show it."""

from dataclasses import dataclass, field, fields

from matplotlib.figure import Figure


@dataclass
class Report:
    """What the templates show."""

    name: str
    summary: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    training: list[dict] = field(default_factory=list)  # a row each model and setting
    gains: list[dict] = field(default_factory=list)  # a row each paired difference
    learned: list[dict] = field(default_factory=list)  # an entry each transformer
    parity: list[dict] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)
    differing: dict[str, str] = field(default_factory=dict)  # a sentence by figure
    reduced: list[dict] = field(default_factory=list)
    portability: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)
    advice: list[list[str]] = field(default_factory=list)  # a paragraph in parts for each device
    bench: dict[str, dict] = field(default_factory=dict)  # tables, see reporting.bench.tables
    environment: dict = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)

    def as_dict(self) -> dict:
        """JSON-ready: everything but the figures and the single comparisons."""
        content = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "figures"}
        return content | {"parity": [row | {"comparisons": len(row["comparisons"])} for row in self.parity]}
