"""``stn-export all``: run all stages of a run in turn, each in a process of its own.

A failed check does not end the chain: what failed is marked, never recommended, and named at the end. The exit code is
0 if all is well and 1 if a check failed. Any other exit code of a stage ends the chain and is returned: 2, the user
must change something first; 70, a bug of this package; 130, interrupted; above 128, ended by a signal.
"""

import tempfile
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stn_export import cli
from stn_export.cli import children
from stn_export.cli.options import PARSERS
from stn_export.cli.progress_bar import UNTIMED
from stn_export.config import DEFAULT_RUN, run_for
from stn_export.errors import EXIT_CHECK_FAILED, EXIT_OK, CheckFailedError

PACKAGE = "stn_export"
QUICK_BUDGET = 90.0  # seconds of bench on the quick grid; the other stages take a few minutes
UP_TO_DATE = 0.3  # share of the time that a stage took before, below which it found its files there already
FOUNDATION = "train"  # if it fails, later stages would see an older network or none


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all stages.

    Raises:
        CheckFailedError: at the end, naming every stage in which a check failed, and its failures.
        SystemExit: with the exit code of a stage that could not run to its end.
    """
    options, of_training = PARSERS["all"]().parse_known_args(arguments)
    training = PARSERS["train"]()
    training.prog = "stn-export all"  # whose help lists them too
    trained = training.parse_args(of_training)  # rejects wrong options before anything starts
    run = options.run or (run_for(trained.dataset, trained.data) if of_training else DEFAULT_RUN)
    trusted = ["--trust"] if options.trust else []  # later stages remember it
    place = ["--run", str(run), *([] if options.verbose else ["--brief"])]
    timing = ["--device", options.device, "--grid", options.grid]
    budget = options.budget or (QUICK_BUDGET if options.grid == "quick" else None)
    stages = {
        "train": [*place, "--device", options.device, *of_training],
        "export": [*place, *trusted],
        "verify": place,
        "bench": [*place, *timing, *(["--budget", f"{budget:g}s"] if budget else [])],
        "report": place,
    }
    if not of_training and adopted(run):
        del stages["train"]
    if failed := chain(stages, _work(stages, run, options, trained, budget)):
        raise CheckFailedError(*(line for text in failed for line in text.split("\n")))


def _work(
    stages: Iterable[str], run: Path, options: Namespace, trained: Namespace, budget: float | None
) -> dict[str, "Work"]:
    """Count the work of each stage: networks, in training by seeds and epochs."""
    trains = "train" in stages
    networks = len(trained.models) if trains else max(1, len(list(run.glob("*/program.pt2"))))
    epochs = f"{trained.recipe or 'own'} recipe, {'epochs' if trained.epochs else 'its own epochs'}"
    names = {"train": f" {trained.dataset}, {epochs}", "bench": f" {options.grid}, {budget or 'no budget'}"}
    times = {"train": trained.seeds * (trained.epochs or 1)}
    return {stage: Work(f"all, {stage}{names.get(stage, '')}", networks * times.get(stage, 1)) for stage in stages}


@dataclass(frozen=True)
class Work:
    """The name under which the pace of a stage is kept, and how many units of work it has."""

    name: str
    units: int

    @property
    def expected(self) -> float | None:
        """The seconds that it will take, by earlier commands; None where no such work was ever timed."""
        return cli.Paces.read().expected(self.name, [(1, self.units)])

    def took(self, seconds: float) -> None:
        """Keep its pace, unless it was so quick that most of it was up to date."""
        if self.expected is None or seconds > UP_TO_DATE * self.expected:
            cli.Paces.read().keep(self.name, 1, self.units, seconds)


def chain(stages: Mapping[str, Sequence[str]], work: Mapping[str, Work], command: str = "all") -> list[str]:
    """Run stages, given as name and options, and return a text per stage that failed a check, of one or more lines.

    Raises:
        SystemExit: with the exit code of a stage that could not run to its end.
    """
    failed, started = [], time.monotonic()
    cli.say(f"{command}: {len(stages)} stages, {left_words(list(work), work) or UNTIMED}", "bold")
    for number, (stage, options) in enumerate(stages.items(), 1):
        after, left = cli.duration(time.monotonic() - started), left_words(list(work)[number - 1 :], work)
        cli.say(f"{stage} ({number} of {len(stages)}, after {after}{left and f'; {left} left'})", "bold")
        begun = time.monotonic()
        code, message = perform(stage, options)
        if code in (EXIT_OK, EXIT_CHECK_FAILED):
            work[stage].took(time.monotonic() - begun)
        red = code == EXIT_CHECK_FAILED and stage != FOUNDATION
        if code != EXIT_OK and not red:
            cli.say(f"{stage} ended with exit code {code}; the same command goes on from there", "bold red")
            raise SystemExit(code)
        if red:
            failed.append(f"{stage}: {message or 'a check'}")
    cli.say(f"{len(stages)} stages took {cli.duration(time.monotonic() - started)}", "bold")
    return failed


def left_words(stages: Sequence[str], work: Mapping[str, Work]) -> str:
    """Say about how long stages take, by earlier commands here, and which were never timed; empty if none was."""
    expected = {stage: work[stage].expected for stage in stages}
    seconds_known = [seconds for seconds in expected.values() if seconds is not None]
    unknown = [stage for stage, seconds in expected.items() if seconds is None]
    if not seconds_known:
        return ""
    beside = f" and {', '.join(unknown)}, {UNTIMED}," if unknown else ""
    return f"about {cli.duration(sum(seconds_known))}{beside}"


def perform(stage: str, options: Sequence[str]) -> tuple[int, str]:
    """Run a stage in a process of its own; return its exit code and its own account of what failed."""
    with tempfile.TemporaryDirectory() as folder:
        failed = Path(folder) / "failed.txt"
        command = children.module(PACKAGE, stage, *options)
        code = children.follow(command, children.environment({cli.TELL: str(failed)}))
        return code, failed.read_text(encoding="utf-8").strip() if failed.exists() else ""


def adopted(run: Path) -> bool:
    """Return whether the run contains networks that were not trained by ``train``."""
    return any(run.glob("*/program.pt2")) and not any(run.glob("*/checkpoint.pt"))
