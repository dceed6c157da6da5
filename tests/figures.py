"""Make every kept benchmark figure anew and write the pages from them: ``make figures``, on a quiet machine.

All is measured before anything is written into the checkout: a tree with changes would be noted as the figures' origin.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tools import calibration, results_page, runtimes_page
from benchmarks.tools.kept import KEPT, PROOF_PREFIX
from stn_export import cli
from stn_export.errors import CheckFailedError, UserError
from stn_export.run.environment import git_commit
from stn_export.run.store import write_if_changed
from tests import readme

WORK = Path("artifacts") / "figures"
RUN = "digits"  # of the run directory below the work directory
PICTURES = ("overhead-cpu.png", "pareto-cpu.png")
TINY = {"epochs": "1", "budget": "20s", "trials": "1", "count": "4", "pairs": "2", "grid": "quick"}
WHOLE = {"epochs": "", "budget": "", "trials": "", "count": "", "pairs": "", "grid": "quick"}


@dataclass(frozen=True)
class Step:
    """One command, and the exit codes that let the next one begin: 1 is a check that failed and was kept."""

    name: str
    words: tuple[str, ...]
    fine: tuple[int, ...] = (0,)


def options(**given: str) -> tuple[str, ...]:
    """Write options of a command line; one whose value is empty is left out."""
    return tuple(word for name, value in given.items() if value for word in (f"--{name}", value))


def steps(work: Path, size: dict[str, str]) -> list[Step]:
    """List what is run, in order: the demo's run, its timings kept, the method's trial, training, and the coverage."""
    run, kept = str(work / RUN), str(work / "kept")
    module = (sys.executable, "-m")
    stage = (*module, "stn_export")
    document = work / "method.md"
    return [
        Step("train", (*stage, "train", "--dataset", "digits", "--run", run, *options(epochs=size["epochs"]))),
        Step("export", (*stage, "export", "--run", run)),
        Step("verify", (*stage, "verify", "--run", run), (0, 1)),
        Step("bench", (*stage, "bench", "--run", run, "--again", *options(grid=size["grid"], budget=size["budget"]))),
        Step("report", (*stage, "report", "--run", run)),
        Step(
            "keep",
            (
                *module,
                "benchmarks.tools.results_page",
                "--keep",
                f"{run}/bench.json",
                "--kept",
                kept,
                "--out",
                f"{kept}.md",
            ),
        ),
        Step(
            "proof",
            (
                *(*module, "benchmarks.tools.proof", "--run", run, "--device", "cpu", "--out", kept),
                *options(trials=size["trials"]),
            ),
            (0, 1),
        ),
        Step(
            "training",
            (
                *(
                    *module,
                    "pytest",
                    "-q",
                    "benchmarks/tools",
                    "--confcutdir=benchmarks/tools",
                    "--dataset",
                    "digits",
                    "--device",
                    "cpu",
                ),
                *(f"--benchmark-json={work / 'bench-train.json'}", *options(pairs=size["pairs"])),
            ),
        ),
        Step(
            "training kept",
            (*module, "benchmarks.tools.training_speed", str(work / "bench-train.json"), "--results", kept),
        ),
        Step(
            "coverage",
            (
                *(*module, "benchmarks.tools.calibration", "--kept", f"{kept}/coverage.json"),
                *("--document", str(document), *options(count=size["count"])),
            ),
        ),
    ]


def measure(work: Path, size: dict[str, str]) -> None:
    """Run all steps; what they leave lies below ``work``, and nothing outside it changes.

    Raises:
        CheckFailedError: where one ends otherwise than it may.
    """
    kept = work / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    shutil.copyfile(readme.REPOSITORY / calibration.DOCUMENT, work / "method.md")
    for step in steps(work, size):
        cli.say(f"{step.name}: {' '.join(step.words[1:])}")
        code = subprocess.run(step.words, cwd=readme.REPOSITORY, env=os.environ, check=False).returncode
        if code not in step.fine:
            raise CheckFailedError(f"{step.name} ended with exit code {code}", "'make figures' begins anew")
    shutil.copyfile(work / RUN / "report.json", kept / "digits-cpu.json")


def publish(work: Path, repository: Path) -> list[str]:
    """Put what was measured into a checkout in the place of what it replaces, and write every page from it.

    Returns:
        the names of the files that are new or were changed.
    """
    target = repository / KEPT
    changed = []
    for old in replaced(work / "kept", target):
        old.unlink()
        changed.append(f"{old.name} (gone)")
    for path in sorted((work / "kept").glob("*.json")):
        changed += [path.name] * write_if_changed(target / path.name, path.read_bytes())
    for name in PICTURES:
        if (drawn := work / RUN / "figures" / name).exists():
            changed += [name] * write_if_changed(repository / "docs" / "pictures" / name, drawn.read_bytes())
    return changed + pages(repository)


def replaced(new: Path, target: Path) -> list[Path]:
    """List the kept timings of a CPU, and the trials of the method, that new ones take the place of."""
    timed = [path for path in target.glob("*.json") if b'"benchmarks"' in path.read_bytes() and of_cpu(path)]
    proofs = [path for path in target.glob(f"{PROOF_PREFIX}*.json") if read(path)["device"] == "cpu"]
    names = {path.name for path in new.glob("*.json")}
    return sorted({*timed, *proofs} - {target / name for name in names})


def of_cpu(path: Path) -> bool:
    """Say whether a kept file of timings is of a machine without a GPU."""
    return bool(read(path)["machine_info"]["stn_export"]["gpu"] is None)


def read(path: Path) -> dict:
    """Read a kept file."""
    content: dict = json.loads(path.read_text(encoding="utf-8"))
    return content


def pages(repository: Path) -> list[str]:
    """Write RESULTS.md, README and every page of docs from the kept files of a checkout; the names of those changed."""
    kept = repository / KEPT
    texts = {repository / results_page.RESULTS: results_page.document(kept)}
    method = repository / calibration.DOCUMENT
    texts[method] = calibration.with_tables(method.read_text(encoding="utf-8"), read(kept / calibration.COVERAGE.name))
    if (table := kept / runtimes_page.KEPT.name).exists():
        texts[repository / "docs" / runtimes_page.PAGE.name] = runtimes_page.page(read(table))
    changed = [path.name for path, text in texts.items() if write_if_changed(path, text.encode())]
    return changed + readme.write(repository)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then publish.

    Raises:
        UserError: where the checkout has changes, which the figures would be noted to come from.
    """
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.figures")
    parser.add_argument("--work", type=Path, default=WORK, help="directory for the run and all that is measured")
    parser.add_argument(
        "--into", type=Path, default=readme.REPOSITORY, help="checkout whose files and pages are written"
    )
    parser.add_argument("--tiny", action="store_true", help="as little as possible, to try the command; not to be kept")
    parser.add_argument("--publish-only", action="store_true", help="measure nothing: publish what lies in --work")
    given = parser.parse_args(arguments)
    if given.tiny and given.into.resolve() == readme.REPOSITORY:
        raise UserError("figures of a tiny run are not kept", "name a copy of the checkout with --into")
    if not (given.tiny or given.publish_only) and not git_commit().isalnum():
        raise UserError(f"figures are of a commit, and this tree is {git_commit()}", "commit first")
    work = given.work.absolute()
    if not given.publish_only:
        measure(work, TINY if given.tiny else WHOLE)
    changed = publish(work, given.into.absolute())
    cli.say(f"wrote {', '.join(changed)}" if changed else "everything is up to date")


if __name__ == "__main__":
    sys.exit(cli.run(main))
