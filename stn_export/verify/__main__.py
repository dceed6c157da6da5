"""Prove every artifact equal to PyTorch: ``python -m stn_export.verify --run artifacts/<run>``.

Two files, or a run and ``--against`` another, are compared with each other instead; see ``versus``.

Every artifact goes through every runner that is available here. The truth is the same network in float64; eager
PyTorch in float32 is measured beside it, so that "as accurate as PyTorch" is a number. ``checks`` says what is
compared; this module chooses, shows and writes.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from stn_export import cli
from stn_export.artifacts.environment import describe
from stn_export.artifacts.files import write_json
from stn_export.artifacts.manifest import VERIFY_FILE, VERIFY_SCHEMA, Artifact, network_directories
from stn_export.comparison.tolerances import REQUIRED_RUNNERS, TOLERANCES
from stn_export.config import ARTIFACTS, DEFAULT_DATASET, OUTPUT_NAME
from stn_export.errors import CheckFailedError, UserError
from stn_export.runners import RUNNERS, RunnerSpec
from stn_export.train.data import trained_on
from stn_export.verify import versus
from stn_export.verify.checks import Check, Truth, check_artifact, make_truth
from stn_export.verify.search import with_search

Job = tuple[Artifact, Path, RunnerSpec]
COLUMNS = ("artifact", "runner", "grid px", "log-prob", "× eager", "agreement", "accuracy", "repeats", "verdict")


def jobs_of(artifacts: Sequence[tuple[Artifact, Path]], only: Sequence[str]) -> list[Job]:
    """Every artifact of a model with every runner available here, those named in ``only`` if any are."""
    return [
        (artifact, path, spec)
        for artifact, path in artifacts
        for spec in RUNNERS
        if spec.takes(artifact) and not spec.unavailable()
        if not only or {artifact.name, f"{artifact.model}/{artifact.name}", spec.name} & set(only)
    ]


def skipped(jobs: Sequence[Job], artifacts: Sequence[tuple[Artifact, Path]]) -> Iterator[Check]:
    """A failed check for every artifact that would not go through the runner that its format requires."""
    planned = {(artifact.name, spec.name) for artifact, _, spec in jobs}
    for artifact, _ in artifacts:
        runner = REQUIRED_RUNNERS[artifact.format]
        if (artifact.name, runner) not in planned:
            known = (artifact.model, artifact.name, artifact.sha256, runner, artifact.precision)
            yield Check(*known, failure=f"{runner} did not run it")


def verify_run(run: Path, data: Path | None, only: Sequence[str], seconds: float = 0) -> Iterator[tuple[int, Check]]:
    """Check a run's artifacts one by one; with each comes how many there are in all.

    Each that passes is searched for worse inputs over that many ``seconds``, with 0 not at all.

    Raises:
        UserError: where there is no run, an artifact of it is missing, edited or stale, its data set cannot be had,
            or ``only`` names nothing of it.
    """
    directories = network_directories(run)
    artifacts = {directory.model: directory.expected() for directory in directories}
    jobs = {model: jobs_of(listed, only) for model, listed in artifacts.items()}
    total = sum(map(len, jobs.values()))
    if only and not total:
        raise UserError(f"{run} has no artifact or runner {', '.join(only)}", "python -m stn_export.export --list")
    dataset = trained_on(directories[0].checkpoint(), data)
    for directory in directories:
        if not only:
            yield from ((total, check) for check in skipped(jobs[directory.model], artifacts[directory.model]))
        truth: Truth | None = None
        for artifact, path, spec in jobs[directory.model]:
            truth = truth or make_truth(directory, dataset)
            check = check_artifact(artifact, path, spec, truth)
            yield total, with_search(check, artifact, path, spec, truth, seconds) if seconds else check


def unavailable_runners() -> dict[str, str]:
    """The runners that cannot run here, with the reason."""
    return {spec.name: reason for spec in RUNNERS if (reason := spec.unavailable())}


def verify(run: Path, data: Path | None, only: Sequence[str], fail_fast: bool, seconds: float = 0) -> list[Check]:
    """``verify_run`` to its end, or to the first failure, with progress."""
    checks = []
    with cli.progress() as bar:
        task = bar.add_task("verify", total=None)
        for total, check in verify_run(run, data, only, seconds):
            checks.append(check)
            bar.update(task, total=total, advance=1, description=f"{check.model}/{check.artifact}")
            if fail_fast and check.failure:
                break
    return checks


def result_of(checks: Sequence[Check]) -> dict:
    """The content of ``verify.json``."""
    return {
        "passed": bool(checks) and not any(check.failure for check in checks),
        "checks": [check.as_dict() for check in checks],
        "unavailable": unavailable_runners(),
        "tolerances": {precision: asdict(tolerance) for precision, tolerance in TOLERANCES.items()},
        "environment": describe(),
    }


def seconds(text: str) -> float:
    """An argument type: a time that is no less than nothing, and finite."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError
    return value


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.stage("verify", "Prove that every artifact of a run gives what PyTorch gives.")
    parser.add_argument("--run", type=cli.path_or_none, help=f"run directory; by default {ARTIFACTS}/{DEFAULT_DATASET}")
    parser.add_argument(
        "--data", type=cli.path_or_none, help="directory of CIFAR-10; by default where training read it"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="artifacts or runners; writes no verify.json"
    )
    parser.add_argument("--fail-fast", action="store_true", help="stop at the first failure")
    parser.add_argument(
        "--search", type=seconds, default=0, metavar="SECONDS", help="search every artifact and runner for worse inputs"
    )
    parser.add_argument("--json", action="store_true", help="print verify.json instead of the table")
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="two files to compare with each other, ONNX of any origin; one of PyTorch's without manifest or metadata "
        "gets images normalised as ours are",
    )
    parser.add_argument("--against", type=cli.path_or_none, metavar="RUN", help="compare --run with this run instead")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Verify a run, print the table, write ``verify.json``.

    Raises:
        CheckFailedError: where any artifact differs, or nothing was compared.
        UserError: where there is nothing to compare, or options contradict each other.
    """
    options = build_parser().parse_args(arguments)
    if options.files or options.against:
        if options.only or options.fail_fast:
            raise UserError("--only and --fail-fast are for checks against PyTorch", "leave them out")
        versus.versus(options.files, options.run, options.against, options.data, options.json)
        return
    run = options.run or ARTIFACTS / DEFAULT_DATASET

    checks = verify(run, options.data, options.only, options.fail_fast, options.search)
    content = result_of(checks)
    if not options.only:
        write_json(run / VERIFY_FILE, VERIFY_SCHEMA, content)
    if options.json:
        cli.print_json({"schema": VERIFY_SCHEMA} | content)
    else:
        show(content["checks"])
    failures = [check for check in checks if check.failure]
    if failures or not checks:
        raise CheckFailedError("\n".join([f"{len(failures)} of {len(checks)} checks", *map(_line, failures)]))


def _line(check: Check) -> str:
    return f"{check.model}/{check.artifact} on {check.runner}: {check.failure}"


def show(checks: Sequence[dict]) -> None:
    """The table, what failed first."""
    rows = [
        (
            f"{check['model']}/{check['artifact']}",
            check["runner"],
            cli.figure(check["errors"].get("grid"), ".1e"),
            cli.figure(check["errors"].get(OUTPUT_NAME), ".1e"),
            cli.figure(check["multiple"], ".1f"),
            cli.figure(check["agreement"], ".2%"),
            cli.figure(check["accuracy"], ".2%"),
            "yes" if check["deterministic"] else "no",
            "[green]equal[/]" if check["passed"] else "[red]FAILED[/]",
        )
        for check in sorted(checks, key=lambda check: check["passed"])
    ]
    cli.table("Parity with PyTorch: worst errors against float64", COLUMNS, rows)
    for name, reason in unavailable_runners().items():
        cli.say(f"[dim]{name} was not run: {cli.escape(reason)}[/]")


if __name__ == "__main__":
    sys.exit(cli.run(main))
