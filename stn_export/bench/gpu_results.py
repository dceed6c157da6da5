"""Everything that a machine with one NVIDIA GPU can say, in minutes: `python -m stn_export.bench.gpu_results`.

A table of steps, each in a process of its own and bounded in time. A step that was done leaves a marker and is not
done again while the networks are the same; so running it again goes on where it stopped. A step that fails or takes too
long is remembered, the next one runs, and the exit code is 1 at the end.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stn_export import cli
from stn_export.artifacts.environment import describe, resolve_device
from stn_export.artifacts.files import write_atomically, write_out
from stn_export.artifacts.manifest import BENCH_FILE, MANIFEST, VERIFY_FILE
from stn_export.artifacts.schemas import Result, read_bench
from stn_export.bench.grids import GRIDS
from stn_export.bench.kept import KEPT, compact, file_name, now
from stn_export.bench.method import GPU_RESULTS
from stn_export.bench.results import RESULTS
from stn_export.bench.session import suite_files
from stn_export.config import ARTIFACTS
from stn_export.errors import CheckFailedError, UserError, require_choice

TRAINING = "training"  # the suite that takes a data set instead of a run
MARKERS = "gpu-results"


@dataclass(frozen=True)
class Step:
    """One process, at most ``limit`` seconds long. ``marked``: done once is done; others see to that themselves."""

    name: str
    command: tuple[str, ...]
    limit: float
    marked: bool = True


@dataclass(frozen=True)
class Outcome:
    """What became of a step: ``state`` is done, kept (from before), failed, too slow, or not begun."""

    step: str
    state: str
    seconds: float

    @property
    def good(self) -> bool:
        return self.state in ("done", "kept")


def suites() -> list[str]:
    """The suites of a run's files."""
    return [name for name in suite_files() if name != TRAINING]


def part_of(run: Path, suite: str) -> Path:
    """Where a suite's own JSON goes."""
    return run / MARKERS / f"{suite}.json"


def steps(options: argparse.Namespace) -> list[Step]:
    """What is run before the results are gathered, in this order."""
    run, limits = str(options.run), GPU_RESULTS.limits
    data, trials = ("--data", str(options.data)) if options.data else (), ("--trials", str(GPU_RESULTS.trials))
    stage, here, device = (sys.executable, "-m"), ("--run", run), ("--device", options.device)
    train = ("--dataset", options.dataset, *data)
    keep = ("stn_export.train.keep_speed", str(part_of(options.run, TRAINING)), "--results", str(options.out))

    def timing(suite: str, *more: str) -> Step:
        command = ("stn_export.bench", "--suites", suite, "--benchmark-only", *here, *device, *more)
        json_file = ("--benchmark-json", str(part_of(options.run, suite)))
        return Step(f"test_{suite}", (*stage, *command, *json_file), limits["suite"])

    return [
        Step("train", (*stage, "stn_export.train", *train, *device, *here), limits["train"], marked=False),
        Step("export", (*stage, "stn_export.export", *here), limits["export"], marked=False),
        Step("verify", (*stage, "stn_export.verify", *here), limits["verify"]),
        *(timing(suite, "--grid", options.grid) for suite in suites()),
        timing(TRAINING, *train),
        Step("keep_training", (*stage, *keep), limits["results"], marked=False),
        Step(
            "proof",
            (*stage, "stn_export.bench.proof", *device, *here, *trials, "--out", str(options.out)),
            limits["proof"],
        ),
    ]


def fingerprint(step: Step, run: Path) -> str:
    """What a marker holds: the command and the networks that it saw."""
    content = b"".join(path.read_bytes() for path in sorted(run.glob(f"*/{MANIFEST}")))
    return hashlib.sha256(shlex.join(step.command).encode() + content).hexdigest()


def perform(step: Step, run: Path, remaining: float, environment: dict[str, str]) -> Outcome:
    """Run a step unless its marker says that it was done; ``remaining`` seconds are left for all."""
    marker = run / MARKERS / f"{step.name}.done"
    if step.marked and marker.is_file() and marker.read_text() == fingerprint(step, run):
        return Outcome(step.name, "kept", 0.0)
    if remaining < GPU_RESULTS.shortest:
        return Outcome(step.name, "not begun", 0.0)
    cli.say(f"{step.name}: {shlex.join(step.command)}")
    started = time.monotonic()
    code = bounded(step.command, min(step.limit, remaining), environment)
    state = {0: "done", None: "too slow"}.get(code, "failed")
    if state == "done" and step.marked:
        write_out(marker, fingerprint(step, run).encode())
    return Outcome(step.name, state, round(time.monotonic() - started, 1))


def bounded(command: Sequence[str], limit: float, environment: dict[str, str]) -> int | None:
    """The exit code, or None where ``limit`` seconds were not enough; an interrupt lets pytest write what it has."""
    process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_heed_interrupts)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        end_group(process)
        return None
    except KeyboardInterrupt:
        end_group(process)
        raise


def _heed_interrupts() -> None:
    """A shell's background jobs ignore SIGINT, and so would all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end_group(process: subprocess.Popen) -> None:
    """Interrupt a process and all its children; kill those that do not end within seconds."""
    for number, patience in ((signal.SIGINT, GPU_RESULTS.grace), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


def environment_with(ort_site: Path | None) -> dict[str, str]:
    """Ours, with a directory that holds ONNX Runtime's GPU build first on the path.

    Raises:
        UserError: where the directory has no ONNX Runtime.
    """
    if ort_site is None:
        return dict(os.environ)
    if not (ort_site / "onnxruntime").is_dir():
        raise UserError(f"{ort_site} holds no onnxruntime", "ORT_SITE= is where 'pip install --target' put it")
    paths = [str(ort_site.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def gather(run: Path) -> Path | None:
    """One bench.json of all suites' parts; None where there is none."""
    parts = [read_bench(part_of(run, suite), Result) for suite in suites() if part_of(run, suite).is_file()]
    if not parts:
        return None
    rows, work = [row for part in parts for row in part["benchmarks"]], {}
    for part in parts:
        for network, by_batch in part["work"].items():
            work.setdefault(network, {}).update(by_batch)
    write_atomically(run / BENCH_FILE, compact(parts[0] | {"benchmarks": rows, "work": work}))
    return run / BENCH_FILE


def keep_all(options: argparse.Namespace, outcomes: list[Outcome], environment: dict[str, str]) -> Outcome:
    """The kept files: timings, what verification found, and what became of every step."""
    bench, described, device = gather(options.run), describe(), resolve_device(options.device).type
    name = file_name(described, device, now())
    verified = options.run / VERIFY_FILE
    ended = {outcome.step for outcome in outcomes if outcome.state in ("done", "kept", "failed")}
    if "verify" in ended and verified.is_file():
        content = json.loads(verified.read_text())
        write_out(options.out / f"verify-{name}", json.dumps(content, separators=(",", ":")).encode())
    story = {"environment": described, "run": str(options.run), "steps": [vars(outcome) for outcome in outcomes]}
    write_out(options.out / f"steps-{name}", json.dumps(story, indent=1).encode())
    written = RESULTS if options.out == KEPT else options.out / RESULTS.name
    results = ("stn_export.bench.results", "--kept", str(options.out), "--out", str(written))
    keep = ("--keep", str(bench)) if bench else ()
    step = Step("results", (sys.executable, "-m", *results, *keep), GPU_RESULTS.limits["results"], marked=False)
    return perform(step, options.run, step.limit, environment)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.stage("bench.gpu_results", "Train, export, verify and time on one GPU, within minutes.")
    parser.add_argument("--dataset", default=GPU_RESULTS.dataset, help="what is trained on")
    parser.add_argument("--data", type=cli.path_or_none, help="directory that holds CIFAR-10")
    parser.add_argument("--run", type=cli.path_or_none, help=f"run directory; by default {ARTIFACTS}/<dataset>")
    parser.add_argument("--device", default=GPU_RESULTS.device, help="cpu to rehearse")
    parser.add_argument("--grid", default=GPU_RESULTS.grid, help=f"one of: {', '.join(GRIDS)}")
    parser.add_argument("--ort-site", type=cli.path_or_none, help="directory with ONNX Runtime's GPU build")
    parser.add_argument("--out", type=Path, default=KEPT, help="directory for the small files")
    parser.add_argument("--seconds", type=float, default=GPU_RESULTS.seconds, help="for all steps together")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all steps, keep what they found.

    Raises:
        CheckFailedError: naming the steps that failed, took too long or were not begun.
    """
    options = build_parser().parse_args(arguments)
    require_choice("grid", options.grid, list(GRIDS))
    resolve_device(options.device)
    options.run = options.run or ARTIFACTS / options.dataset
    environment = environment_with(options.ort_site)
    (options.run / MARKERS).mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.seconds
    outcomes = []
    for step in steps(options):
        outcomes.append(perform(step, options.run, end - time.monotonic() - GPU_RESULTS.limits["results"], environment))
    outcomes.append(keep_all(options, outcomes, environment))
    cli.table("Steps", ("step", "state", "seconds"), [(o.step, o.state, f"{o.seconds:.1f}") for o in outcomes])
    if bad := [f"{outcome.step} ({outcome.state})" for outcome in outcomes if not outcome.good]:
        raise CheckFailedError(f"{', '.join(bad)}; run it again to go on")


if __name__ == "__main__":
    sys.exit(cli.run(main))
