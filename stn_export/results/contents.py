"""Read from a run directory what a card, the report and the model card need."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from stn_export.results.choice import Portability, Program, Proved, Scored, portability_of, program, proved_by
from stn_export.results.laws import Broken, broken_by_accuracies, broken_by_checks, broken_by_rows
from stn_export.run.manifest import (
    BENCH_FILE,
    CHECKPOINT,
    PROGRAM,
    TRAINING_FILE,
    TWIN_NOTE,
    Artifact,
    NetworkDirectory,
    network_directories,
)
from stn_export.run.records import FACTS, Check, Timing, Verified, timings
from stn_export.run.schemas import Current, ModelComparison, read_bench, read_trainings, read_verified


@dataclass(frozen=True)
class Held:
    """Networks, trainings, checks and timings of a run; what is missing is empty."""

    run: Path
    directories: Sequence[NetworkDirectory]
    trainings: Sequence[ModelComparison] = ()
    verified: Verified | None = None
    rows: Sequence[Timing] = ()
    environment: Mapping = field(default_factory=dict)
    outdated: bool = False  # whether timings were left out because their format is older
    not_timed: Collection[str] = ()  # rows that the time budget left out, by their tests' names

    def is_current(self, row: Timing | Check) -> bool:
        """Return whether a check or a timing is not stale."""
        return self.current.holds(row)

    @property
    def verified_rows(self) -> list[Timing]:
        """Timings that are not stale, of programs that passed every check; see ``proved``."""
        proved = self.proved
        return [row for row in self.rows if program(row) in proved and self.is_current(row)]

    @property
    def artifacts(self) -> list[Artifact]:
        """All artifacts but checkpoints: programs and exports."""
        listed = [artifact for directory in self.directories for artifact in directory.artifacts.values()]
        return [artifact for artifact in listed if artifact.name != CHECKPOINT]

    @property
    def exports(self) -> list[Artifact]:
        """All artifacts exported from programs."""
        return [artifact for artifact in self.artifacts if artifact.name != PROGRAM]

    @cached_property
    def current(self) -> Current:
        """Today's files and examples, against which results are stale or not."""
        return Current.of(self.directories)

    @property
    def checks(self) -> Sequence[Check]:
        """The checks of ``verify.json``."""
        return self.verified.checks if self.verified else ()

    @property
    def proved(self) -> Proved:
        """Accuracy by verified program; None for a network that was never trained."""
        untrained = {directory.name for directory in self.directories if directory.facts.note == TWIN_NOTE}
        proved = proved_by(self.checks, self.current.holds)
        return {name: None if name[0] in untrained else accuracy for name, accuracy in proved.items()}

    @property
    def scored(self) -> dict[Program, Scored]:
        """The accuracies of verified programs, with the number of examples they were measured on."""
        proved, networks = self.proved, self.verified.networks if self.verified else {}
        scored: dict[Program, Scored] = {}
        for check in filter(self.is_current, self.checks):
            accuracy = proved.get(program(check))
            if accuracy is not None and check.network in networks:
                scored[program(check)] = Scored(accuracy, networks[check.network].examples, check.agreement or 0.0)
        return scored

    @property
    def trained_accuracies(self) -> dict[str, float]:
        """Test accuracy of each network's checkpoint, as training recorded it."""
        accuracies: dict[str, float] = {}
        models = self.trainings[0].models if self.trainings else {}
        for directory in self.directories:
            checkpoint = directory.artifacts.get(CHECKPOINT)
            trained = models.get(directory.name)
            if checkpoint is None or trained is None:
                continue
            seed = str(checkpoint.settings.get("seed"))
            if seed in trained.seeds:
                best = checkpoint.settings.get("keep") == "best"
                accuracies[directory.name] = trained.seeds[seed] if best else trained.accuracies[seed][-1]
        return accuracies

    @property
    def broken_laws(self) -> list[Broken]:
        """The laws that figures of this run break."""
        current = [check for check in self.checks if self.is_current(check)]
        broken = [*broken_by_rows(self.rows), *broken_by_checks(current)]
        return [*broken, *broken_by_accuracies(self.trained_accuracies, current)]

    @property
    def static_batch(self) -> int | None:
        """The one batch that the network under test takes; None where it takes any, or has none."""
        program = self.directories[0].artifacts.get(PROGRAM) if self.directories else None
        return program.contract.batch if program else None

    @property
    def portability(self) -> Portability:
        """For each float32 lowering of the network under test, a verdict per runtime, and why."""
        return portability_of(artifact for artifact in self.directories[0].artifacts.values() if artifact.lowering)


def held(run: Path) -> Held:
    """Read a run.

    Raises:
        UserError: where there is no run, or a file of it is damaged.
    """
    directories = network_directories(run)
    bench = read_bench(run / BENCH_FILE) if (run / BENCH_FILE).exists() else None
    outdated = bench is not None and not all(row["extra_info"].keys() >= FACTS for row in bench["benchmarks"])
    return Held(
        run,
        directories,
        trainings=read_trainings(run).runs if (run / TRAINING_FILE).exists() else (),
        verified=read_verified(run),
        rows=timings(bench) if bench and not outdated else (),
        environment=bench["machine_info"]["stn_export"] if bench else {},
        outdated=outdated,
        not_timed=(bench or {}).get("not_timed", ()),
    )
