"""The stages in Python: ``check`` runs all of them on any module, ``train`` and the others work on a run directory."""

import html
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import Tensor, nn

from stn_export.adopt.adoption import adopt, default_name
from stn_export.audit.content import examined
from stn_export.bench.cases import eager_of, own_batch
from stn_export.bench.plan import GRIDS
from stn_export.bench.targets import Target, find_targets
from stn_export.bench.timing import contest_row, interleave
from stn_export.cli import LABEL, as_user_error
from stn_export.cli.tables import OUTPUT
from stn_export.config import FOLDER, run_for
from stn_export.errors import UserError
from stn_export.export import __main__ as exporting
from stn_export.export.rows import Source
from stn_export.onnx_graph.model import read_model
from stn_export.program.specs import Given
from stn_export.results.card import Line, by_word, card, figures
from stn_export.results.contents import Held, held
from stn_export.results.statistics import load_interval
from stn_export.run.environment import describe, using_threads
from stn_export.run.manifest import (
    BENCH_FILE,
    PREFERRED,
    PROGRAM,
    Artifact,
    is_oversized,
    network_directories,
    size_words,
)
from stn_export.run.records import Check, Timing, Verified, known, timing
from stn_export.run.schemas import ModelComparison
from stn_export.run.store import write_atomically, write_out
from stn_export.verify import __main__ as verifying
from stn_export.verify.file_comparison import Row, compare_files

ROWS = tuple(f"{lowering}-fp32" for lowering in PREFERRED)  # the first one that the network supports is checked
RUNNERS = ("onnxruntime-cpu", "eager-cpu")
WEIGHED = 2  # files of which the smaller one is checked, where the first is oversized
LARGER = (64, 16, 4)  # batches for the throughput, the first whose calls take no longer than this
LONGEST_CALL = 0.1  # seconds


@dataclass(frozen=True)
class Result:
    """Outcome of ``check``: prints as its card, and is falsy where a check failed.

    Attributes:
        card: the printed summary, one (word, sentence) pair per line.
        model: the ONNX file that was checked.
        checks: one per artifact and runner, in the form of ``verify.json``.
        notes: further caveats, such as sizes that could not be kept dynamic, and operators that were not inspected.
        audit: see ``stn_export.audit``.
        contest: paired comparison of the file with eager PyTorch; a ``ratio`` below 1 means that the file is faster.
        answer: figures of the file to deploy.
    """

    card: list[Line]
    model: onnx.ModelProto = field(repr=False)
    checks: Sequence[Check] = field(repr=False)
    audit: dict = field(repr=False)
    contest: dict = field(repr=False)
    answer: dict = field(repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)

    @property
    def failures(self) -> list[str]:
        """One sentence per check that failed."""
        return [f"{check.artifact} on {check.runner}: {check.failure}" for check in self.checks if check.failure]

    def __bool__(self) -> bool:
        return bool(self.checks) and not self.failures

    def __repr__(self) -> str:
        return _as_text(self.card)

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """Format the card as an HTML table for a notebook."""
        return _as_html(self.card)

    def to_dict(self) -> dict:
        """Return everything but the model, JSON-ready."""
        checks = [check.as_dict() for check in self.checks]
        content = {"passed": bool(self), "card": by_word(self.card), "checks": checks, "audit": self.audit}
        return content | {"contest": self.contest, "answer": self.answer, "notes": list(self.notes)}

    def save(self, path: Path | str) -> None:
        """Write the ONNX file."""
        write_out(Path(path), self.model.SerializeToString())


def _as_text(card: Sequence[Line]) -> str:
    return "\n".join(f"{word:<{LABEL}}{text}" for word, text in card)


def _as_html(card: Sequence[Line]) -> str:
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(word)}</th>"
        f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
        for word, text in card
    )
    return f"<table>{rows}</table>"


def check(
    module: nn.Module,
    example_inputs: Tensor | Sequence[Any] | Mapping[str, Any],
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    labels: Tensor | None = None,
    run: Path | str | None = None,
) -> Result:
    """Export a module, verify the file against float64 at every sampling site, audit it, and time it against eager.

    Args:
        module: in evaluation mode.
        example_inputs: arguments to call it with, by position or by name, as for ``export_onnx``: tensors, dictionaries
            and lists of them, None, numbers and strings; the first dimension is the batch, of at least 2 examples.
        example_kwargs: further arguments, by name.
        labels: one per example, for a classifier.
        run: directory to keep all files in; without one, only the result is kept.

    Raises:
        UserError: where the module is in training mode, or cannot be captured or exported; its hint says what to do.
    """
    examples = Given.of(example_inputs, example_kwargs)
    before = OUTPUT.brief
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(run or scratch) / default_name(module) if run is None else Path(run)
        OUTPUT.brief = True
        try:
            adopted = adopt(module, examples, run=place, name=default_name(module), labels=labels)
            return _checked(place, tuple(adopted.notes), kept=run is not None)
        finally:
            OUTPUT.brief = before


def _checked(run: Path, notes: tuple[str, ...], kept: bool) -> Result:
    directory, *others = network_directories(run)
    for other in others:  # the samplers' overhead is not measured here
        other.plan((PROGRAM,), {})
    source = Source(directory)
    name, of_its_size = _exported(source)
    notes = (*notes, *filter(None, [of_its_size]))
    checks = _verified(run, f"{directory.name}/{name}")
    path = directory.path / directory.artifacts[name].file
    passed = all(check.passed for check in checks)
    contest = _timed(run, name) if passed else {}
    content: Held = held(run)
    lines = [line for line in card(content) if line[0] != "next"] + [("note", note) for note in notes]
    there = str(path) if kept else f"{path.name}, in memory only: result.save({path.name!r}) writes it"
    return Result(
        [*lines[:1], ("file", there), *lines[1:]],
        onnx.load(path),
        checks,
        examined(str(path), read_model(path)).as_dict(),
        contest,
        figures(content),
        notes,
    )


def _exported(source: Source) -> tuple[str, str]:
    """Export the first of ``ROWS`` that the network supports; return its name, and what was said of its size.

    Where that file is oversized beside the network's weights, the next row's is written too, and the one is kept that
    is to be taken, see ``preferred``.
    """
    refused: dict[str, str] = {}
    written: list[Artifact] = []
    for spec in [spec for name in ROWS for spec in source.rows if spec.name == name]:
        artifact = exporting.export(source, [spec])[0][spec.name]
        if isinstance(artifact, str):
            refused[spec.name] = artifact
            continue
        written.append(artifact)
        if len(written) == WEIGHED or not is_oversized(artifact.details.get("bytes", 0), 4 * source.facts.parameters):
            return _taken(source, refused)
    if written:
        return _taken(source, refused)
    reason = next(iter(refused.values()), "no row of the export matrix fits it")
    tried = ", ".join(refused) or "nothing"
    raise UserError(f"{source.directory.name} cannot be exported: {reason}", f"compute that part otherwise ({tried})")


def _taken(source: Source, refused: Mapping[str, str]) -> tuple[str, str]:
    """Keep the file to take of those that were written; return its name, and what was said of its size."""
    sizes = source.directory.lowering_sizes
    name, *others = (f"{lowering}-fp32" for lowering in sizes)
    for other in others:
        source.directory.forget(other)
    source.directory.plan((name,), dict(refused))
    return name, size_words(sizes)


def _verified(run: Path, artifact: str) -> Sequence[Check]:
    """Check the file and eager PyTorch against the float64 reference, write ``verify.json`` and return the checks."""
    networks = verifying.planned(run, [artifact, f"{artifact.partition('/')[0]}/program"])
    for network in networks:
        network.jobs[:] = [job for job in network.jobs if job[2].name in RUNNERS]
    checks = verifying.verify(networks, fail_fast=False)
    content = verifying.result_of(networks, checks)
    verifying.write(run, networks, content)
    return content.checks


def _timed(run: Path, name: str) -> dict:
    """Time the file against eager PyTorch, write ``bench.json`` and return the paired comparison of one example.

    A larger batch is timed too where a call of it is quick, for the throughput. The block medians of both sides are
    written as timings of their own.
    """
    grid = GRIDS["quick"]
    with using_threads(grid.threads):
        targets = find_targets(run, "cpu")
        target = next(
            candidate for candidate in targets if (candidate.artifact.name, candidate.runner.name) == (name, RUNNERS[0])
        )
        baseline = eager_of(target, targets)
        assert baseline is not None, "every program has eager PyTorch"
        own = own_batch(target.network.contract)
        rows = _contest(target, baseline, own or 1)
        if own is None and (larger := _larger_batch(timing(rows[0]))):
            rows += _contest(target, baseline, larger)
    for row in rows:
        timing(row)  # raises on unknown fields
    content = {"machine_info": {"stn_export": describe()}, "benchmarks": [{"extra_info": row} for row in rows]}
    write_atomically(run / BENCH_FILE, json.dumps(content).encode())
    return rows[0]


def _larger_batch(single: Timing) -> int | None:
    """Return the batch to time for the throughput, from the times of one example; None where calls would be long."""
    slower = max(known(single.seconds), known(single.baseline_seconds))
    return next((size for size in LARGER if size * slower <= LONGEST_CALL), None)


def _contest(target: Target, baseline: Target, batch: int) -> list[dict]:
    """Return the rows of a paired comparison: itself, and the timing of either side."""
    ours, theirs = (partial(side.step, batch) for side in (target, baseline))
    turns = interleave(ours, theirs, "cpu", GRIDS["quick"], seed=0).hold()
    contest = contest_row("eager", target, baseline, batch, turns)
    sides = zip((target, baseline), zip(*turns.medians, strict=True), strict=True)
    disturbed = 2 * contest["disturbed_blocks"] > contest["blocks"]
    loads = np.arange(len(turns.medians)) % len(turns.loads)
    return [contest, *(_row(side, batch, times, loads) | {"disturbed": disturbed} for side, times in sides)]


def _row(target: Target, batch: int, medians: Sequence[float], loads: np.ndarray) -> dict:
    """Return the timing of one side of a paired comparison; ``loads`` gives the load that ran in each block."""
    times = np.array(medians)
    p50, (low, high) = float(np.median(times)), load_interval(times, loads)
    ends = {"p50": p50, "p50_low": low, "p50_high": high, "examples_per_second": batch / p50}
    return target.facts(batch) | {"regime": "device", "inputs": "hot"} | ends


def compare(one: Path | str, other: Path | str, trust: bool = False) -> list[Row]:
    """Compare the outputs of two files on the same inputs.

    Args:
        one: the file under test.
        other: the file that it is compared with.
        trust: whether to load PyTorch's own formats that no manifest of this user's lists: such files can run code.

    Returns:
        One row per output and batch; ``reason`` is empty where the two agree.

    Raises:
        UserError: where a file cannot be opened or is not trusted, or the two cannot be compared.
    """
    rows = compare_files(Path(one), Path(other), trust=trust)
    if rows and not any(row.comparable for row in rows):
        same = "compare files that take the same inputs"
        others = f"give inputs: stn-export verify {one} {other} --inputs FILE.npz"
        raise UserError(f"not comparable: {rows[0].reason}", same if rows[0].inputs == "declared" else others)
    return rows


# A run directory, stage by stage.


@dataclass(frozen=True, repr=False)
class Run:
    """A run directory: what the stages read and write. It prints as its card.

    Attributes:
        path: the directory.
    """

    path: Path

    @property
    def contents(self) -> Held:
        """Networks, trainings, checks and timings, as the run holds them now; what is missing is empty."""
        return held(self.path)

    @property
    def card(self) -> list[Line]:
        """The summary, one (word, sentence) pair per line."""
        return card(self.contents)

    @property
    def trainings(self) -> Sequence[ModelComparison]:
        """Test accuracies in [0, 1] by model and seed, and the transformer's gains in percentage points."""
        return self.contents.trainings

    def __repr__(self) -> str:
        return _as_text(self.card)

    def _repr_html_(self) -> str:
        """Format the card as an HTML table for a notebook."""
        return _as_html(self.card)


AnyRun = Run | Path | str


def train(
    data: Path | str | None = None,
    *,
    dataset: str | None = None,
    size: int | None = None,
    models: Sequence[str] = ("stn", "cnn"),
    recipe: str | None = None,
    epochs: int | None = None,
    seed: int = 0,
    seeds: int = 1,
    precision: str = "fp32",
    device: str = "auto",
    run: Path | str | None = None,
) -> Run:
    """Train spatial transformers and plain CNNs, on one's own pictures where ``data`` names their folder.

    Progress is printed. What an interrupted or earlier call has trained with the same settings is not trained again.

    Args:
        data: a folder, ``data/{train,test}/<class>/*`` or ``data/<class>/*``, of pictures of any size.
        dataset: ``digits`` (the default without ``data``), ``cifar10`` or ``cifar10-affine``.
        size: side in pixels that the pictures of a folder are resized to; by default 32.
        models: of ``stn``, ``cnn`` and ``cnn-matched``, the CNN that costs as many multiply-adds as ``stn``.
        recipe: ``reference``, ``quick``, ``short``, ``affine`` or ``tuned``; by default the data set's own.
        epochs: instead of the recipe's own.
        seed: the first one, of weights, order and dropout.
        seeds: how many.
        precision: ``fp32``, ``tf32`` or ``bf16``.
        device: ``auto``, ``cpu`` or ``cuda``.
        run: the run directory; by default ``artifacts/<dataset>``, of a folder ``artifacts/folder-<its name>``.

    Raises:
        UserError: for settings, a folder or a picture that cannot be used; its hint says what to do.
        CheckFailedError: where a training diverges.
        KeyboardInterrupt: with a line on what is kept.
    """
    name = dataset or ("digits" if data is None else FOLDER)
    folder = None if data is None else Path(data)
    place = Path(run) if run is not None else run_for(name, folder)
    options = {"dataset": name, "data": folder, "size": size, "recipe": recipe, "epochs": epochs, "seed": seed}
    options |= {"seeds": seeds, "precision": precision, "device": device, "models": ",".join(models)}
    with _as_in_python():
        from stn_export.train import __main__ as training

        training.main(_arguments(place, options)[1:])  # epoch by epoch, and how pictures were read
    return Run(place)


def export(run: AnyRun, *, only: Sequence[str] = ()) -> list[Artifact]:
    """Write a run's networks as files; those that are up to date stay as they are.

    Args:
        run: a run, or its directory.
        only: names of rows of the export matrix, such as ``matmul-fp32``; by default all default rows.

    Returns:
        The exported artifacts of all networks; ``artifact.file`` lies in ``run/artifact.network``.

    Raises:
        UserError: where there is no such run or row.
        CheckFailedError: where a file cannot be written.
    """
    path = _path(run)
    with _as_in_python():
        exporting.main([*_arguments(path, {}), *(["--only", *only] if only else [])])
    return held(path).exports


def verify(run: AnyRun) -> Verified:
    """Check every file of a run against PyTorch in float64.

    Returns:
        The checks, one per artifact and runner.

    Raises:
        UserError: where there is no such run, or a file of it is missing or stale.
        CheckFailedError: where a file differs, one line each; ``verify.json`` is written all the same.
    """
    path = _path(run)
    with _as_in_python():
        verifying.main(_arguments(path, {}))
    verified = held(path).verified
    assert verified is not None, "the stage has written it"
    return verified


def bench(
    run: AnyRun, *, grid: str = "quick", budget: float | None = None, suites: Sequence[str] = (), device: str = "auto"
) -> Sequence[Timing]:
    """Time every file of a run on every backend.

    Args:
        run: a run, or its directory.
        grid: how much is timed: ``quick``, ``full`` or ``gpu``.
        budget: seconds after which no other row is timed; what answers most comes first.
        suites: some of them, such as ``latency`` and ``overhead``; by default all.
        device: ``cpu`` or ``cuda``; ``auto`` takes both.

    Returns:
        Timings and paired comparisons, in seconds.

    Raises:
        UserError: where there is no such run, grid or suite.
        CheckFailedError: where a row could not be timed.
        RuntimeError: where the benchmarks themselves failed; what they print says why.
        KeyboardInterrupt: with the number of rows that are kept.
    """
    path = _path(run)
    limit = None if budget is None else f"{budget:g}s"
    options = {"grid": grid, "budget": limit, "suites": ",".join(suites) or None, "device": device}
    with _as_in_python():
        from stn_export.bench import __main__ as benching

        try:
            benching.main(_arguments(path, options))
        except SystemExit as ending:
            raise RuntimeError(f"bench ended with exit code {ending.code}") from ending
    return held(path).rows


def report(run: AnyRun) -> Path:
    """Write ``report.html``, ``report.md`` and ``report.json`` of a run, and return the first.

    Raises:
        UserError: where there is no such run, or one of its files cannot be read.
    """
    path = _path(run)
    with _as_in_python():
        from stn_export.report import __main__ as reporting

        reporting.main(_arguments(path, {}))
    return path / "report.html"


def _path(run: AnyRun) -> Path:
    return run.path if isinstance(run, Run) else Path(run)


def _arguments(run: Path, options: Mapping[str, object]) -> list[str]:
    """Return a stage's command line; an option that is None is left out."""
    named = {"run": run, **options}
    return ["--brief", *(f"--{name}={value}" for name, value in named.items() if value is not None)]


@contextmanager
def _as_in_python() -> Iterator[None]:
    """Run a stage in this process: how it prints stays in this block, and a missing extra is a ``UserError``."""
    before = OUTPUT.form, OUTPUT.brief
    try:
        yield
    except ModuleNotFoundError as error:
        if (user_error := as_user_error(error)) is None:
            raise
        raise user_error from error
    finally:
        OUTPUT.form, OUTPUT.brief = before
