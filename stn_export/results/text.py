"""Figures and verdicts in words, the same wherever they are shown."""

from collections.abc import Mapping, Sequence

from stn_export.cli import NONE
from stn_export.run.records import Check, Timing

DIGITS = (3, 4, 5)  # of an interval's ends, until they read differently
NAMED = 3  # of what was left out, so many are named


def verdict_words(precision: str, passed: bool, agreement: float | None = None) -> str:
    """What a check came to: only full precision is equal, the others keep to bounds of their own."""
    if not passed:
        return "FAILED"
    if precision == "fp32":
        return "equal"
    agreed = "" if agreement is None or agreement != agreement else f" ({percent(agreement)} agree)"
    return f"within {precision}'s bounds{agreed}"


def percent(share: float) -> str:
    """A share with two decimals."""
    return f"{100 * share:.2f} %"


def span(low: float, high: float, digits: int = DIGITS[0]) -> str:
    """An interval whose ends read differently; where they hardly differ, how far it reaches."""
    for count in range(digits, DIGITS[-1] + 1):
        ends = [significant(value, count) for value in (low, high)]
        if ends[0] != ends[1]:
            return " to ".join(ends)
    return f"±{50 * (high - low) / high:.1g} %" if high else significant(high, digits)


def significant(value: float, digits: int = DIGITS[0]) -> str:
    """So many significant digits, never fewer than all whole ones, thousands with commas."""
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:,.0f}" if whole >= digits else f"{value:#.{digits}g}".rstrip(".")


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """Join names, at most ``NAMED`` of them, and say how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return separator.join(names[:NAMED]) + more


def counted(count: int, unit: str) -> str:
    """Return a count with its unit, in the plural where it must be."""
    return f"{count:,} {unit}{'s' * (count != 1)}"


def row_name(row: Timing | Check) -> str:
    """Return the artifact and the runner of a row or check."""
    return f"{row.artifact} in {row.runner}"


def speed_ratio(ratio: tuple[float, float, float]) -> str:
    """Return a ratio with the ends of its interval: ``1.81 × (1.80 to 1.82)``."""
    middle, low, high = ratio
    return f"{significant(middle)} × ({span(low, high)})"


def times(multiple: float | None) -> str:
    """How many times something is something else, of any size; a dash where that is not known."""
    if multiple is None:
        return NONE
    return f"{multiple:.1f}" if multiple < 1e5 else f"{multiple:.0e}"


def passed_words(passed: int, count: int) -> str:
    """How every check ends."""
    return f"{passed} of {count} passed"


def by_reason(reasons: Mapping[str, str], kind: str = "runner") -> list[str]:
    """What was left out, a line a reason: ``17 CUDA runners: no GPU here``; a few are named."""
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    lines = []
    for reason, names in sorted(groups.items(), key=lambda group: len(group[1])):
        where = "CUDA " if all("cuda" in name for name in names) else ""
        told = f"{len(names)} {where}{kind}s" if len(names) > NAMED else ", ".join(names)
        lines.append(f"{told}: {reason}")
    return lines
