"""Prove every artifact equal to PyTorch: ``stn-export verify --run artifacts/<run>``.

Two files, or a run and ``--against`` another, are compared with each other instead; see ``versus``.

Every artifact goes through every runner that is available here. The reference is the captured network in float64; eager
PyTorch in float32 is measured beside it, so that "as accurate as PyTorch" is a number. ``checks`` says what is
compared; this module chooses, shows and writes ``verify.json`` and ``points.pt``.
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
from stn_export.errors import CheckFailedError, UserError
from stn_export.results.card import close
from stn_export.results.text import passed_words, times, verdict_words
from stn_export.results.tolerances import GRID, OUTPUT, REQUIRED_RUNNERS, TOLERANCES, worst_by_kind
from stn_export.run.environment import describe, using_threads
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
from stn_export.runners import RUNNERS, RunnerSpec
from stn_export.runners.external import RefusedError
from stn_export.runners.external.environments import asked_for, runtimes_here
from stn_export.verify import file_comparison, points_file
from stn_export.verify.bounds import Asked
from stn_export.verify.checks import check_artifact, unchecked
from stn_export.verify.oracle import Reference, reference_of

# Checks as they are made, so that a verification that was interrupted goes on where it stood.


JOURNAL = ".checks.jsonl"


class Journal:
    """Lines of ``key`` and check in a run directory; those of another ``key`` (another network, examples, machine) and
    half a line at its end are as if they were not there. Of one that begins ``again`` nothing is left.
    """

    def __init__(self, run: Path, key: str, again: bool = False) -> None:
        self.path, self.key = run / JOURNAL, key
        if again:
            self.close()
        self.checks: dict[tuple[str, ...], Check] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            try:
                found = json.loads(line)  # with NaN, which strict JSON has not
                check = msgspec.convert(found["check"], Check)
            except (ValueError, KeyError, TypeError):
                continue
            if found["key"] == key:
                self.checks[check.network, check.artifact, check.sha256, check.runner] = check

    def of(self, artifact: Artifact, runner: str) -> Check | None:
        """What was found before."""
        return self.checks.get((artifact.network, artifact.name, artifact.sha256, runner))

    def add(self, check: Check) -> None:
        """Keep one."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": self.key, "check": msgspec.to_builtins(check)}) + "\n")

    def close(self) -> None:
        """All are kept elsewhere now."""
        self.path.unlink(missing_ok=True)


Job = tuple[Artifact, Path, RunnerSpec]
SMALL = 10**8  # multiply-adds of an example, below which waking other threads costs more than they do
COLUMNS = ("artifact", "runner", "grid px", "output", "× eager", "agreement", "accuracy", "repeats", "verdict")
DROP = ("repeats", "grid px", "× eager", "accuracy", "agreement", "output")


def jobs_of(artifacts: Sequence[tuple[Artifact, Path]], only: Sequence[str]) -> list[Job]:
    """Every artifact of a network with every runner available here, those named in ``only`` if any are; a GPU's first.

    What answers most comes before what the minutes on a lent GPU may not suffice for.
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
    """A failed check for every artifact that would not go through the runner that its format requires."""
    planned = {(artifact.name, spec.name) for artifact, _, spec in jobs}
    for artifact, _ in artifacts:
        runner = REQUIRED_RUNNERS[artifact.format]
        if (artifact.name, runner) not in planned:
            why = next((spec.unavailable() for spec in RUNNERS if spec.name == runner), "")
            failure = ": ".join(filter(None, (f"{runner} did not run it", why)))
            yield unchecked(artifact, runner, artifact.precision, failure)


@dataclass(frozen=True)
class Verification:
    """A network of a run, the checks of its artifacts so far, and the reference that they were held against.

    ``refused`` is why another runtime does not take an artifact, by both.
    """

    directory: NetworkDirectory
    jobs: list[Job]
    skipped: list[Check]
    checks: list[Check] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @cached_property
    def reference(self) -> Reference:
        """Made when it is first asked for: it takes long."""
        return reference_of(self.directory.program(), self.directory.examples())

    def run(self, seconds: float = 0, journal: Journal | None = None) -> Iterator[Check]:
        """Check one artifact after the other; each that passes is searched for worse inputs over ``seconds``.

        What the journal holds is not checked again.
        """
        for check in self.skipped:
            self.checks.append(check)
            yield check
        with using_threads(1 if self.directory.facts.multiply_adds < SMALL else torch.get_num_threads()):
            for artifact, path, spec in self.jobs:
                known = journal.of(artifact, spec.name) if journal else None
                if known is None:
                    try:
                        known = self._check(artifact, path, spec, seconds)
                    except RefusedError as why:
                        self.refused[f"{artifact.network}/{artifact.name} in {spec.name}"] = str(why)
                        continue
                    if journal:
                        journal.add(known)
                self.checks.append(known)
                yield known

    def _check(self, artifact: Artifact, path: Path, spec: RunnerSpec, seconds: float) -> Check:
        check = check_artifact(artifact, path, spec, self.reference)
        if not seconds:
            return check
        from stn_export.verify.search import with_search  # an extra

        return with_search(check, artifact, path, spec, self.reference, seconds)

    def entry(self) -> NetworkEntry:
        """Return what ``verify.json`` says of the network."""
        reference = self.reference
        points = {name: point.entry() for name, point in reference.points.items()}
        labels = reference.examples.labels is not None
        return NetworkEntry(
            examples=len(reference.examples), labels=labels, notes=tuple(reference.notes), points=points
        )

    def points(self) -> Points | None:
        """For ``points.pt``; None where the network samples nowhere."""
        return points_file.points_of(self.reference, self.checks, self.directory.listed(PROGRAM).sha256)


def planned(run: Path, only: Sequence[str]) -> list[Verification]:
    """What is to be checked of a run.

    Raises:
        UserError: where there is no run, an artifact is missing, edited or stale, or ``only`` names nothing of it.
    """
    found = []
    for directory in network_directories(run):
        artifacts = directory.expected()
        jobs = jobs_of(artifacts, only)
        found.append(Verification(directory, jobs, [] if only else list(skipped(jobs, artifacts))))
    if only and not any(network.jobs for network in found):
        raise UserError(f"{run} has no artifact or runner {', '.join(only)}", "stn-export export --list")
    return found


def unavailable_runners() -> dict[str, str]:
    """The runners that cannot run here, with the reason."""
    return {spec.name: reason for spec in RUNNERS if (reason := spec.unavailable())}


def verify(
    networks: Sequence[Verification], fail_fast: bool, seconds: float = 0, journal: Journal | None = None
) -> list[Check]:
    """Check everything, or all up to the first failure, with progress."""
    checks, total = [], sum(len(each.jobs) + len(each.skipped) for each in networks)
    with cli.progress(word="verify", unit="checks") as bar:
        task = bar.add_task("verify", total=total)
        try:
            for check in (check for each in networks for check in each.run(seconds, journal)):
                checks.append(check)
                bar.update(task, advance=1, description=f"{check.network}/{check.artifact}")
                if fail_fast and check.failure:
                    break
        except KeyboardInterrupt:
            kept = f"{len(checks)} of {total} checks kept; the same command goes on" if journal else ""
            raise KeyboardInterrupt(kept) from None
    return checks


def key_of(networks: Sequence[Verification], seconds: float) -> str:
    """What checks of one verification share: programs, examples, tolerances, versions and machine."""
    facts = [(each.directory.listed(PROGRAM).sha256, each.directory.facts.examples["sha256"]) for each in networks]
    return fingerprint([repr((facts, seconds, _tolerances(), describe(), runtimes_here())).encode()])


def _tolerances() -> dict[str, dict]:
    return {precision: tolerance.as_dict() for precision, tolerance in TOLERANCES.items()}


def result_of(networks: Sequence[Verification], checks: Sequence[Check]) -> Verified:
    """Gather the content of ``verify.json``, as it will be read back."""
    examples = {each.directory.name: each.directory.facts.examples["sha256"] for each in networks}
    content = Verified(
        passed=bool(checks) and not any(check.failure for check in checks),
        checks=tuple(replace(check, examples_sha256=examples[check.network]) for check in checks),
        networks={each.directory.name: each.entry() for each in networks if each.jobs and each.checks},
        unavailable=unavailable_runners(),
        refused={where: why for each in networks for where, why in each.refused.items()},
        tolerances=_tolerances(),
        environment=describe() | {"runtimes": runtimes_here()},
    )
    return msgspec.convert(content.as_dict(), Verified)


def write(run: Path, networks: Sequence[Verification], content: Verified) -> None:
    """Write both files."""
    points = {each.directory.name: each.points() for each in networks if each.jobs and each.checks}
    kept = {"schema": POINTS_SCHEMA, "networks": {name: said for name, said in points.items() if said}}
    write_atomically(run / POINTS_FILE, serialise(kept))
    write_json(run / VERIFY_FILE, VERIFY_SCHEMA, content.as_dict())


def main(arguments: Sequence[str] | None = None) -> None:
    """Verify a run, print the table, write ``verify.json``.

    Raises:
        CheckFailedError: where any artifact differs, or nothing was compared.
        UserError: where there is nothing to compare, or options contradict each other.
    """
    options = cli.parse("verify", arguments)
    if options.files or options.against:
        if options.only or options.fail_fast or options.again:
            raise UserError("--only, --fail-fast and --again are for checks against PyTorch", "leave them out")
        asked = Asked(options.precision, options.atol, options.rtol)
        file_comparison.versus(options.files, options.run, options.against, options.inputs, options.trust, asked)
        return
    if any(each is not None for each in (options.precision, options.atol, options.rtol)):
        raise UserError("--precision, --atol and --rtol are for two files or two runs", "leave them out")
    run = options.run or DEFAULT_RUN
    with alone(run, options.wait), asked_for(options.runtimes):
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
        raise UserError(f"nothing was compared: {where}: {why}", "choose other runners with --only")
    if failures or not checks:
        raise CheckFailedError(f"{len(failures)} of {len(checks)} checks", *map(_line, failures))


def _without_jobs(networks: Sequence[Verification], only: Sequence[str]) -> list[str]:
    """The names asked for that nothing was checked of."""
    jobs = [(artifact, spec) for network in networks for artifact, _, spec in network.jobs]
    known = {name for a, spec in jobs for name in (a.name, f"{a.network}/{a.name}", spec.name)}
    return [name for name in only if name not in known]


def _line(check: Check) -> str:
    return f"{check.network}/{check.artifact} on {check.runner}: {check.failure}"


def show(content: Verified) -> None:
    """The table, what failed first."""
    rows = [_row(check, content.networks) for check in sorted(content.checks, key=lambda check: check.passed)]
    cli.table("Parity with PyTorch: worst errors against float64", COLUMNS, rows, DROP)
    for name, network in content.networks.items():
        for note in network.notes:
            cli.say(f"{name}: {note}", "dim")
    for where, why in content.refused.items():
        cli.say(f"left out: {where}: {why}", "dim")


def _row(check: Check, networks: Mapping[str, NetworkEntry]) -> tuple[str | Text, ...]:
    """A check's cells."""
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
