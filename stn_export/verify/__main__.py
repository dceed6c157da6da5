"""Verify every artifact of a run against PyTorch: ``stn-export verify --run artifacts/<run>``.

Two files, or a run and ``--against`` another, are compared with each other instead; see ``file_comparison.versus``.

Every artifact is run by every runner that is available. The reference is the captured network in float64; the error of
eager PyTorch in float32 is measured too, so that "as accurate as PyTorch" is a number. ``checks`` defines what is
compared; this module selects, prints, and writes ``verify.json`` and ``points.pt``.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import msgspec
import torch
from msgspec.structs import replace
from rich.text import Text

from stn_export import cli
from stn_export.config import DEFAULT_RUN
from stn_export.errors import CheckFailedError, UserError, typed
from stn_export.results.card import close
from stn_export.results.text import passed_words, times, verdict_words
from stn_export.results.tolerances import GRID, OUTPUT, REQUIRED_RUNNERS, TOLERANCES, worst_by_kind
from stn_export.run.environment import collecting_seldom, describe, using_threads
from stn_export.run.manifest import (
    POINTS_FILE,
    PROGRAM,
    VERIFY_FILE,
    VERIFY_SCHEMA,
    Artifact,
    NetworkDirectory,
    network_directories,
    trust_run,
)
from stn_export.run.records import Check, NetworkEntry, Verified
from stn_export.run.schemas import SCHEMA as POINTS_SCHEMA
from stn_export.run.schemas import Points
from stn_export.run.store import alone, fingerprint, serialise, write_atomically, write_json
from stn_export.runners import FEW, RUNNERS, RunnerSpec
from stn_export.runners.external import RefusedError
from stn_export.runners.external.environments import asked_for, runtimes_here
from stn_export.verify import file_comparison, points_file
from stn_export.verify.bounds import Asked
from stn_export.verify.checks import check_artifact, unchecked
from stn_export.verify.oracle import Reference, reference_of

# Journal of checks, from which an interrupted verification resumes.


JOURNAL = ".checks.jsonl"


class Journal:
    """Checks of an unfinished verification, one JSON line each with its ``key``, in the run directory.

    Lines with another key (another network, other examples, another machine) and incomplete lines are ignored. With
    ``again`` the journal starts empty.
    """

    def __init__(self, run: Path, key: str, again: bool = False) -> None:
        self.path, self.key = run / JOURNAL, key
        if again:
            self.close()
        self.checks: dict[tuple[str, ...], Check] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            try:
                entry = json.loads(line)  # accepts NaN, unlike strict JSON
                check = msgspec.convert(entry["check"], Check)
            except (ValueError, KeyError, TypeError):
                continue
            if entry["key"] == key:
                self.checks[check.network, check.artifact, check.sha256, check.runner] = check

    def of(self, artifact: Artifact, runner: str) -> Check | None:
        """Return the check of an artifact in a runner from an earlier session; None if there is none."""
        return self.checks.get((artifact.network, artifact.name, artifact.sha256, runner))

    def knows(self, check: Check) -> bool:
        """Return whether a check is from an earlier session."""
        return (check.network, check.artifact, check.sha256, check.runner) in self.checks

    def add(self, check: Check) -> None:
        """Append a check."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": self.key, "check": msgspec.to_builtins(check)}) + "\n")

    def close(self) -> None:
        """Delete the journal, once all its checks are in ``verify.json``."""
        self.path.unlink(missing_ok=True)


Job = tuple[Artifact, Path, RunnerSpec]
SMALL = 10**8  # multiply-adds of an example, below which one thread is faster
COLUMNS = ("artifact", "runner", "grid px", "output", "× eager", "agreement", "accuracy", "repeats", "verdict")
DROP = ("repeats", "grid px", "× eager", "accuracy", "agreement", "output")


def jobs_of(artifacts: Sequence[tuple[Artifact, Path]], only: Sequence[str]) -> list[Job]:
    """Pair every artifact of a network with every runner available here, or with those in ``only``; GPU runners first.

    They come first because the time on a rented GPU may end before the rest is done.
    """
    jobs = [
        (artifact, path, spec)
        for artifact, path in artifacts
        for spec in RUNNERS
        if spec.takes(artifact) and not spec.unavailable()
        if not only or {artifact.name, f"{artifact.network}/{artifact.name}", spec.name} & set(only)
    ]
    return sorted(jobs, key=lambda job: job[2].device == "cpu")


def skipped(jobs: Sequence[Job], artifacts: Sequence[tuple[Artifact, Path]]) -> Iterator[Check]:
    """Yield a failed check for every artifact that the runner required for its format will not run."""
    planned = {(artifact.name, spec.name) for artifact, _, spec in jobs}
    for artifact, _ in artifacts:
        runner = REQUIRED_RUNNERS[artifact.format]
        if (artifact.name, runner) not in planned:
            why = next((spec.unavailable() for spec in RUNNERS if spec.name == runner), "")
            failure = ": ".join(filter(None, (f"{runner} could not run the file", why)))
            yield unchecked(artifact, runner, artifact.precision, failure)


@dataclass(frozen=True)
class Verification:
    """A network of a run with its reference and the checks of its artifacts so far.

    ``refused`` is the reason why an external runtime does not support an artifact, by artifact and runner.
    """

    directory: NetworkDirectory
    jobs: list[Job]
    skipped: list[Check]
    checks: list[Check] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @cached_property
    def reference(self) -> Reference:
        """Return the float64 reference, computed when first asked for, which takes long."""
        return reference_of(self.directory.program(), self.directory.examples())

    @cached_property
    def few(self) -> Reference:
        """Return the reference over ``FEW`` examples, for runners on a device that stands in for a GPU."""
        return reference_of(self.directory.program(), self.directory.examples().first(FEW))

    def fresh(self, journal: Journal | None) -> int:
        """Count the checks to make, which no earlier session made."""
        known = [journal is not None and journal.of(artifact, spec.name) for artifact, _, spec in self.jobs]
        return len(self.skipped) + sum(not each for each in known)

    def run(self, seconds: float = 0, journal: Journal | None = None) -> Iterator[Check]:
        """Check one artifact after the other; search each that passes for worse inputs for ``seconds``.

        Checks in the journal are reused.
        """
        for check in self.skipped:
            self.checks.append(check)
            yield check
        with using_threads(1 if self.directory.facts.multiply_adds < SMALL else torch.get_num_threads()):
            for artifact, path, spec in self.jobs:
                earlier = journal.of(artifact, spec.name) if journal else None
                if earlier is None:
                    try:
                        earlier = self._check(artifact, path, spec, seconds)
                    except RefusedError as why:
                        self.refused[f"{artifact.network}/{artifact.name} in {spec.name}"] = str(why)
                        continue
                    if journal:
                        journal.add(earlier)
                self.checks.append(earlier)
                yield earlier

    def _check(self, artifact: Artifact, path: Path, spec: RunnerSpec, seconds: float) -> Check:
        if stand_in := spec.software():
            check = check_artifact(artifact, path, spec, self.few)
            return replace(check, notes=(*check.notes, f"{FEW} examples: {stand_in} stands in for a GPU"))
        check = check_artifact(artifact, path, spec, self.reference)
        if not seconds:
            return check
        from stn_export.verify.search import with_search  # an optional dependency

        return with_search(check, artifact, path, spec, self.reference, seconds)

    def entry(self) -> NetworkEntry:
        """Return the network's entry in ``verify.json``."""
        reference = self.reference
        points = {name: point.entry() for name, point in reference.points.items()}
        labels = reference.examples.labels is not None
        return NetworkEntry(
            examples=len(reference.examples), labels=labels, notes=tuple(reference.notes), points=points
        )

    def points(self) -> Points | None:
        """Return the network's entry in ``points.pt``; None if it does not sample."""
        return points_file.points_of(self.reference, self.checks, self.directory.listed(PROGRAM).sha256)


def planned(run: Path, only: Sequence[str]) -> list[Verification]:
    """List what is to be checked in a run.

    Raises:
        UserError: if there is no run, an artifact is missing, edited or stale, or ``only`` names nothing in it.
    """
    networks = []
    for directory in network_directories(run):
        artifacts = directory.expected()
        jobs = jobs_of(artifacts, only)
        networks.append(Verification(directory, jobs, [] if only else list(skipped(jobs, artifacts))))
    if only and not any(network.jobs for network in networks):
        raise UserError(
            f"{run} has no artifact or runner {', '.join(only)}", f"stn-export export --list --run {typed(run)}"
        )
    return networks


def unavailable_runners() -> dict[str, str]:
    """Return the runners that cannot run here, with the reason."""
    return {spec.name: reason for spec in RUNNERS if (reason := spec.unavailable())}


def verify(
    networks: Sequence[Verification], fail_fast: bool, seconds: float = 0, journal: Journal | None = None
) -> list[Check]:
    """Run all checks, or up to the first failure, with a progress bar."""
    checks, total = [], sum(len(network.jobs) + len(network.skipped) for network in networks)
    fresh = {network.directory.name: network.fresh(journal) for network in networks}
    stage = f"verify, search {seconds:g} s" if seconds else "verify"
    with cli.progress(word="verify", unit="checks") as bar:
        bar.announce(
            sum(fresh.values()), cli.Paces.read().expected(stage, [_work(network, fresh) for network in networks])
        )
        task = bar.add_task("verify", total=total, completed=total - sum(fresh.values()))
        try:
            for check in (check for network in networks for check in _timed(network, stage, fresh, seconds, journal)):
                checks.append(check)
                known = journal is not None and journal.knows(check)
                bar.update(task, advance=int(not known), description=f"{check.network}/{check.artifact}")
                if fail_fast and check.failure:
                    break
        except KeyboardInterrupt:
            kept = f"{len(checks)} of {total} checks kept; the same command goes on" if journal else ""
            raise KeyboardInterrupt(kept) from None
    return checks


def _work(network: Verification, fresh: Mapping[str, int]) -> tuple[int, int]:
    """Return a network's multiply-adds, and the number of checks to make of it."""
    return network.directory.facts.multiply_adds, fresh[network.directory.name]


def _timed(
    network: Verification, stage: str, fresh: Mapping[str, int], seconds: float, journal: Journal | None
) -> Iterator[Check]:
    """Yield the checks of a network, and keep their pace if it runs to its end."""
    with cli.measured(stage, *_work(network, fresh)):
        yield from network.run(seconds, journal)


def key_of(networks: Sequence[Verification], seconds: float) -> str:
    """Return a fingerprint of what all checks depend on.

    That is programs, examples, tolerances, seconds of search, versions and machine.
    """
    facts = [
        (network.directory.listed(PROGRAM).sha256, network.directory.facts.examples["sha256"]) for network in networks
    ]
    return fingerprint([repr((facts, seconds, _tolerances(), describe(), runtimes_here())).encode()])


def _tolerances() -> dict[str, dict]:
    return {precision: tolerance.as_dict() for precision, tolerance in TOLERANCES.items()}


def result_of(networks: Sequence[Verification], checks: Sequence[Check]) -> Verified:
    """Collect the content of ``verify.json``, in the types that it is read back as."""
    examples = {network.directory.name: network.directory.facts.examples["sha256"] for network in networks}
    content = Verified(
        passed=bool(checks) and not any(check.failure for check in checks),
        checks=tuple(replace(check, examples_sha256=examples[check.network]) for check in checks),
        networks={network.directory.name: network.entry() for network in networks if network.jobs and network.checks},
        unavailable=unavailable_runners(),
        refused={where: why for network in networks for where, why in network.refused.items()},
        tolerances=_tolerances(),
        environment=describe() | {"runtimes": runtimes_here()},
    )
    return msgspec.convert(content.as_dict(), Verified)


def write(run: Path, networks: Sequence[Verification], content: Verified) -> None:
    """Write ``points.pt`` and ``verify.json``."""
    points = {network.directory.name: network.points() for network in networks if network.jobs and network.checks}
    kept = {
        "schema": POINTS_SCHEMA,
        "networks": {name: content_of for name, content_of in points.items() if content_of},
    }
    write_atomically(run / POINTS_FILE, serialise(kept))
    write_json(run / VERIFY_FILE, VERIFY_SCHEMA, content.as_dict())


def main(arguments: Sequence[str] | None = None) -> None:
    """Verify a run, print the table and write ``verify.json``; or compare two files or two runs.

    Raises:
        CheckFailedError: if any artifact differs, or there was nothing to compare.
        UserError: if there is nothing to compare, or options contradict each other.
    """
    options = cli.parse("verify", arguments)
    if options.files or options.against:
        if options.only or options.fail_fast or options.again:
            raise UserError("--only, --fail-fast and --again are for checks against PyTorch", "leave them out")
        asked = Asked(options.precision, options.atol, options.rtol)
        file_comparison.versus(options.files, options.run, options.against, options.inputs, options.trust, asked)
        return
    if any(option is not None for option in (options.precision, options.atol, options.rtol)):
        raise UserError("--precision, --atol and --rtol are for two files or two runs", "leave them out")
    run = options.run or DEFAULT_RUN
    with alone(run, options.wait), asked_for(options.runtimes), collecting_seldom():
        _verify(run, options)


def _verify(run: Path, options: Namespace) -> None:
    if options.trust:
        trust_run(run)
    networks = planned(run, options.only)
    journal = None if options.only else Journal(run, key_of(networks, options.search), options.again)
    checks = verify(networks, options.fail_fast, options.search, journal)
    content = result_of(networks, checks)
    if not options.only:
        write(run, networks, content)
        if journal:
            journal.close()
    if options.format == "json":
        cli.print_json({"schema": VERIFY_SCHEMA} | content.as_dict())
    else:
        show(content)
    failures = [check for check in checks if check.failure]
    if not options.only:
        close(run, "verify")
    else:
        for name in _without_jobs(networks, options.only):
            cli.say(f"left out: {name}: {unavailable_runners().get(name, 'no such artifact or runner here')}", "dim")
        cli.card([("verified", passed_words(len(checks) - len(failures), len(checks)))])
    if not checks and content.refused:
        where, why = next(iter(content.refused.items()))
        raise UserError(f"there was nothing to compare: {where}: {why}", "choose other runners with --only")
    if failures or not checks:
        raise CheckFailedError(f"{len(failures)} of {len(checks)} checks", *map(_line, failures))


def _without_jobs(networks: Sequence[Verification], only: Sequence[str]) -> list[str]:
    """Return the names in ``only`` for which nothing was checked."""
    jobs = [(artifact, spec) for network in networks for artifact, _, spec in network.jobs]
    names = {name for a, spec in jobs for name in (a.name, f"{a.network}/{a.name}", spec.name)}
    return [name for name in only if name not in names]


def _line(check: Check) -> str:
    return f"{check.network}/{check.artifact} on {check.runner}: {check.failure}"


def show(content: Verified) -> None:
    """Print the table of checks, failures first, the notes, and the artifacts that external runtimes do not support."""
    rows = [_row(check, content.networks) for check in sorted(content.checks, key=lambda check: check.passed)]
    cli.table("Parity with PyTorch: worst errors against float64", COLUMNS, rows, DROP)
    for name, network in content.networks.items():
        for note in network.notes:
            cli.say(f"{name}: {note}", "dim")
    for where, why in content.refused.items():
        cli.say(f"left out: {where}: {why}", "dim")


def _row(check: Check, networks: Mapping[str, NetworkEntry]) -> tuple[str | Text, ...]:
    """Return the table cells of a check."""
    worst = worst_by_kind(check.errors, networks[check.network].points if check.network in networks else {})
    return (
        f"{check.network}/{check.artifact}",
        check.runner,
        cli.figure(worst.get(GRID), ".1e"),
        cli.figure(worst.get(OUTPUT), ".1e"),
        times(check.multiple if check.precision == "fp32" else None),
        cli.figure(check.agreement, ".2%"),
        cli.figure(check.accuracy, ".2%"),
        "yes" if check.deterministic else "no",
        cli.styled(verdict_words(check.precision, check.passed), "green" if check.passed else "red"),
    )


if __name__ == "__main__":
    sys.exit(cli.run(main))
