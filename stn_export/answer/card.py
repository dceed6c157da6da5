"""The card: what to ship, what it does and costs, how sure that is and what to mind, in at most ``MOST`` lines.

Every stage ends in its own part of it; the whole one opens the report and the model card.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stn_export import cli
from stn_export.answer.choice import Shipped, contest_of, others, shipped
from stn_export.answer.held import Held, held
from stn_export.artifacts.files import write_if_changed
from stn_export.artifacts.manifest import MODEL_CARD, PLAIN, PROGRAM, SUBJECT
from stn_export.comparison.fastest import Choice, Rows, program, steps
from stn_export.comparison.words import NAMED, by_reason, passed_words, percent, significant, span, times

MOST = 8
BLOCK = re.compile(r"<!-- card -->.*?<!-- /card -->", re.DOTALL)
Line = tuple[str, str]  # a word, and what is to be said of it


def named(row: Mapping) -> str:
    """Artifact and runner."""
    return f"{row['artifact']} in {row['runner']}"


def seconds_of(row: Mapping) -> str:
    """Milliseconds of one example, with the interval."""
    return f"{significant(1e3 * row['p50'])} ms ({span(1e3 * row['p50_low'], 1e3 * row['p50_high'])})"


def rate(row: Mapping) -> str:
    """Examples a second, with the interval."""
    low, high = row["batch"] / row["p50_high"], row["batch"] / row["p50_low"]
    return f"{significant(row['batch'] / row['p50'])} examples a second ({span(low, high)})"


def ratio(contest: Mapping, inverse: bool = False) -> str:
    """A contest's ratio, or the other's time over ours, with the interval."""
    ends = contest["ratio"], contest["ratio_low"], contest["ratio_high"]
    middle, low, high = (1 / ends[0], 1 / ends[2], 1 / ends[1]) if inverse else ends
    return f"{significant(middle)} times ({span(low, high)})"


@dataclass(frozen=True)
class Answer:
    """What a run's files come to."""

    held: Held

    @cached_property
    def by_device(self) -> dict[str, Shipped]:
        """What to ship by device, the fastest one first."""
        found = {}
        for device in sorted({row["device"] for row in self.held.rows}):
            if chosen := shipped(self._rows(device), self.held.proved, self.held.portability):
                found[device] = chosen
        return dict(sorted(found.items(), key=lambda pair: pair[1].quick.row["p50"]))

    @property
    def ships(self) -> Shipped | None:
        """What to ship, on the fastest device."""
        return next(iter(self.by_device.values()), None)

    def _rows(self, device: str) -> Rows:
        return [row for row in self.held.rows if row["device"] == device]

    def ship(self) -> str:
        """The file and its runner."""
        if self.ships is None:
            return ""
        row = self.ships.quick.row
        files = {(each.network, each.name): each.file for each in self.held.artifacts}
        file = files.get((row["network"], row["artifact"]))
        return f"{named(row)}" + (f": {row['network']}/{file}" if file else "")

    def latency(self) -> str:
        """Latency, against eager PyTorch."""
        if self.ships is None:
            return ""
        row = self.ships.quick.row
        return f"{seconds_of(row)} for one example{self._against_eager(row)}"

    def throughput(self) -> str:
        """Throughput, and of which file."""
        if self.ships is None:
            return ""
        row, quick = self.ships.most.row, self.ships.quick.row
        by = "" if program(row) == program(quick) else f" by {named(row)}"
        return f"{rate(row)} at batch {row['batch']:,}{by}{self._against_eager(row)}"

    def _against_eager(self, row: Mapping) -> str:
        contest = contest_of(self.held.rows, "eager", row)
        if contest is None or contest["batch"] != row["batch"]:
            return ""
        doubt = ", we cannot tell which is faster" if contest["verdict"] == "cannot tell" else ""
        return f", {ratio(contest, inverse=True)} as fast as eager PyTorch{doubt}"

    def cost(self) -> str:
        """The subject against the plain network."""
        plain = [each.facts.label for each in self.held.directories if each.facts.role == PLAIN]
        if self.ships is None or not plain:
            return ""
        row = self.ships.quick.row
        contest = contest_of(self.held.rows, "overhead", row)
        if contest is None:
            return f"not measured against the {plain[0]} in {row['runner']}"
        said = f"the {row['label']} takes {ratio(contest)} the {contest['baseline_label']}'s time"
        doubt = ": it may cost something or nothing" if contest["verdict"] == "cannot tell" else ""
        return f"{said} at batch {contest['batch']:,}{doubt}"

    def accuracy(self) -> str:
        """Of what is shipped, of eager PyTorch and of the plain network; training's own before anything is checked."""
        proved = reversed(list(self.held.proved.items()))  # the first runner's counts
        found = {(network, name): value for (network, name, _), value in proved if value is not None}
        own = {network: value for (network, artifact), value in found.items() if artifact == PROGRAM}
        roles = {each.name: each.facts for each in self.held.directories}
        subject = self.held.directories[0].name
        if subject not in own:
            return self.held.trainings[0].sentence.removeprefix("Test accuracy: ") if self.held.trainings else ""
        shown = program(self.ships.quick.row)[1] if self.ships else PROGRAM
        value = found[subject, shown] if (subject, shown) in found else own[subject]
        change = f"{100 * (value - own[subject]):+.2f}"
        parts = [percent(value)]
        if shown != PROGRAM:
            parts.append("as in eager PyTorch" if float(change) == 0 else f"{change} points against eager PyTorch")
        parts += [f"the {roles[name].label} {percent(each)}" for name, each in own.items() if roles[name].role == PLAIN]
        return ", ".join(parts)

    def equal(self) -> str:
        """How many checks passed, and how far the worst float32 file among them strays."""
        checks = self.held.checks
        if not checks:
            return ""
        full = [each["multiple"] for each in checks if each["passed"] and each["precision"] == "fp32"]
        multiples = [multiple for multiple in full if multiple is not None]
        worst = f"; worst float32 error {times(max(multiples))} × eager PyTorch's own" if multiples else ""
        return f"{passed_words(sum(each['passed'] for each in checks), len(checks))} against float64{worst}"

    def sure(self) -> str:
        """What the choice cannot be told from, and what it holds for."""
        if self.ships is None:
            return ""
        choice = self.ships.quick
        return f"{self._tied(choice)}; {self._holds_for(choice.row)}"

    def _tied(self, choice: Choice) -> str:
        if tied := others(choice):
            more = f" and {len(tied) - NAMED} more" if tied[NAMED:] else ""
            return f"cannot be told from {', '.join(map(named, tied[:NAMED]))}{more}; the most portable of them"
        return "told apart from every other proved file"

    def _holds_for(self, row: Mapping) -> str:
        machine = self.held.environment["gpu" if row["device"] == "cuda" else "cpu"]
        tf32 = f", TF32 {'on' if row['tf32'] else 'off'}" if row["device"] == "cuda" else ""
        return f"on {machine}, {row['threads']} thread{'s' * (row['threads'] != 1)}{tf32}"

    def mind(self) -> str:
        """The one caveat that matters most here."""
        caveats: tuple[Callable[[], str], ...] = (
            self._failed,
            self._stale,
            self._unverified,
            self._faster,
            self._no_gain,
            self._disturbed,
            self._few,
        )
        return next(filter(None, (caveat() for caveat in caveats)), "another machine may order the files otherwise")

    def _failed(self) -> str:
        failed = [each for each in self.held.checks if not each["passed"]]
        if not failed:
            return ""
        first = failed[0]
        return f"{len(failed)} failed: {first['network']}/{first['artifact']} on {first['runner']}: {first['failure']}"

    def _stale(self) -> str:
        current = self.held.current
        of_today = {each["sha256"] for each in self.held.checks} <= current
        timed = {row["sha256"] for row in self.held.rows if "default" not in row["runner"]} <= current
        stale = [stage for stage, fine in (("verify", of_today), ("bench", timed)) if not fine]
        return f"what {' and '.join(stale)} found is of other files: run 'make {' '.join(stale)}'" if stale else ""

    def _unverified(self) -> str:
        checked = {each["sha256"] for each in self.held.checks}
        exported = {each.network for each in self.held.exports}
        left = [each for each in self.held.artifacts if each.sha256 not in checked and each.network in exported]
        names = ", ".join(f"{each.network}/{each.name}" for each in left[:NAMED]) + ", …" * (len(left) > NAMED)
        return f"not verified: {names}" if left and checked else ""

    def _faster(self) -> str:
        if self.ships is None:
            return ""
        fastest, proved = self.ships.quick.fastest, self.held.proved
        rows = [row for row in steps(self.held.rows) if row["batch"] == 1 and row["role"] == SUBJECT]
        rows = [row for row in rows if program(row) not in proved and row["p50"] < fastest["p50"]]
        return f"faster, but nothing proves it equal: {', '.join(map(named, rows[:NAMED]))}" if rows else ""

    def _no_gain(self) -> str:
        differences = self.held.trainings[0].differences.values() if self.held.trainings else ()
        told = [f"against the {each.label} {each.sentence}" for each in differences if each.finding != "gain"]
        single = any(each.count == 1 for each in differences)
        return "trained with one seed: no interval says whether the transformer helps" if single else "; ".join(told)

    def _disturbed(self) -> str:
        rows = self.held.rows
        blocks, off = (sum(row.get(name, 0) for row in rows) for name in ("blocks", "disturbed_blocks"))
        timings = [row["disturbed"] for row in rows if "disturbed" in row]
        if not any(timings) and not off:
            return ""
        return f"{sum(timings)} of {len(timings)} timings and {off:,} of {blocks:,} blocks were disturbed by other work"

    def _few(self) -> str:
        networks = self.held.verified.get("networks", {})
        unlabelled = [name for name, each in networks.items() if not each["labels"]]
        return "the examples have no labels: accuracy is not known" if unlabelled else ""

    def files(self) -> str:
        """What was exported."""
        exports = self.held.exports
        if not exports:
            return ""
        size = sum(each.details.get("bytes", 0) for each in exports) / 2**20
        return f"{len(exports)} files of {len({each.network for each in exports})} networks, {size:.1f} MiB"

    def runs(self) -> str:
        """Where the first float32 lowering runs."""
        found = self.held.portability
        lowering = next((name for name in ("folded", "plain", *found) if name in found), None)
        if lowering is None:
            return ""
        verdicts: dict[str, list[str]] = {}
        for runtime, (verdict, _) in found[lowering].items():
            verdicts.setdefault(verdict, []).append(runtime)
        return f"{lowering} " + "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in verdicts.items())

    def refused(self) -> str:
        """What could not be exported."""
        refused = {each.name: each.read().refused for each in self.held.directories}
        named = {f"{network}/{row}": why for network, rows in refused.items() for row, why in rows.items()}
        return "; ".join(by_reason(named, "row"))

    def left_out(self) -> str:
        """What no check could run in."""
        refused = self.held.verified.get("refused", {})
        told = [f"{len(refused)} times another runtime refuses a file"] if refused else []
        return "; ".join([*by_reason(self.held.verified.get("unavailable", {})), *told])

    def next(self) -> str:
        """What to do next, where not all stages have run."""
        missing = (("export", self.held.exports), ("verify", self.held.checks), ("bench", self.held.rows))
        stage = next((name for name, there in missing if not there), "")
        return f"stn-export {stage} --run {self.held.run}" if stage else ""


WHOLE = ("ship", "latency", "throughput", "cost", "accuracy", "equal", "sure", "mind", "next")
STAGES = {
    "train": ("accuracy", "next"),
    "adopt": ("next",),
    "export": ("files", "refused", "runs", "next"),
    "verify": ("equal", "accuracy", "left_out", "mind", "next"),
    "bench": ("ship", "latency", "throughput", "cost", "sure", "mind"),
}


def card(content: Held, stage: str | None = None) -> list[Line]:
    """A stage's card, or the whole one."""
    answer = Answer(content)
    parts = STAGES[stage] if stage else WHOLE
    lines = [(part.replace("_", " "), getattr(answer, part)()) for part in parts]
    return [line for line in lines if line[1]][:MOST]


KEPT = ("network", "artifact", "runner", "sha256", "batch", "p50", "p50_low", "p50_high")


def figures(content: Held) -> dict:
    """The answer for a script: by device the file, the runner, and seconds with their interval."""
    return {
        device: {
            name: {key: row[key] for key in KEPT}
            for name, row in (("latency", chosen.quick.row), ("throughput", chosen.most.row))
        }
        for device, chosen in Answer(content).by_device.items()
    }


def in_markdown(value: object) -> object:
    """What a template's expression gives, as Markdown shows it, unless it is Markdown already (``|raw``)."""
    return cli.markdown(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def in_html(value: object) -> object:
    """The same for HTML, which Jinja escapes by itself."""
    return cli.visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def markdown(lines: Sequence[Line]) -> str:
    """For the report and the model card."""
    rows = "\n".join(f"| **{word}** | {cli.markdown(text)} |" for word, text in lines)
    return f"<!-- card -->\n| | |\n|---|---|\n{rows}\n<!-- /card -->"


def top(content: Held) -> str:
    """What the model card opens with, which says nothing of where the run lies."""
    return markdown([line for line in card(content) if line[0] != "next"])


def close(run: Path, stage: str | None = None) -> None:
    """End a stage: print its card, and put the whole one on top of the model card where there is one."""
    content = held(run)
    path = run / MODEL_CARD
    if path.exists():
        whole = top(content)
        write_if_changed(path, BLOCK.sub(lambda _: whole, path.read_text(encoding="utf-8"), count=1).encode())
    cli.card(card(content, stage))
