"""Validate the benchmarks themselves: `python -m benchmarks.tools.proof` (`make bench-proof`).

A/A: an artifact is compared with itself, loaded anew; the true ratio is 1. Planted: the same, but a share of the
measured time of each of our calls is added to it, so that the true ratio is known. Both are repeated many times, with
the same functions that time every paired comparison of `make bench`.
"""

import itertools
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.tools.kept import KEPT, PROOF_PREFIX, PROOF_SCHEMA, file_name, now
from stn_export import cli
from stn_export.bench.cases import Case, picked, takes
from stn_export.bench.plan import GRIDS, SHIPPED_SUBJECT, BenchGrid, Pick
from stn_export.bench.targets import Target, find_targets
from stn_export.bench.timing import interleave
from stn_export.config import DEFAULT_RUN
from stn_export.errors import CheckFailedError, UserError, require_choice
from stn_export.results.statistics import METHOD
from stn_export.run.environment import describe, resolve_device
from stn_export.run.store import write_json
from stn_export.runners import Step


@dataclass(frozen=True)
class Proof:
    """The plan of the validation: ``trials`` comparisons of an artifact with itself, as many per planted slowdown.

    It passes if at least ``holding`` intervals cover the true ratio (of intervals with 95 % coverage, 15 of 20 or fewer
    do so in one case of 400), no false verdict is off by more than ``METHOD.same``, no slowdown is called faster, and
    every slowdown of at least ``certain`` is detected. How often smaller ones are detected is reported.
    """

    trials: int = 20
    holding: int = 16
    planted: tuple[float, ...] = (0.03, 0.05, 0.15)
    certain: float = 0.15
    batches: tuple[int, ...] = (1, 64)
    runners: tuple[str, ...] = ("onnxruntime-{}", "openvino-{}", "eager-{}")  # by device, as far as available


PROOF = Proof()

COLUMNS = (
    *("target", "trial", "batch", "planted", "held", "found", "ratios", "interval"),
    *("disturbed blocks", "verdicts", ""),
)
DROP = ("disturbed blocks", "interval", "verdicts", "ratios", "planted")


def slowed(step: Step, share: float) -> Step:
    """Return the step on a clock that adds ``share`` of each call's own measured time to it.

    A real wait after the call would slow down the next one too, by an unknown amount; this is slower by exactly the
    share.
    """
    added = 0.0

    def run() -> object:
        nonlocal added
        started = step.clock()
        result = step()
        added += share * (step.clock() - started)
        return result

    return replace(step, run=run, clock=lambda: step.clock() + added)


def trial(case: Case, grid: BenchGrid, slowdown: float, seed: int) -> dict:
    """Compare a target with itself, with our side slower by ``slowdown``; ``planted`` is the true ratio."""

    def load(share: float) -> Step:
        return slowed(case.target.step(case.batch), share)  # on the very clock of its paired comparisons

    turns = interleave(lambda: load(slowdown), lambda: load(0.0), case.target.runner.device, grid, seed)
    return turns.hold().summary() | {"planted": 1 + slowdown}


def true_ratio(row: Mapping, slowdown: float) -> float:
    """Return the planted ratio; for older stored rows, whose slowdown was a real wait, the ratio that was requested."""
    return row.get("planted", 1 + slowdown)


def covered(rows: Iterable[Mapping], slowdown: float) -> int:
    """Count the intervals that cover the true ratio."""
    return sum(row["ratio_low"] <= true_ratio(row, slowdown) <= row["ratio_high"] for row in rows)


def misleads(row: dict) -> bool:
    """Return whether the verdict of an A/A trial is a difference of more than counts as the same."""
    return row["verdict"] in ("faster", "slower") and abs(row["ratio"] - 1) > METHOD.same


def judge(slowdown: float, rows: Sequence[dict]) -> tuple[int, bool]:
    """Count the intervals that cover 1, or the slowdowns detected, and return whether the method passes."""
    held = covered(rows, slowdown)
    known = not slowdown or all("planted" in row for row in rows)  # older trials used waits of unknown length
    enough = not known or held >= PROOF.holding * len(rows) / PROOF.trials
    if not slowdown:
        return held, enough and not any(map(misleads, rows))
    verdicts = [row["verdict"] for row in rows]
    found = verdicts.count("slower")
    return found, enough and "faster" not in verdicts and (slowdown < PROOF.certain or found == len(rows))


TRIALS = {"A/A": 0.0} | {f"planted {slowdown:.0%}": slowdown for slowdown in PROOF.planted}


def chosen_targets(run: Path, device: str, name: str | None) -> list[Target]:
    """Return the named target, or the deployed artifact of the network under test in each of ``PROOF.runners``.

    Raises:
        UserError: if there is none.
    """
    targets = find_targets(run, device)
    runners = [text.format(device) for text in PROOF.runners]
    picks = [replace(SHIPPED_SUBJECT, runners=(runner,)) for runner in runners]
    shipped = (next((each for each in targets if takes(pick, each)), None) for pick in picks)
    found = [each for each in targets if str(each) == name] if name else list(filter(None, shipped))
    if not found:
        hint = f"name one of: {', '.join(map(str, targets))}"
        raise UserError(f"no target {name or ' or '.join(runners)} on {device} here", hint)
    return found


def prove(targets: Sequence[Target], grid: BenchGrid, trials: int) -> list[dict]:
    """Run all trials of all targets at every batch size that they accept, one after the other."""
    results, seeds = [], itertools.count(METHOD.seed + 1)
    cases = picked(targets, [Pick(PROOF.batches, slow=True)])
    with cli.progress() as bar:
        task = bar.add_task("trials", total=trials * len(TRIALS) * len(cases))
        for case, (name, slowdown) in itertools.product(cases, TRIALS.items()):
            rows = []
            for _ in range(trials):
                rows.append(trial(case, grid, slowdown, next(seeds)))
                bar.advance(task)
            found, passed = judge(slowdown, rows)
            what = {"target": str(case.target), "trial": name, "batch": case.batch}
            results.append(what | {"found": found, "passed": passed, "rows": rows})
    return results


def planted_words(rows: Sequence[Mapping], slowdown: float) -> str:
    """Describe the true ratio; for stored rows whose slowdown was a real wait, say that it was not measured."""
    if not slowdown:
        return "1"
    return f"{1 + slowdown:.2f}" if all("planted" in row for row in rows) else f"{1 + slowdown:.2f}, not measured"


def table_row(result: dict) -> tuple[str, ...]:
    """Return a line of the closing table and of RESULTS.md."""
    rows, slowdown = result["rows"], TRIALS[result["trial"]]
    ratios = [row["ratio"] for row in rows]
    verdicts = [row["verdict"] for row in rows]
    return (
        result["target"],
        result["trial"],
        str(result["batch"]),
        planted_words(rows, slowdown),
        f"{covered(rows, slowdown)} of {len(rows)}",
        f"{verdicts.count('slower')} of {len(rows)}" if slowdown else cli.NONE,
        f"{min(ratios):.3f} to {max(ratios):.3f}",
        f"±{statistics.median((row['ratio_high'] / row['ratio_low']) ** 0.5 - 1 for row in rows):.1%}",
        f"{sum(row['disturbed_blocks'] for row in rows)} of {sum(row['blocks'] for row in rows)}",
        ", ".join(f"{verdicts.count(name)} {name}" for name in sorted(set(verdicts))),
        "passed" if result["passed"] else "FAILED",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the validation, print its figures and store them.

    Raises:
        CheckFailedError: if the benchmarks fail it.
    """
    parser = cli.stage("benchmarks.tools.proof", "Time an artifact against itself, and against itself slowed down.")
    parser.add_argument("--run", type=Path, default=DEFAULT_RUN, help="run directory")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--grid", default="quick", help=f"whose blocks, one of: {', '.join(GRIDS)}")
    parser.add_argument(
        "--target", help="what is timed; by default an export in each runner at hand, and eager PyTorch"
    )
    parser.add_argument("--trials", type=int, default=PROOF.trials, help="how many of each kind")
    parser.add_argument("--out", type=Path, default=KEPT, help="directory for the figures")
    options = parser.parse_args(arguments)
    if options.trials < 1:
        raise UserError(f"--trials {options.trials} is too small", "give 1 or more")

    grid = GRIDS[require_choice("grid", options.grid, list(GRIDS))]
    device = resolve_device(options.device).type
    targets = chosen_targets(options.run, device, options.target)
    torch.set_num_threads(grid.threads)
    results = prove(targets, grid, options.trials)
    content = {"device": device, "grid": grid.name, "datetime": now(), "trials": results}
    environment = describe()
    path = options.out / (PROOF_PREFIX + file_name(environment, device, content["datetime"]))
    write_json(path, PROOF_SCHEMA, content | {"environment": environment})
    cli.table("Intervals that hold the true ratio, slowdowns found", COLUMNS, list(map(table_row, results)), DROP)
    cli.say(f"wrote {path}")
    if failed := [f"{row['trial']} of {row['target']} at batch {row['batch']}" for row in results if not row["passed"]]:
        raise CheckFailedError(f"validation failed, results from this machine are unreliable: {', '.join(failed)}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
