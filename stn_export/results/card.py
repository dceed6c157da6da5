"""The card: which file to deploy, how fast and how accurate it is, how far that can be trusted, and all caveats.

Every stage prints its part of it; the whole card opens the report and the model card.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stn_export import cli
from stn_export.errors import typed
from stn_export.results.caveats import caveats
from stn_export.results.choice import (
    Choice,
    Marks,
    Portability,
    Shipped,
    baseline_words,
    baselines_words,
    contest_of,
    disturbance,
    headline,
    others,
    over_moments,
    paired_ratio,
    program,
    pytorch_contests,
    shipped,
    speedup_contest,
)
from stn_export.results.contents import Held, held
from stn_export.results.text import by_reason, listed, percent, row_name, significant, span, speed_ratio, times
from stn_export.run.manifest import MODEL_CARD, PLAIN, PREFERRED, PROGRAM
from stn_export.run.records import Timing
from stn_export.run.store import write_if_changed

BLOCK = re.compile(r"<!-- card -->.*?<!-- /card -->", re.DOTALL)
INCONCLUSIVE = "cannot tell"  # a verdict of paired comparisons
Line = tuple[str, str]  # a word and a sentence


def _of(row: Timing, other: Timing) -> float:
    """Return how many times as large the file of one row is as another's."""
    return (row.file_bytes or 0) / max(1, other.file_bytes or 0)


def seconds_of(row: Timing, marks: str = "") -> str:
    """Format a row's milliseconds per example with their interval, and what the time includes."""
    middle, low, high = (1e3 * seconds / row.batch for seconds in row.median)
    batches = f" in batches of {row.batch:,}" if row.batch > 1 else ""
    return f"{significant(middle)} ms per example{batches} ({span(low, high)}){marks}{included(row)}"


def rate(row: Timing, marks: str = "") -> str:
    """Format a row's examples per second with their interval, and what the time includes."""
    middle, high, low = (row.batch / seconds for seconds in row.median)
    return f"{significant(middle)} examples/s ({span(low, high)}){marks}{included(row)}"


def included(row: Timing) -> str:
    """Say whether a time includes copies from and to host arrays, or only a call with its inputs in place."""
    return ", host array to host array" if row.regime == "request" else ", inputs in place"


def speedup_words(rows: Sequence[Timing], row: Timing, marks: Marks) -> str:
    """Format the speed-up over PyTorch run in the fastest way that was timed, and name all of these ways."""
    contest = speedup_contest(rows, row)
    if contest is None:
        return ""
    ratio = speed_ratio(over_moments(contest, rows).inverse) + marks.of(contest) + inconclusive(contest)
    contests = pytorch_contests(rows, row)
    among = f", the fastest of {baselines_words(contests)}" if len(contests) > 1 else ""
    place = ", both with inputs in place" if row.regime == "request" and not contest.by_host else ""
    return f"speed-up over {baseline_words(contest)} {ratio}{place}{among}"


def overhead_text(contest: Timing, marks: str = "") -> str:
    """Format the overhead of a paired comparison, time divided by the baseline's, with its interval."""
    return speed_ratio(paired_ratio(contest)) + marks


def speedup_text(contest: Timing, marks: str = "") -> str:
    """Format the speed-up of a paired comparison, the baseline's time divided by ours, with its interval."""
    return speed_ratio(paired_ratio(contest).inverse) + marks


@dataclass(frozen=True)
class Answer:
    """The lines of a run's card, one method per line; a line that does not apply is empty."""

    held: Held

    @cached_property
    def by_device(self) -> dict[str, Shipped]:
        """The files to deploy by device, the fastest device first; only files whose verification is not stale count."""
        rows, deployed = self.held.verified_rows, {}
        for device in sorted({row.device for row in rows}):
            ours = [row for row in rows if row.device == device]
            if chosen := shipped(ours, self.held.proved, self.held.portability, self.held.static_batch or 1):
                deployed[device] = chosen
        return dict(sorted(deployed.items(), key=lambda pair: pair[1].quick.row.median.middle))

    @property
    def deployed(self) -> Shipped | None:
        """The files to deploy on the fastest device."""
        return next(iter(self.by_device.values()), None)

    @cached_property
    def marks(self) -> Marks:
        """The marks of disturbed and contradicted figures."""
        return Marks(self.held.rows)

    def deploy(self) -> str:
        """Name the file to deploy and its runner."""
        if self.deployed is None:
            return ""
        row = self.deployed.quick.row
        files = {(artifact.network, artifact.name): artifact.file for artifact in self.held.artifacts}
        return f"{row.network}/{files[row.network, row.artifact]} (runner {row.runner})"

    def latency(self) -> str:
        """State the latency, and the speed-up over PyTorch."""
        if self.deployed is None:
            return ""
        row = headline(self.held.rows, self.deployed.quick.row)
        return seconds_of(row, self.marks.of(row)) + self._speedup(row)

    def throughput(self) -> str:
        """State the throughput, its file where that is another, and the speed-up over PyTorch.

        Empty where one example at a time was timed of a network that takes more: that is the latency.
        """
        if self.deployed is None or not self._several_at_once():
            return ""
        row, quick = headline(self.held.rows, self.deployed.most.row), self.deployed.quick.row
        by = "" if program(row) == program(quick) else f" by {row_name(row)}"
        return f"{rate(row, self.marks.of(row))}, at batch {row.batch:,}{by}{self._speedup(row)}"

    def _several_at_once(self) -> bool:
        """Return whether anything was timed with several examples a call, or the network takes one at a time only."""
        return self.held.static_batch == 1 or any(row.batch > 1 for row in self.held.rows)

    def _speedup(self, row: Timing) -> str:
        speedup = speedup_words(self.held.rows, row, self.marks)
        return speedup and f"; {speedup}"

    def overhead(self) -> str:
        """State the latency of the network under test divided by that of the baseline."""
        plain = [directory.facts.label for directory in self.held.directories if directory.facts.role == PLAIN]
        if self.deployed is None or not plain:
            return ""
        row = self.deployed.quick.row
        contest = contest_of(self.held.rows, "overhead", row)
        if contest is None:
            return f"not measured against the {plain[0]} in {row.runner}"
        overhead = overhead_text(contest, self.marks.of(contest))
        label = contest.baseline_label
        return f"{overhead} the latency of the {label} at batch {contest.batch:,}{inconclusive(contest)}"

    def accuracy(self) -> str:
        """State the accuracy of the deployed file, of eager PyTorch and of the baseline.

        Before verification, return training's own sentence.
        """
        proved = reversed(list(self.held.proved.items()))  # so that the first runner's accuracy wins
        accuracies = {(network, name): value for (network, name, _), value in proved if value is not None}
        own = {network: value for (network, artifact), value in accuracies.items() if artifact == PROGRAM}
        roles = {directory.name: directory.facts for directory in self.held.directories}
        subject = self.held.directories[0].name
        if subject not in own:
            return self.held.trainings[0].sentence.removeprefix("Test accuracy: ") if self.held.trainings else ""
        deployed = program(self.deployed.quick.row) if self.deployed else (subject, PROGRAM, "")
        of_its_runner = self.held.proved.get(deployed)
        shown, value = deployed[1], own[subject] if of_its_runner is None else of_its_runner
        beside = [] if shown == PROGRAM else [f"eager PyTorch {percent(own[subject])}"]
        beside += [
            f"{roles[name].label} {percent(accuracy)}" for name, accuracy in own.items() if roles[name].role == PLAIN
        ]
        return percent(value) + (f" ({', '.join(beside)})" if beside else "")

    def verified(self) -> str:
        """State how many checks passed, and the largest error of the float32 files among them."""
        checks = self.held.checks
        if not checks:
            return ""
        full = [check.multiple for check in checks if check.passed and check.precision == "fp32"]
        multiples = [multiple for multiple in full if multiple is not None]
        worst = f"; largest float32 error {times(max(multiples))} × that of eager PyTorch" if multiples else ""
        passed = sum(check.passed for check in checks)
        return f"{passed} of {len(checks)} checks against the float64 reference passed{worst}"

    def confidence(self) -> str:
        """State what the deployed file is measurably faster than, or why that is inconclusive, and on which machine."""
        if self.deployed is None:
            return ""
        row = self.deployed.quick.row
        disturbed = disturbance(other for other in self.held.rows if other.device == row.device)
        if disturbed.prevails:
            return f"no: {disturbed.prevailing} were disturbed by other work; {self._machine(row)}"
        return f"{self._rivals(self.deployed.quick)}; {self._machine(row)}"

    def _rivals(self, choice: Choice) -> str:
        large = [f"{row_name(row)} ({times(_of(row, choice.row))} × as large)" for row in choice.oversized]
        more = f"; not worth its size, and not measurably faster: {listed(large)}" if large else ""
        return self._tied(choice) + more

    def _tied(self, choice: Choice) -> str:
        if tied := others(choice):
            names = listed(list(map(row_name, tied)))
            return f"not measurably faster than {names}; the most portable of them is deployed"
        if choice.single and not choice.oversized:
            return "the only verified file that was timed"
        return f"measurably faster than every other verified file{' but those below' * bool(choice.oversized)}"

    def _machine(self, row: Timing) -> str:
        environment = self.held.environment
        machine = environment["gpu" if row.device == "cuda" else "cpu"]
        sets = environment.get("instruction_sets", []) if row.device == "cpu" else []
        tf32 = f", TF32 {'on' if row.tf32 else 'off'}" if row.device == "cuda" else ""
        in_brackets = f" ({', '.join(sets)})" if sets else ""
        return f"on {machine}{in_brackets}, {row.threads} thread{'s' * (row.threads != 1)}{tf32}"

    def caveat(self) -> list[str]:
        """Collect every caveat, the worst first."""
        return caveats(self.held, self.deployed)

    def files(self) -> str:
        """Count the exported files and their size."""
        exports = self.held.exports
        if not exports:
            return ""
        size = sum(artifact.details.get("bytes", 0) for artifact in exports) / 2**20
        return f"{len(exports)} files of {len({artifact.network for artifact in exports})} networks, {size:.1f} MiB"

    def runs(self) -> str:
        """State in which runtimes the first float32 lowering runs."""
        return runs_words(self.held.portability)

    def refused(self) -> str:
        """State what could not be exported, and why."""
        refused = {directory.name: directory.read().refused for directory in self.held.directories}
        named = {f"{network}/{row}": why for network, rows in refused.items() for row, why in rows.items()}
        return "; ".join(by_reason(named, "row"))

    def left_out(self) -> str:
        """State which runners could not check anything, and why."""
        if (verified := self.held.verified) is None:
            return ""
        notes = [f"{len(verified.refused)} combinations of file and runtime unsupported"] if verified.refused else []
        return "; ".join([*by_reason(verified.unavailable), *notes])

    def next(self) -> str:
        """Name the next stage to run; empty where all have run."""
        missing = (("export", self.held.exports), ("verify", self.held.checks), ("bench", self.held.rows))
        stage = next((name for name, there in missing if not there), "")
        return f"stn-export {stage} --run {typed(self.held.run)}" if stage else ""


WHOLE = (
    *("deploy", "latency", "throughput", "overhead", "accuracy"),
    *("verified", "confidence", "caveat", "next"),
)
STAGES = {
    "train": ("accuracy", "next"),
    "adopt": ("next",),
    "export": ("files", "refused", "runs", "next"),
    "verify": ("verified", "accuracy", "left_out", "caveat", "next"),
    "bench": ("deploy", "latency", "throughput", "overhead", "confidence", "caveat"),
}


def runs_words(portability: Portability) -> str:
    """State in which runtimes the first float32 lowering runs; empty where none was exported."""
    lowering = next((name for name in (*PREFERRED, *portability) if name in portability), None)
    if lowering is None:
        return ""
    verdicts: dict[str, list[str]] = {}
    for runtime, (verdict, _) in portability[lowering].items():
        verdicts.setdefault(verdict, []).append(runtime)
    return f"{lowering} " + "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in verdicts.items())


def inconclusive(contest: Timing) -> str:
    """Return a suffix where a paired comparison is inconclusive."""
    return ", inconclusive" if contest.verdict == INCONCLUSIVE else ""


def card(content: Held, stage: str | None = None) -> list[Line]:
    """Return the lines of a stage's card, or of the whole card; a part with several sentences has one line for each."""
    answer = Answer(content)
    lines: list[Line] = []
    for part in STAGES[stage] if stage else WHOLE:
        sentence = getattr(answer, part)()
        sentences = [sentence] if isinstance(sentence, str) else sentence
        lines += [(part.replace("_", " "), sentence) for sentence in sentences if sentence]
    return lines


def by_word(lines: Sequence[Line]) -> dict[str, str]:
    """Join the sentences that share a card's word."""
    by_sentence: dict[str, list[str]] = {}
    for word, sentence in lines:
        by_sentence.setdefault(word, []).append(sentence)
    return {word: "; ".join(sentences) for word, sentences in by_sentence.items()}


KEPT = ("network", "artifact", "runner", "sha256", "batch", "regime", "p50", "p50_low", "p50_high")


def figures(content: Held) -> dict:
    """Return by device the file to deploy, its runner, and seconds with their interval, for a program to read."""
    return {
        device: {
            name: {key: getattr(headline(content.rows, row), key) for key in KEPT}
            for name, row in (("latency", chosen.quick.row), ("throughput", chosen.most.row))
        }
        for device, chosen in Answer(content).by_device.items()
    }


def in_markdown(value: object) -> object:
    """Escape a template's value for Markdown, unless it is Markdown already (``|raw``)."""
    return cli.markdown(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def in_html(value: object) -> object:
    """Make a template's value visible text for HTML, which Jinja escapes itself."""
    return cli.visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def markdown(lines: Sequence[Line]) -> str:
    """Format a card as a Markdown table, for the report and the model card."""
    rows = "\n".join(f"| **{word}** | {cli.markdown(text)} |" for word, text in lines)
    return f"<!-- card -->\n| | |\n|---|---|\n{rows}\n<!-- /card -->"


def top(content: Held) -> str:
    """Format the whole card for the model card, without the next command, which names the run's path."""
    return markdown([line for line in card(content) if line[0] != "next"])


def close(run: Path, stage: str | None = None) -> None:
    """Print a stage's card at its end, and update the card in the model card where there is one."""
    content = held(run)
    path = run / MODEL_CARD
    if path.exists():
        whole = top(content)
        write_if_changed(path, BLOCK.sub(lambda _: whole, path.read_text(encoding="utf-8"), count=1).encode())
    cli.card(card(content, stage))
