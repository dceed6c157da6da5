"""Format figures and verdicts, the same everywhere."""

from collections.abc import Mapping, Sequence

from stn_export.cli import NONE
from stn_export.run.records import Check, Timing

DIGITS = (3, 4, 5)  # significant digits of an interval's ends, until they differ
NAMED = 3  # how many names a list shows


def verdict_words(precision: str, passed: bool, agreement: float | None = None) -> str:
    """Return the verdict of a check: equal for full precision only, within bounds for the others."""
    if not passed:
        return "FAILED"
    if precision == "fp32":
        return "equal"
    agreed = "" if agreement is None or agreement != agreement else f" ({percent(agreement)} agree)"
    return f"within {precision}'s bounds{agreed}"


def percent(share: float) -> str:
    """Format a share with two decimals."""
    return f"{100 * share:.2f} %"


def span(low: float, high: float, digits: int = DIGITS[0]) -> str:
    """Format an interval with as many digits as its ends need to differ; where they hardly do, its half-width in %."""
    for count in range(digits, DIGITS[-1] + 1):
        ends = [significant(value, count) for value in (low, high)]
        if ends[0] != ends[1]:
            return " to ".join(ends)
    return f"±{50 * (high - low) / high:.1g} %" if high else significant(high, digits)


def significant(value: float, digits: int = DIGITS[0]) -> str:
    """Format a number with so many significant digits, at least all whole ones, thousands with commas."""
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:,.0f}" if whole >= digits else f"{value:#.{digits}g}".rstrip(".")


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """Join at most ``NAMED`` names, and count the rest."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return separator.join(names[:NAMED]) + more


def counted(count: int, unit: str) -> str:
    """Format a count with its unit, in the plural where needed."""
    return f"{count:,} {unit}{'s' * (count != 1)}"


def row_name(row: Timing | Check) -> str:
    """Format the artifact and runner of a row or check."""
    return f"{row.artifact} in {row.runner}"


def speed_ratio(ratio: tuple[float, float, float]) -> str:
    """Format a ratio with the ends of its interval: ``1.81 × (1.80 to 1.82)``."""
    middle, low, high = ratio
    return f"{significant(middle)} × ({span(low, high)})"


def times(multiple: float | None) -> str:
    """Format a multiple of any size; a dash where it is None."""
    if multiple is None:
        return NONE
    return f"{multiple:.1f}" if multiple < 1e5 else f"{multiple:.0e}"


def sentence(text: str) -> str:
    """End a text with one full stop."""
    return f"{text.rstrip('.')}."


def passed_words(passed: int, count: int) -> str:
    """Format how many checks passed."""
    return f"{passed} of {count} passed"


def by_reason(reasons: Mapping[str, str], kind: str = "runner") -> list[str]:
    """Group what was left out by its reason, one line each: ``17 CUDA runners: no GPU here``; a few are named."""
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    lines = []
    for reason, names in sorted(groups.items(), key=lambda group: len(group[1])):
        where = "CUDA " if all("cuda" in name for name in names) else ""
        named = f"{len(names)} {where}{kind}s" if len(names) > NAMED else ", ".join(names)
        lines.append(f"{named}: {reason}")
    return lines
