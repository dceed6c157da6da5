"""What ``make mutants`` found, into benchmarks/results/mutants.json: ``python -m tests.mutants``.

All mutants take hours, so that a number of each module is drawn, always the same ones; ``--draw 20`` prints their names
for mutmut. The score is then an estimate with an interval. Why a mutant that survives changes nothing stands in
mutants.toml, by hand, under the line that it makes.
"""

import argparse
import json
import math
import random
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.tools.kept import KEPT
from stn_export import cli
from stn_export.errors import CheckFailedError, UserError
from stn_export.run.store import write_json

SCHEMA, WANTED = "stn_export/mutants/2", 0.92
TIMED_OUT = dict.fromkeys((-24, 24, 36), "timed out")
STATES: dict[int | None, str] = {0: "survived", 1: "killed", 3: "killed", 33: "untested"} | TIMED_OUT
ALIVE = ("survived", "untested")
REASONS = Path(__file__).parent / "mutants.toml"
FOLDER = Path("mutants")  # where mutmut keeps what it made and found


@dataclass(frozen=True)
class Survivor:
    """A mutant that nothing killed, with the reason why it may live; empty where nobody wrote one."""

    module: str
    state: str
    was: str
    now: str
    why: str


@dataclass(frozen=True)
class Module:
    """The mutants of one module, and the state of those that were drawn, by name."""

    mutants: int
    states: dict[str, str]

    @property
    def killed(self) -> float:
        """The share of those drawn that did not survive."""
        return sum(state not in ALIVE for state in self.states.values()) / len(self.states)

    @property
    def variance(self) -> float:
        """The variance of that share as an estimate of all: drawn without putting back, one more of either kind."""
        drawn = len(self.states)
        share = (self.killed * drawn + 1) / (drawn + 2)
        return share * (1 - share) / drawn * (1 - drawn / self.mutants)


def made() -> dict[str, dict[str, int | None]]:
    """Every module's mutants, and the exit code of the tests where they were run."""
    return {
        path.relative_to(FOLDER).as_posix().removesuffix(".meta"): json.loads(path.read_text(encoding="utf-8"))[
            "exit_code_by_key"
        ]
        for path in sorted(FOLDER.rglob("*.meta"))
    }


def drawn(mutants: Sequence[str], number: int) -> list[str]:
    """That many mutants of a module, the same ones each time; all of them where the number is 0 or more than all."""
    return random.Random(0).sample(sorted(mutants), number) if 0 < number < len(mutants) else sorted(mutants)


def score(modules: dict[str, Module]) -> tuple[float, float, float]:
    """The share of all mutants that are killed, and its 95 % interval: each module counts by its mutants."""
    total = sum(module.mutants for module in modules.values())
    weights = {name: module.mutants / total for name, module in modules.items()}
    share = sum(weights[name] * module.killed for name, module in modules.items())
    reach = 1.96 * math.sqrt(sum(weights[name] ** 2 * module.variance for name, module in modules.items()))
    return share, max(0.0, share - reach), min(1.0, share + reach)


def change_of(mutant: str) -> tuple[str, str]:
    """The line that a mutant replaces, and the one that it makes."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant  # only where mutants are made

    lines = [line for line in get_diff_for_mutant(mutant).splitlines() if line[:3] not in ("---", "+++")]
    changed = (" ".join(line[1:].strip() for line in lines if line[:1] == sign) for sign in "-+")
    return next(changed), next(changed)


def survivors(modules: dict[str, Module], reasons: dict[str, str]) -> list[Survivor]:
    """Every mutant that nothing killed, by module."""
    alive = [(name, *each) for name, module in modules.items() for each in module.states.items() if each[1] in ALIVE]
    changes = {mutant: change_of(mutant) for _, mutant, _ in alive}
    return [
        Survivor(name, state, *changes[mutant], reasons.get(changes[mutant][1], "")) for name, mutant, state in alive
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, keep, and fail where too few were killed or one lives without a reason.

    Raises:
        CheckFailedError: naming what is wrong.
        UserError: where not all mutants were tried.
    """
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=0, help="mutants of each module that are drawn; 0 for all")
    parser.add_argument("--draw", action="store_true", help="print the names of those drawn, and stop")
    options = parser.parse_args(arguments)
    found = made()
    chosen = {module: drawn(list(codes), options.sample) for module, codes in found.items()}
    if options.draw:
        sys.stdout.write("\n".join(name for names in chosen.values() for name in names) + "\n")
        return
    left = sum(found[module][name] is None for module, names in chosen.items() for name in names)
    if left or not found:
        raise UserError(f"{left} mutants were not tried yet", "run 'make mutants' again to go on")
    modules = {
        module: Module(len(found[module]), {name: STATES.get(found[module][name], "unknown") for name in names})
        for module, names in chosen.items()
        if names
    }
    report(modules, options.sample)


def report(modules: dict[str, Module], sample: int) -> None:
    """Keep what was found, and say it.

    Raises:
        CheckFailedError: where too few were killed, or one lives without a reason.
    """
    share, low, high = score(modules)
    left = survivors(modules, tomllib.loads(REASONS.read_text(encoding="utf-8")))
    counts = {
        name: {"mutants": module.mutants, "drawn": len(module.states), **Counter(module.states.values())}
        for name, module in modules.items()
    }
    content = {
        "command": f"make mutants SAMPLE={sample}",
        "score": round(share, 4),
        "interval": [round(low, 4), round(high, 4)],
        "modules": counts,
        "left": [asdict(each) for each in left],
    }
    write_json(KEPT / "mutants.json", SCHEMA, content)
    tried = sum(len(module.states) for module in modules.values())
    total = sum(module.mutants for module in modules.values())
    cli.say(f"{tried:,} of {total:,} mutants tried: {share:.1%} killed ({low:.1%} to {high:.1%})")
    unknown = [f"{each.module}: {each.now}" for each in left if not each.why]
    if share < WANTED or unknown:
        lines = [f"{share:.1%} killed, {WANTED:.0%} wanted; {len(unknown)} live and {REASONS.name} does not say why"]
        raise CheckFailedError("\n".join([*lines, *unknown]))


if __name__ == "__main__":
    sys.exit(cli.run(main))
