"""Time ONNX files of any origin in every available runner: ``stn-export bench FILE.onnx [OTHER.onnx]``.

The method is that of the suites: calls after a warm-up that settles, medians with 95 % intervals, and for two files a
paired comparison in blocks over several loads. Calls are sequential, from host arrays to host arrays, with copies to
and from a GPU included.
"""

import time
import zlib
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch

from stn_export import cli
from stn_export.bench.foreign import look
from stn_export.bench.machine import Watch
from stn_export.bench.plan import GRIDS, BenchGrid
from stn_export.bench.targets import ROUNDED_TF32
from stn_export.bench.timing import Budget, interleave, samples_for, timed, warm_up
from stn_export.errors import UserError, one_line, require_choice, typed
from stn_export.onnx_graph.inputs import Feeds, Inputs
from stn_export.onnx_graph.model import Shape, as_array
from stn_export.onnx_graph.portability import difference
from stn_export.program.specs import Arrays, Contract, TensorSpec
from stn_export.results.choice import DISTURBED, LEGEND
from stn_export.results.statistics import METHOD, summarise
from stn_export.results.text import by_reason, counted, significant, span, speed_ratio
from stn_export.run.environment import DEVICES, cpu_name, using_threads
from stn_export.run.gpu import is_usable
from stn_export.run.manifest import Artifact
from stn_export.run.store import sha256_of
from stn_export.runners import RUNNERS, RunnerSpec, Step
from stn_export.runners.external import RefusedError

REFERENCE = next(spec for spec in RUNNERS if spec.name == "onnxruntime-cpu")  # others are compared with its outputs
MANY = 16  # second batch size, for files with a dynamic batch
OVER = "the time budget was over"
CHANGING = "the outputs are others in every run, so that runners were not compared"
COLUMNS = ("runner", "file", "batch", "ms", "95 % of ms", "p90 ms", "examples/s", "95 % of these", "first s", "off by")
DROP = ("first s", "p90 ms", "95 % of these", "off by", "95 % of ms", "file")
PAIRED = ("runner", "ms", "other's ms", "ratio", "95 % interval", "verdict")


@dataclass(frozen=True)
class Subject:
    """A file and the inputs that it runs on; ``steady`` says whether it is deterministic."""

    name: str
    path: Path
    artifact: Artifact
    inputs: Inputs
    batch: int
    steady: bool
    allowed: float  # how far a runner's outputs may lie from the reference's, as a share of the largest
    expected: dict[int, Arrays] = field(default_factory=dict)  # outputs of ``REFERENCE``, by batch

    @property
    def batches(self) -> tuple[int, ...]:
        """Return the examples per call: as many as the inputs hold, and also ``MANY`` if the user chose no size."""
        chosen = self.batch == 1 and not self.inputs.given and self.inputs.origin != "given"
        return (self.batch, MANY) if chosen and self.inputs.batches else (self.batch,)

    def load(self, spec: RunnerSpec, batch: int) -> tuple[Step, Arrays]:
        """Load the file in a runner; return a call of it, and the outputs of the first call."""
        feeds = self.inputs.draw(batch=None if batch == self.batch else batch)
        runner = spec.open(self.path, Contract(specs_of(feeds), self.artifact.contract.outputs))
        step = runner.request(cast(Arrays, feeds))  # ONNX Runtime accepts lists of arrays too; others raise errors
        outputs = cast(Mapping[str, object], step())
        return step, {name: as_array(value) for name, value in outputs.items()}

    def off(self, outputs: Arrays, batch: int) -> float | None:
        """Return how far outputs differ from the reference's, as a share of the largest; None if not deterministic."""
        if not self.steady:
            return None
        if batch not in self.expected:
            self.expected[batch] = self.load(REFERENCE, batch)[1]
        return max(
            (difference(outputs[name], expected) for name, expected in self.expected[batch].items()), default=0.0
        )


def specs_of(feeds: Feeds) -> tuple[TensorSpec, ...]:
    """Return specs of inputs whose sizes are all known."""
    arrays = {name: value if isinstance(value, np.ndarray) else value[0] for name, value in feeds.items()}
    return tuple(TensorSpec(name, str(array.dtype), array.shape, batched=False) for name, array in arrays.items())


def batch_of(shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the number of examples in arrays: their common first size if all have two sizes or more, else 1."""
    firsts = {shape[0] if len(shape) > 1 else 1 for shape in shapes}
    return firsts.pop() if len(firsts) == 1 else 1


@dataclass(frozen=True)
class Timing:
    """Timed calls of one file in one runner, in seconds, with the ends of 95 % intervals.

    ``off`` is how far its outputs differ from ONNX Runtime's on the CPU, as a share of the largest, and ``agrees``
    whether that is within what its precision explains. ``first`` is the time from opening the file to the first answer.
    """

    file: str
    runner: str
    device: str
    batch: int
    p50: float
    p50_low: float
    p50_high: float
    p90: float
    p99: float | None
    per_second: float
    per_second_low: float
    per_second_high: float
    calls: int
    first: float
    off: float | None
    agrees: bool
    disturbed: bool


@dataclass(frozen=True)
class Pair:
    """A paired comparison of two files in one runner: the first's time over the second's, with a 95 % interval."""

    runner: str
    seconds: float
    baseline_seconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    verdict: str
    blocks: int
    disturbed_blocks: int
    loads: int


@dataclass(frozen=True)
class FileBench:
    """All timings and pairs, and the reason for everything that was not timed."""

    subjects: tuple[Subject, ...]
    timings: list[Timing] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    not_timed: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict:
        """Convert to JSON-ready values."""
        files = [
            {
                "file": str(other.path),
                "sha256": other.artifact.sha256,
                "inputs": other.inputs.sizes,
                "steady": other.steady,
            }
            | {"sizes": other.inputs.origin}
            for other in self.subjects
        ]
        gpu = torch.cuda.get_device_name() if is_usable() else None
        machine = {"cpu": cpu_name(), "gpu": gpu, "threads": torch.get_num_threads()}
        timings, pairs = list(map(asdict, self.timings)), list(map(asdict, self.pairs))
        return {"files": files} | machine | {"timings": timings, "pairs": pairs, "not_timed": self.not_timed}

    def fastest(self, subject: Subject) -> Timing | None:
        """Return the timing with the shortest call among those that agree with ONNX Runtime on the CPU."""
        rows = [row for row in self.timings if row.file == subject.name and row.agrees]
        return min((row for row in rows if row.batch == subject.batch), key=lambda row: row.p50, default=None)


def subject_of(
    path: Path, name: str, shapes: Mapping[str, Shape], arrays: Path | None, budget: Budget | None = None
) -> Subject:
    """Read a file and find inputs that it runs on.

    Raises:
        UserError: if it cannot be read, or ONNX Runtime does not run it on the CPU.
    """
    capture = any(spec.captures and not spec.unavailable() for spec in RUNNERS)
    looked = look(path, shapes, arrays, capture, budget.left if budget else None)
    batch = batch_of([*looked.inputs.sizes.values(), *(output.shape for output in looked.outputs.values())])
    outputs = tuple(TensorSpec(output, "float32", (), batched=False) for output in looked.names)
    details = {"cuda": {"graph": looked.capturable}}
    artifact = Artifact(path.name, path.name, "", "onnx", sha256_of(path), Contract((), outputs), details=details)
    return Subject(name, path, artifact, looked.inputs, batch, looked.steady, looked.allowed)


def runners_for(subject: Subject, device: str) -> tuple[list[RunnerSpec], dict[str, str]]:
    """Return the runners that can run a file here, and the reason for each that cannot."""
    of_onnx = [spec for spec in RUNNERS if spec.format == "onnx" and spec.lowering is None]
    specs = [spec for spec in of_onnx if device in ("auto", spec.device)]
    reasons = {spec.name: spec.untimed() or spec.refuses(subject.artifact) for spec in specs}
    return [spec for spec in specs if not reasons[spec.name]], {name: why for name, why in reasons.items() if why}


def time_file(subject: Subject, spec: RunnerSpec, batch: int, grid: BenchGrid) -> Timing:
    """Warm up, then time single calls for the grid's ``row_seconds``."""
    started = time.perf_counter()
    step, outputs = subject.load(spec, batch)
    first = time.perf_counter() - started
    off = subject.off(outputs, batch)
    warm = warm_up(step, grid.warmup_seconds)
    with Watch(spec.device) as watch:
        samples = np.array([timed(step) for _ in range(samples_for(warm.sample_seconds, grid.row_seconds))])
    times = summarise(samples)
    p50, low, high, p90 = (float(times[name] or 0.0) for name in ("p50", "p50_low", "p50_high", "p90"))
    return Timing(
        file=subject.name,
        runner=spec.name,
        device=spec.device,
        batch=batch,
        p50=p50,
        p50_low=low,
        p50_high=high,
        p90=p90,
        p99=times["p99"],
        per_second=batch / p50,
        per_second_low=batch / high,
        per_second_high=batch / low,
        calls=len(samples),
        first=first,
        off=off,
        agrees=off is None or off <= max(subject.allowed, ROUNDED_TF32 * (spec.tf32 or spec.approximate)),
        disturbed=watch.disturbed[0] or not warm.stable,
    )


def compare_files(ours: Subject, theirs: Subject, spec: RunnerSpec, grid: BenchGrid, budget: Budget) -> Pair:
    """Time two files alternately in one runner, with the suites' paired comparison."""

    def load(subject: Subject) -> Step:
        return subject.load(spec, subject.batch)[0]

    seed = METHOD.seed + zlib.crc32(f"{ours.artifact.sha256} {theirs.artifact.sha256} {spec.name}".encode())
    return Pair(
        spec.name,
        **interleave(partial(load, ours), partial(load, theirs), spec.device, grid, seed).hold(budget).summary(),
    )


Job = tuple[str, Callable[[], None]]


def planned(result: FileBench, device: str, grid: BenchGrid, budget: Budget) -> Iterator[Job]:
    """Yield what to time, by name, the most informative first: each file in each runner, pairs, larger batches."""
    there: dict[str, list[RunnerSpec]] = {}
    for subject in result.subjects:
        there[subject.name], reasons = runners_for(subject, device)
        result.not_timed.update(reasons)
    rows = [(subject, spec) for subject in result.subjects for spec in there[subject.name]]
    for subject, spec in rows:
        yield _row(result, subject, spec, subject.batch, grid)
    if len(result.subjects) > 1:
        ours, theirs = result.subjects
        for spec in there[ours.name]:
            if spec in there[theirs.name]:
                yield f"both in turns in {spec.name}", partial(_pair, result, ours, theirs, spec, grid, budget)
    for subject, spec in rows:
        for batch in subject.batches[1:]:
            yield _row(result, subject, spec, batch, grid)


def _row(result: FileBench, subject: Subject, spec: RunnerSpec, batch: int, grid: BenchGrid) -> Job:
    name = f"{subject.name} in {spec.name} at batch {batch}"
    return name, lambda: result.timings.append(time_file(subject, spec, batch, grid))


def _pair(result: FileBench, ours: Subject, theirs: Subject, spec: RunnerSpec, grid: BenchGrid, budget: Budget) -> None:
    result.pairs.append(compare_files(ours, theirs, spec, grid, budget))


def bench_files(result: FileBench, device: str, grid: BenchGrid, budget: Budget) -> None:
    """Time everything; note what a runner does not support and what the budget left no time for."""
    jobs = list(planned(result, device, grid, budget))
    with cli.progress(word="bench", unit="timings", still=True) as bar:
        bar.most = lambda: budget.left
        task = bar.add_task("bench", total=len(jobs))
        for number, (name, job) in enumerate(jobs):
            bar.update(task, description=name)
            try:
                if budget.over:
                    raise UserError(OVER, "give it more with --budget")
                job()
            except UserError as error:
                result.not_timed[name] = error.message
            except RefusedError as error:
                result.not_timed[name] = str(error)
            except KeyboardInterrupt:
                result.not_timed.update((name, "interrupted") for name, _ in jobs[number:])
                raise
            except Exception as error:  # an external runtime may raise anything
                result.not_timed[name] = one_line(error)
            bar.update(task, advance=1)
            bar.refresh()


def show(result: FileBench) -> None:
    """Print the tables and the summary."""
    for subject in result.subjects:
        cli.say(f"{subject.name}: {subject.inputs}{'' if subject.steady else f'; {CHANGING}'}")
    cli.say("")
    cli.table("Calls, host arrays to host arrays", COLUMNS, [_cells(row) for row in result.timings], DROP)
    if result.pairs:
        ours, theirs = (subject.name for subject in result.subjects)
        cli.say("")
        title = f"{ours} against {theirs}, in turns"
        cli.table(title, PAIRED, [_pair_cells(pair) for pair in result.pairs], ("95 % interval",))
    for line in by_reason(result.not_timed, "row"):
        cli.say(f"not timed: {line}", "dim")
    cli.say("")
    cli.card(list(card(result)))


def _cells(row: Timing) -> tuple[str, ...]:
    off = cli.NONE if row.off is None else f"{row.off:.0e}{'' if row.agrees else ', DIFFERS'}"
    return (
        row.runner,
        row.file,
        str(row.batch),
        significant(1e3 * row.p50) + DISTURBED * row.disturbed,
        span(1e3 * row.p50_low, 1e3 * row.p50_high),
        significant(1e3 * row.p90),
        significant(row.per_second),
        span(row.per_second_low, row.per_second_high),
        f"{row.first:.3f}",
        off,
    )


def _pair_cells(pair: Pair) -> tuple[str, ...]:
    times = (significant(1e3 * seconds) for seconds in (pair.seconds, pair.baseline_seconds))
    return (pair.runner, *times, significant(pair.ratio), span(pair.ratio_low, pair.ratio_high), pair.verdict)


def card(result: FileBench) -> Iterator[tuple[str, str]]:
    """Yield the summary: a keyword and a sentence per line."""
    for subject in result.subjects:
        if (best := result.fastest(subject)) is not None:
            where = f"{subject.name} in {best.runner}"
            yield "latency", f"{where}: {_milliseconds(best)} at batch {best.batch}"
            most = max((row for row in result.timings if row.file == subject.name and row.agrees), key=_rate)
            rate = f"{significant(most.per_second)} a second ({span(most.per_second_low, most.per_second_high)})"
            yield "throughput", f"{subject.name} in {most.runner}: {rate} at batch {most.batch}"
    yield from _verdicts(result)
    wrong = [f"{row.file} in {row.runner}" for row in result.timings if not row.agrees]
    held = [row for row in result.timings if row.off is not None and row.runner != REFERENCE.name]
    if held:
        gives = f"{'gives' if len(held) == 1 else 'give'} what {REFERENCE.name} gives"
        agree = f"{sum(row.agrees for row in held)} of {counted(len(held), 'timing')} {gives}"
        yield "outputs", agree + (f"; not {', '.join(dict.fromkeys(wrong))}" if wrong else "")
    yield from _alike(result)
    yield "confidence", _confidence(result)
    yield "caveat", "; ".join(_caveats(result))


def _rate(timing: Timing) -> float:
    return timing.per_second


def _milliseconds(timing: Timing) -> str:
    return f"{significant(1e3 * timing.p50)} ms ({span(1e3 * timing.p50_low, 1e3 * timing.p50_high)})"


def _verdicts(result: FileBench) -> Iterator[tuple[str, str]]:
    for pair in result.pairs:
        ours, theirs = (subject.name for subject in result.subjects)
        ratio = speed_ratio((pair.ratio, pair.ratio_low, pair.ratio_high))
        yield "in turns", f"{ours} takes {ratio} {theirs}'s time in {pair.runner}: {pair.verdict}"


def _alike(result: FileBench) -> Iterator[tuple[str, str]]:
    """Say whether two files with outputs of equal names and shapes compute the same."""
    if len(result.subjects) < 2 or not all(subject.steady for subject in result.subjects):
        return
    ours, theirs = (subject.expected.get(subject.batch, {}) for subject in result.subjects)
    if ours and {name: output.shape for name, output in ours.items()} == {name: a.shape for name, a in theirs.items()}:
        off = max(difference(ours[name], theirs[name]) for name in ours)
        names = " ".join(typed(subject.path) for subject in result.subjects)
        allowed = max(subject.allowed for subject in result.subjects)
        agreement = f"are the same within {allowed:.0e}" if off <= allowed else f"DIFFER by {off:.0e}"
        yield "outputs", f"of both files {agreement} of the largest; stn-export verify {names} says more"


def _confidence(result: FileBench) -> str:
    disturbed = sum(row.disturbed for row in result.timings)
    noted = f"; {DISTURBED} {disturbed} of {counted(len(result.timings), 'timing')} {LEGEND[DISTURBED]}" * bool(
        disturbed
    )
    return f"brackets hold 95 % intervals; {cpu_name()}, {counted(torch.get_num_threads(), 'thread')}{noted}"


def _caveats(result: FileBench) -> Iterator[str]:
    if any(not subject.inputs.given for subject in result.subjects):
        yield "numbers are random where --inputs gives none"
    if any(subject.inputs.origin not in ("given", "declared") for subject in result.subjects):
        yield "open sizes are those above; --shape gives others"
    yield "a call is from host arrays to host arrays, one after the other"


def main(options: Namespace, paths: Sequence[Path]) -> None:
    """Time one file, or two as a paired comparison.

    Raises:
        UserError: for more than two files, for one that cannot be read or run, or if no runner could time it.
    """
    if len(paths) > 2:
        raise UserError(f"{len(paths)} files are named", "name one, or two to set against each other")
    device = require_choice("device", options.device, DEVICES)
    grid = GRIDS[require_choice("grid", options.grid, [*GRIDS])]
    budget = Budget(options.budget)
    with using_threads(options.threads or grid.threads):
        names = [path.name if len({other.name for other in paths}) == len(paths) else str(path) for path in paths]
        find = partial(subject_of, shapes=dict(options.shape), arrays=options.inputs, budget=budget)
        result = FileBench(tuple(map(find, paths, names)))
        try:
            bench_files(result, device, grid, budget)
        finally:  # an interrupt shows the results so far
            cli.print_json(result.as_dict()) if options.format == "json" else show(result)
    if not result.timings:
        raise UserError("no runner could time it", "the lines above say why")
