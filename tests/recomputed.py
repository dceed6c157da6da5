"""Derived figures of kept files, computed anew from the raw values beside them: ``python -m tests.recomputed``.

Raw are accuracies after each epoch, seconds of single epochs, and intervals of paired comparisons; all else is derived.
``stale`` names what a kept file says otherwise, and ``make readme`` refuses to write pages from such a file.
"""

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path

from benchmarks.tools import proof
from benchmarks.tools.kept import KEPT
from benchmarks.tools.training_speed import pairs_ratio
from stn_export import cli
from stn_export.results.statistics import Estimate, estimate, verdict
from stn_export.run.store import json_bytes, write_if_changed
from stn_export.train.outcomes import SETTLED, SETTLED_WORDS, finding
from stn_export.train.outcomes import verdict as said_of
from tests.conftest import REPOSITORY

CLOSE = 6e-5  # accuracies are kept with four digits behind the point
Content = dict
Remake = Callable[[Content], None]


def trainings(content: Content) -> None:
    """Means, deviations, intervals, gains and what they say, from accuracies after each epoch."""
    for run in content["runs"]:
        for model in run["models"].values():
            if run["measure"] != "the epoch that did best on held-out images":
                model["seeds"] = {seed: measured(run["measure"], each) for seed, each in model["accuracies"].items()}
            figures(model, estimate(list(model["seeds"].values())).within(0, 1))
            if "median_seconds" in model:
                model["median_seconds"] = statistics.median(model["seconds"].values())
        for name, gain in run["differences"].items():
            gain["seeds"] = differences(run["models"], name)
            found = estimate(list(gain["seeds"].values()))
            figures(gain, found)
            gain["sentence"] = said_of(found)
            if "finding" in gain:
                gain["finding"] = finding(found)


def measured(measure: str, accuracies: list[float]) -> float:
    """The accuracy that stands for a training."""
    return statistics.fmean(accuracies[SETTLED]) if measure == SETTLED_WORDS else accuracies[-1]


def differences(models: Mapping[str, Mapping], other: str) -> dict[str, float]:
    """Points that the first network is ahead of another, seed by seed."""
    ours, theirs = next(iter(models.values()))["seeds"], models[other]["seeds"]
    return {seed: 100 * (ours[seed] - value) for seed, value in theirs.items() if seed in ours}


def figures(entry: Content, found: Estimate) -> None:
    """Put an estimate's figures in their places."""
    entry.update({name: value for name, value in found.as_dict().items() if name in entry})


def speeds(content: Content) -> None:
    """Ratios of epochs that took turns, and their intervals by the method of today."""
    for row in content["rows"]:
        if "ratio" in row:
            row |= pairs_ratio(row["seconds"], row["baseline_seconds"])


def proofs(content: Content) -> None:
    """Verdicts of intervals, and what they make of each trial."""
    for trial in content["trials"]:
        for row in trial["rows"]:
            middles(row)
        trial["found"], trial["passed"] = proof.judge(proof.TRIALS[trial["trial"]], trial["rows"])


def timings(content: Content) -> None:
    """Rates, and the middles and verdicts of intervals."""
    for row in (each["extra_info"] for each in content["benchmarks"]):
        if "p50" in row:
            row["examples_per_second"] = row["batch"] / row["p50"]
        if "ratio" in row:
            middles(row)


def middles(row: Content) -> None:
    """The ratio and the verdict of an interval."""
    row["ratio"] = math.sqrt(row["ratio_low"] * row["ratio_high"])
    row["verdict"] = verdict(row["ratio_low"], row["ratio_high"])


def mutants(content: Content) -> None:
    """The share that was killed, and sums over modules."""
    states = {state for counts in content["modules"].values() for state in counts}
    total = {state: sum(counts.get(state, 0) for counts in content["modules"].values()) for state in states}
    killed = total.get("killed", 0) + total.get("timed out", 0)
    content |= {"total": total, "score": round(killed / sum(total.values()), 4)}


KINDS: dict[str, Remake] = {  # by a key that only files of the kind have
    "runs": trainings,
    "rows of epochs": speeds,
    "trials": proofs,
    "benchmarks": timings,
    "modules": mutants,
}


def kind_of(content: Mapping) -> Remake | None:
    """How a file's derived figures are made; None where it holds none."""
    if content.get("schema", "").startswith("stn_export/training-speed/"):
        return KINDS["rows of epochs"]
    return next((remake for key, remake in KINDS.items() if key in content), None)


def anew(content: Content) -> Content:
    """A copy of a kept file with its derived figures made anew."""
    made = deepcopy(content)
    if remake := kind_of(content):
        remake(made)
    return made


def unlike(kept: object, made: object, where: str = "") -> Iterator[str]:
    """Every figure or word in which two contents differ, further than rounding explains."""
    if isinstance(kept, dict) and isinstance(made, dict):
        for key in {**kept, **made}:
            yield from unlike(kept.get(key), made.get(key), f"{where}.{key}" if where else str(key))
    elif isinstance(kept, list) and isinstance(made, list) and len(kept) == len(made):
        for index, (one, other) in enumerate(zip(kept, made, strict=True)):
            yield from unlike(one, other, f"{where}[{index}]")
    elif not _alike(kept, made, 100 if ".differences." in where else 1):
        yield f"{where} is {kept}, computed anew {made}"


def _alike(kept: object, made: object, unit: int) -> bool:
    if isinstance(kept, float | int) and isinstance(made, float | int) and not isinstance(kept, bool):
        return math.isclose(kept, made, rel_tol=1e-6, abs_tol=CLOSE * unit)
    return kept == made


def kept_files() -> dict[Path, Content]:
    """Every kept file of figures."""
    paths = sorted((REPOSITORY / KEPT).glob("*.json"))
    return {path: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def stale(files: Mapping[Path, Content]) -> list[str]:
    """Derived figures of kept files that are not what their raw values give today."""
    return [f"{path.name}: {line}" for path, content in files.items() for line in unlike(content, anew(content))]


def main() -> None:
    """Write the files anew whose derived figures are stale."""
    for path, content in kept_files().items():
        if any(unlike(content, made := anew(content))):
            rest = {key: value for key, value in made.items() if key != "schema"}
            write_if_changed(path, json_bytes(made["schema"], rest))
            cli.say(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(cli.run(lambda _=None: main()))
