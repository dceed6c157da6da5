"""Measure everything on a machine with one NVIDIA GPU, in minutes: ``python -m benchmarks.tools.gpu_results``.

A table of steps, each in a separate process with a time limit, the most informative first. Running it again resumes:
training, verification and the suites keep each epoch, check and row, and a finished step leaves a marker that is valid
while the networks are the same. If a step fails or takes too long, this is recorded, the next one runs, and the exit
code is 1 at the end. ``--plan`` prints all that without running anything.
"""

import argparse
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tools.kept import KEPT, file_name, now
from benchmarks.tools.results_page import RESULTS
from stn_export import cli
from stn_export.bench.cases import BASELINES, cases
from stn_export.bench.plan import GRIDS, BenchGrid
from stn_export.bench.targets import Target, find_targets
from stn_export.cli import children
from stn_export.config import ARTIFACTS, DEFAULT_RUN
from stn_export.errors import CheckFailedError, UserError, require_choice
from stn_export.run.environment import describe, resolve_device
from stn_export.run.manifest import BENCH_FILE, MANIFEST, VERIFY_FILE
from stn_export.run.store import write_out
from stn_export.runners import RUNNERS
from stn_export.runners.registry import no_gpu


@dataclass(frozen=True)
class GpuResults:
    """How the minutes on a rented GPU are spent; all times in seconds.

    A step is not started with fewer than ``shortest`` seconds left before the ``last``, which are reserved for storing
    the results; a step that is stopped has ``grace`` to write its results.
    """

    dataset: str = DEFAULT_RUN.name
    device: str = "cuda"
    grid: str = "gpu"
    seconds: float = 520.0
    shortest: float = 10.0
    last: float = 60.0
    grace: float = 15.0
    trials: int = 5  # of the benchmarks' own validation, of each kind


GPU_RESULTS = GpuResults()

MARKERS = "gpu-results"


@dataclass(frozen=True)
class Step:
    """One process with a time limit. A ``marked`` step leaves a marker and is not repeated; the others resume."""

    name: str
    command: str
    limit: float
    marked: bool = True

    def words(self, options: argparse.Namespace) -> list[str]:
        """Return the command line with the options filled in."""
        values = {name: "" if value is None else value for name, value in vars(options).items()}
        name, *given = (word.format_map(values) for word in shlex.split(self.command))
        return list(map(str, children.module(name, *given)))


HERE = shlex.quote(str(Path(__file__).parent))  # directory of the suite that times training
TRAINING = "{run}/" + MARKERS + "/training.json"
TIMED = "stn_export.bench --benchmark-only --run {run} --device {device} --grid {grid} --suites "
SUITES = {  # and the kinds of rows in each
    "overhead": tuple(BASELINES),
    "latency": ("latency", "cold"),
    **{name: (name,) for name in ("throughput", "startup", "request", "breakdown")},
}
STEPS = (
    Step("train", "stn_export.train --run {run} --device {device} --dataset {dataset} --data '{data}'", 120, False),
    Step("export", "stn_export.export --run {run}", 90, False),
    Step("verify", "stn_export.verify --run {run}", 120),
    Step("overhead", TIMED + "overhead", 120),
    Step("latency", TIMED + "latency", 120),
    Step("throughput", TIMED + "throughput", 120),
    Step(
        "training",
        f"pytest {HERE} --confcutdir {HERE} --rootdir {HERE} -c {os.devnull} -p no:cacheprovider -p no:randomly --quiet"
        f" --device {{device}} --dataset {{dataset}} --data '{{data}}' --benchmark-json {TRAINING}",
        120,
    ),
    Step("keep_training", f"benchmarks.tools.training_speed {TRAINING} --results {{out}}", 60, False),
    Step("startup", TIMED + "startup", 120),
    Step("request", TIMED + "request", 120),
    Step("breakdown", TIMED + "breakdown", 60),
    Step("proof", "benchmarks.tools.proof --run {run} --device {device} --trials {trials} --out {out}", 400),
)


@dataclass(frozen=True)
class Outcome:
    """The result of a step: ``state`` is done, kept (from before), failed, too slow, or not begun."""

    step: str
    state: str
    seconds: float

    @property
    def good(self) -> bool:
        """Return whether the step is complete."""
        return self.state in ("done", "kept")


def fingerprint(command: Sequence[str], run: Path) -> str:
    """Return the content of a marker: a hash of the command and the networks."""
    content = b"".join(path.read_bytes() for path in sorted(run.glob(f"*/{MANIFEST}")))
    return hashlib.sha256(shlex.join(command).encode() + content).hexdigest()


def perform(step: Step, options: argparse.Namespace, remaining: float) -> Outcome:
    """Run a step unless its marker says that it is done; ``remaining`` seconds are left for all steps."""
    marker, command = options.run / MARKERS / f"{step.name}.done", step.words(options)
    if step.marked and marker.is_file() and marker.read_text(encoding="utf-8") == fingerprint(command, options.run):
        return Outcome(step.name, "kept", 0.0)
    if remaining < GPU_RESULTS.shortest:
        return Outcome(step.name, "not begun", 0.0)
    cli.say(f"{step.name}: {shlex.join(command)}")
    started = time.monotonic()
    code = bounded(command, min(step.limit, remaining))
    state = {0: "done", None: "too slow"}.get(code, "failed")
    if state == "done" and step.marked:
        write_out(marker, fingerprint(command, options.run).encode())
    return Outcome(step.name, state, round(time.monotonic() - started, 1))


def bounded(command: Sequence[str], limit: float) -> int | None:
    """Run a command and return its exit code; None if it exceeded ``limit`` seconds and was interrupted.

    An interrupt, unlike a kill, lets pytest write what it has.
    """
    process = children.start(command, end=signal.SIGTERM, group=True, env=children.environment())
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        end_group(process)
        return None
    except KeyboardInterrupt:
        end_group(process)
        raise


def end_group(process: subprocess.Popen) -> None:
    """Interrupt a process and all its children; kill those that do not end in time."""
    for number, patience in ((signal.SIGINT, GPU_RESULTS.grace), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


def with_onnx_runtime(ort_site: Path) -> None:
    """Restart this process with a directory containing ONNX Runtime's GPU build first on its path.

    Raises:
        UserError: if the directory has no ONNX Runtime.
    """
    if not (ort_site / "onnxruntime").is_dir():
        raise UserError(f"{ort_site} holds no onnxruntime", "ORT_SITE= is where 'pip install --target' put it")
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if paths[0] != (first := str(ort_site.resolve())):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [first, *paths]))}
        os.execve(sys.executable, sys.orig_argv, environment)


def keep_all(options: argparse.Namespace, outcomes: Sequence[Outcome]) -> Outcome:
    """Store the results: timings, the verification, and the outcome of every step."""
    described = describe()
    name = file_name(described, resolve_device(options.device).type, now())
    states, verified, timed = {each.step: each.state for each in outcomes}, options.run / VERIFY_FILE, BENCH_FILE
    if states.get("verify") in ("done", "kept", "failed") and verified.is_file():
        write_out(options.out / f"verify-{name}", verified.read_bytes())
    story = {"environment": described, "run": str(options.run), "steps": [vars(outcome) for outcome in outcomes]}
    write_out(options.out / f"steps-{name}", json.dumps(story, indent=1).encode())
    results = "benchmarks.tools.results_page --kept {out} --out {results}"
    options.results = RESULTS if options.out == KEPT else options.out / RESULTS.name
    keep = " --keep {run}/" + timed if (options.run / timed).is_file() else ""
    return perform(Step("results", results + keep, 60, marked=False), options, GPU_RESULTS.seconds)


def show_plan(options: argparse.Namespace) -> None:
    """Print every step with its limit and its amount of work, and what is missing here, as if there were a GPU."""

    def there(reason: str) -> bool:
        return reason in ("", no_gpu())

    lacking = Counter(
        reason for each in RUNNERS if each.device == options.device and not there(reason := each.unavailable())
    )
    counts = {}
    if any(options.run.glob(f"*/{MANIFEST}")):
        targets = find_targets(options.run, options.device, there)
        counts = {name: planned_rows(name, targets, GRIDS[options.grid]) for name in SUITES}
        counts["verify"] = f"{len(find_targets(options.run, 'auto', there))} checks"
    else:
        cli.say(f"{options.run} is not there yet: how many rows it will have is not known")
    rows = [(step.name, f"{step.limit:.0f}", counts.get(step.name, "")) for step in STEPS]
    cli.table(f"At most {options.seconds:.0f} s, then again to go on", ("step", "at most s", "to do"), rows)
    for step in STEPS:
        cli.say(f"{step.name}: {shlex.join(step.words(options))}", "dim")
    for reason, count in lacking.items():
        cli.say(f"left out: {count} runners: {reason}")
    if reason := no_gpu():
        cli.say(f"not to be run here: {reason}")


def planned_rows(suite: str, targets: Sequence[Target], grid: BenchGrid) -> str:
    """Describe how many rows a suite has, and how long timing them takes, without loading."""
    kinds = SUITES[suite]
    count = sum(len(list(cases(kind, targets, getattr(grid, kind)))) for kind in kinds)
    each = 2 * grid.blocks * grid.block_seconds if kinds[0] in BASELINES else grid.row_seconds
    timing = "" if kinds[0] in ("startup", "breakdown") else f", {count * (each + grid.warmup_seconds):.0f} s of timing"
    return f"{count} rows{timing}"


def build_parser() -> argparse.ArgumentParser:
    """Build the command line parser."""
    parser = cli.stage("benchmarks.tools.gpu_results", "Train, export, verify and time on one GPU, within minutes.")
    parser.add_argument("--dataset", default=GPU_RESULTS.dataset, help="what is trained on")
    parser.add_argument("--data", type=cli.path_or_none, help="directory that contains CIFAR-10")
    parser.add_argument("--run", type=cli.path_or_none, help=f"run directory; by default {ARTIFACTS}/<dataset>")
    parser.add_argument("--device", default=GPU_RESULTS.device, help="cpu to rehearse")
    parser.add_argument("--grid", default=GPU_RESULTS.grid, help=f"one of: {', '.join(GRIDS)}")
    parser.add_argument("--ort-site", type=cli.path_or_none, help="directory with ONNX Runtime's GPU build")
    parser.add_argument("--out", type=Path, default=KEPT, help="directory for the small files")
    parser.add_argument("--seconds", type=float, default=GPU_RESULTS.seconds, help="for all steps together")
    parser.add_argument("--trials", type=int, default=GPU_RESULTS.trials, help="of the benchmarks' own proof")
    parser.add_argument("--plan", action="store_true", help="say what would run, and run nothing")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all steps and store the results.

    Raises:
        CheckFailedError: naming the steps that failed, took too long or were not started.
    """
    options = build_parser().parse_args(arguments)
    require_choice("grid", options.grid, list(GRIDS))
    options.run = options.run or ARTIFACTS / options.dataset
    if options.ort_site:
        with_onnx_runtime(options.ort_site)
    if options.plan:
        show_plan(options)
        return
    resolve_device(options.device)
    (options.run / MARKERS).mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.seconds - GPU_RESULTS.last
    outcomes = [perform(step, options, end - time.monotonic()) for step in STEPS]
    outcomes.append(keep_all(options, outcomes))
    cli.table("Steps", ("step", "state", "seconds"), [(o.step, o.state, f"{o.seconds:.1f}") for o in outcomes])
    if bad := [f"{outcome.step} ({outcome.state})" for outcome in outcomes if not outcome.good]:
        raise CheckFailedError(f"{', '.join(bad)}; run it again to go on")


if __name__ == "__main__":
    sys.exit(cli.run(main))
