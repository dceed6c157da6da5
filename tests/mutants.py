"""What ``make mutants`` found, into benchmarks/results/mutants.json: ``python -m tests.mutants``.

Why a mutant that survives changes nothing stands in mutants.toml, by hand, under the line that it makes.
"""

import json
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.tools.kept import KEPT
from stn_export import cli
from stn_export.errors import CheckFailedError, UserError
from stn_export.run.store import write_json

SCHEMA, WANTED = "stn_export/mutants/1", 0.92
STATES = {0: "survived", 1: "killed", 3: "killed", 33: "untested", -24: "timed out", 36: "timed out", 24: "timed out"}
REASONS = Path(__file__).parent / "mutants.toml"


def change_of(mutant: str) -> tuple[str, str]:
    """The line that a mutant replaces, and the one that it makes."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant  # only where mutants are made

    lines = [line for line in get_diff_for_mutant(mutant).splitlines() if line[:3] not in ("---", "+++")]
    changed = (" ".join(line[1:].strip() for line in lines if line[:1] == sign) for sign in "-+")
    return next(changed), next(changed)


def survivors(found: dict[str, dict], reasons: dict[str, dict[str, str]]) -> Iterator[dict]:
    """Every mutant that nothing killed, by module, with the reason why it may live."""
    for module, content in found.items():
        for mutant, code in content["exit_code_by_key"].items():
            if STATES.get(code) in ("survived", "untested"):
                was, now = change_of(mutant)
                why = reasons.get(module, {}).get(now, "")
                yield {"module": module, "state": STATES[code], "was": was, "now": now, "why": why}


def main() -> None:
    """Count, keep, and fail where too few were killed or one lives without a reason.

    Raises:
        CheckFailedError: naming what is wrong.
        UserError: where not all mutants were tried.
    """
    metas = sorted(Path("mutants").rglob("*.meta"))
    found = {
        path.relative_to("mutants").as_posix().removesuffix(".meta"): json.loads(path.read_text(encoding="utf-8"))
        for path in metas
    }
    counts = {
        module: Counter(STATES.get(code, "not tried") for code in content["exit_code_by_key"].values())
        for module, content in found.items()
    }
    total = sum(counts.values(), Counter())
    if total["not tried"] or not total:
        raise UserError(f"{total['not tried']} mutants were not tried yet", "run 'make mutants' again to go on")
    score = (total["killed"] + total["timed out"]) / total.total()
    left = list(survivors(found, tomllib.loads(REASONS.read_text(encoding="utf-8"))))
    content = {"command": "make mutants", "score": round(score, 4), "total": total, "modules": counts, "left": left}
    write_json(KEPT / "mutants.json", SCHEMA, content)
    cli.say(f"{score:.1%} of {total.total():,} mutants were killed; wrote {KEPT / 'mutants.json'}")
    unknown = [f"{each['module']}: {each['now']}" for each in left if not each["why"]]
    if score < WANTED or unknown:
        lines = [f"{score:.1%} killed, {WANTED:.0%} wanted; {len(unknown)} live and {REASONS.name} does not say why"]
        raise CheckFailedError("\n".join([*lines, *unknown]))


if __name__ == "__main__":
    sys.exit(cli.run(lambda _=None: main()))
