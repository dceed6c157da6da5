"""The benchmarks' own trial: `python -m stn_export.bench.proof` (`make bench-proof`).

A/A: an artifact is set against itself, loaded anew; the truth is 1. Planted: the same, but ours waits for a share of
its own median call after each call; the truth is a slowdown. All many times, by the very same functions that time
every contest of `make bench`.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from stn_export import cli
from stn_export.artifacts.environment import describe, resolve_device
from stn_export.artifacts.files import write_json
from stn_export.bench.cases import Case, picked, takes
from stn_export.bench.grids import GRIDS, SHIPPED_SUBJECT, BenchGrid, Pick
from stn_export.bench.kept import KEPT, PROOF_PREFIX, PROOF_SCHEMA, file_name, now
from stn_export.bench.method import METHOD, PROOF
from stn_export.bench.methodology import interleave, warm_up
from stn_export.bench.targets import Target, find_targets
from stn_export.config import DEFAULT_RUN
from stn_export.errors import CheckFailedError, UserError, require_choice
from stn_export.runners import Step

COLUMNS = ("target", "trial", "batch", "found", "ratios", "interval", "disturbed blocks", "verdicts", "")
DROP = ("disturbed blocks", "interval", "verdicts", "ratios")


def slowed(step: Step, share: float, seconds: float) -> Step:
    """``step``, and behind each call a wait of ``share`` of its own median call, which takes ``seconds`` to find."""
    wait = share * warm_up(step, seconds).call_seconds

    def slow() -> object:
        result = step()
        end = time.perf_counter() + wait
        while time.perf_counter() < end:
            pass
        return result

    return Step(slow)


def trial(case: Case, grid: BenchGrid, slowdown: float, seed: int) -> dict:
    """One contest of a target with itself, ours slowed down by ``slowdown`` where that is not 0."""

    def plain() -> Step:
        return Step(case.target.step(case.batch).run)  # by the wall's clock, which the planted wait is on too

    def ours() -> Step:
        return slowed(plain(), slowdown, grid.warmup_seconds) if slowdown else plain()

    return interleave(ours, plain, case.target.runner.device, grid, seed).hold().summary()


def holds(row: dict) -> bool:
    """A/A: the interval holds the truth."""
    return row["ratio_low"] <= 1 <= row["ratio_high"]


def misleads(row: dict) -> bool:
    """A/A: the verdict names a difference, of more than what counts as the same."""
    return row["verdict"] in ("faster", "slower") and abs(row["ratio"] - 1) > METHOD.same


def judge(slowdown: float, rows: Sequence[dict]) -> tuple[int, bool]:
    """How many intervals hold 1, or how many slowdowns were found; and whether one may believe in that."""
    if not slowdown:
        held = sum(map(holds, rows))
        return held, held >= PROOF.holding * len(rows) / PROOF.trials and not any(map(misleads, rows))
    verdicts = [row["verdict"] for row in rows]
    found = verdicts.count("slower")
    return found, "faster" not in verdicts and (slowdown < PROOF.certain or found == len(rows))


TRIALS = {"A/A": 0.0} | {f"planted {slowdown:.0%}": slowdown for slowdown in PROOF.planted}


def chosen_targets(run: Path, device: str, name: str | None) -> list[Target]:
    """The named target, or what is shipped of the subject in each of ``PROOF.runners``.

    Raises:
        UserError: where there is none.
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
    """All trials of all targets at all batch sizes that they can be given, one after the other."""
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


def table_row(result: dict) -> tuple[str, ...]:
    """One line of the closing table, and of RESULTS.md."""
    rows = result["rows"]
    ratios = [row["ratio"] for row in rows]
    verdicts = [row["verdict"] for row in rows]
    return (
        result["target"],
        result["trial"],
        str(result["batch"]),
        f"{result['found']} of {len(rows)}",
        f"{min(ratios):.3f} to {max(ratios):.3f}",
        f"±{statistics.median((row['ratio_high'] / row['ratio_low']) ** 0.5 - 1 for row in rows):.1%}",
        f"{sum(row['disturbed_blocks'] for row in rows)} of {sum(row['blocks'] for row in rows)}",
        ", ".join(f"{verdicts.count(name)} {name}" for name in sorted(set(verdicts))),
        "passed" if result["passed"] else "FAILED",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the trial, print both figures, keep them.

    Raises:
        CheckFailedError: where the benchmarks cannot be believed.
    """
    parser = cli.stage("bench.proof", "Time an artifact against itself, and against itself slowed down.")
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
        raise UserError(f"--trials {options.trials} proves nothing", "give 1 or more")

    grid = GRIDS[require_choice("grid", options.grid, list(GRIDS))]
    device = resolve_device(options.device).type
    targets = chosen_targets(options.run, device, options.target)
    torch.set_num_threads(grid.threads)
    results = prove(targets, grid, options.trials)
    content = {"device": device, "grid": grid.name, "datetime": now(), "trials": results}
    environment = describe()
    path = options.out / (PROOF_PREFIX + file_name(environment, device, content["datetime"]))
    write_json(path, PROOF_SCHEMA, content | {"environment": environment})
    cli.table("Intervals that hold 1, slowdowns found", COLUMNS, list(map(table_row, results)), DROP)
    cli.say(f"wrote {path}")
    if failed := [f"{row['trial']} of {row['target']} at batch {row['batch']}" for row in results if not row["passed"]]:
        raise CheckFailedError(f"the benchmarks are not to be believed here: {', '.join(failed)}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
