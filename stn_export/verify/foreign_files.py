"""Open files of any origin for comparison, and make inputs to compare them on."""

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from stn_export.errors import UserError, one_line
from stn_export.limits import archive, regular
from stn_export.onnx_graph.model import as_array, outputs_apart_from_inputs, read_model
from stn_export.onnx_graph.points import conditions, only_with
from stn_export.program.formats import read_metadata
from stn_export.program.program import load_program
from stn_export.program.specs import BATCH, Arrays, Batch, Contract, Pixels, TensorSpec, by
from stn_export.run import provenance
from stn_export.run.examples import Examples
from stn_export.run.manifest import MANIFEST, PROGRAM, Artifact, NetworkDirectory
from stn_export.run.store import sha256_of
from stn_export.runners import RUNNERS, Runner
from stn_export.runners.onnx_runtime import OnnxRuntime
from stn_export.verify.checks import feed
from stn_export.verify.points import output_kinds

FORMATS = {".onnx": "onnx", ".ts": "torchscript", ".pt2": "pt2", ".aoti.pt2": "aotinductor"}
USABLE = "name two .onnx, .ts or .pt2 files"
TYPES = {"float": "float32", "double": "float64"}  # ONNX Runtime's names, where NumPy has others
BLANK = Contract((), ())


@dataclass(frozen=True)
class Side:
    """An opened file.

    ``known`` says whether it declares its inputs: a TorchScript file of other origin does not. ``believed`` says
    whether a manifest of this user, or a trusted one, lists it: only then is it judged by the precision it states.
    """

    path: Path
    artifact: Artifact
    runner: Runner
    known: bool = True
    directory: NetworkDirectory | None = None  # if a manifest lists the file
    believed: bool = False

    @property
    def contract(self) -> Contract:
        """Return its inputs and outputs."""
        return self.runner.contract

    @property
    def precision(self) -> str:
        """Return the precision it is judged by: its manifest's, or fp32 whatever the file itself says."""
        return self.artifact.precision if self.believed else "fp32"

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Return the kinds of its outputs by name, if a manifest lists it beside its program; else nothing."""
        if not self.believed or self.directory is None:
            return {}
        try:
            program = self.directory.program()
        except UserError:  # edited or stale: the outputs' kinds are unknown
            return {}
        return {name: kind.kind for name, kind in output_kinds(program).items()}

    @cached_property
    def constants(self) -> set[str]:
        """Return the outputs that the inputs' values do not reach, as far as the file's graph shows it."""
        onnx = isinstance(self.runner, OnnxRuntime)
        return outputs_apart_from_inputs(read_model(self.path).model.graph) if onnx else set()

    @cached_property
    def branches(self) -> "Branches":
        """Return which branches its runs took."""
        return Branches(self.path, self.runner)

    def note_branches(self, batch: Batch) -> None:
        """Note which branches of the file's graph a batch takes."""
        if self.branches.names:
            feed(self.branches.look, batch, self.contract, {})

    @property
    def origin(self) -> str | None:
        """Return the sha256 of the program that it was made from, or that it is; None if unknown."""
        return (self.artifact.sha256 if self.artifact.name == PROGRAM else self.artifact.parent_sha256) or None

    @property
    def examples(self) -> Examples | None:
        """Return the examples of its run; None if no manifest lists it."""
        return self.directory.examples() if self.directory else None

    def taking(self, contract: Contract) -> "Side":
        """Return the side with another contract; its runner is changed too."""
        self.runner.contract, self.runner.outputs = contract, tuple(spec.name for spec in contract.outputs)
        return replace(self, artifact=replace(self.artifact, contract=contract), known=True)

    def run(self, batch: Batch, change: Callable[[Arrays], Arrays] = lambda feeds: feeds) -> Arrays | str:
        """Return every output by name, or why there is none; ``change`` is applied to the input arrays.

        If the file's batch is static, it gets padded batches, and outputs that are not per example are left out.
        """
        try:
            axes = {s.name: int(s.batched) for s in self.contract.outputs}
            return feed(lambda feeds: self._arrays(change(feeds)), batch, self.contract, axes)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a foreign file may raise anything
            return f"{self.path} does not run on it: {one_line(error)}"

    def _arrays(self, feeds: Arrays) -> Arrays:
        """Return the outputs as arrays, including sequences and maps."""
        return {name: as_array(value) for name, value in self.runner.infer(feeds).items()}


class Branches:
    """Which branches of each ``If`` were taken; it runs a copy of the graph that computes the conditions only."""

    def __init__(self, path: Path, runner: Runner) -> None:
        tests = conditions(read_model(path).model) if isinstance(runner, OnnxRuntime) else {}
        self.problem = ""
        self.names: dict[str, str] = {}
        self.taken: dict[str, set[bool]] = {name: set() for name in tests}
        if tests and isinstance(runner, OnnxRuntime):
            try:
                copy = only_with(runner.model, [*tests.values()]).SerializeToString()
                self.session = runner.open_session(copy, runner.provider_options())
                self.names = tests
            except Exception as error:  # a copy of more than 2 GB, or what ONNX Runtime raises for it
                self.problem = f"which branches of its Ifs were taken cannot be told: {one_line(error)}"

    def look(self, feeds: Arrays) -> Arrays:
        """Add what the conditions are for some inputs."""
        used = [value.name for value in self.session.get_inputs()]
        values = self.session.run(None, {name: feeds[name] for name in used})
        for name, value in zip(self.names, values, strict=True):
            self.taken[name].add(bool(value.reshape(-1)[0]))
        return {}

    @property
    def notes(self) -> list[str]:
        """Return a line for each ``If`` of which one branch was never taken."""
        missed = [name for name, taken in self.taken.items() if len(taken) == 1]
        return [self.problem] * bool(self.problem) + [f"one branch of If {name!r} was never taken" for name in missed]


def open_side(path: Path, trust: bool = False) -> Side:
    """Open a file; if a manifest beside it lists it, check its bytes and take its contract from there.

    Args:
        path: the file.
        trust: whether to load a file that runs code even if none of this user's commands wrote it.

    Raises:
        UserError: if it is missing, edited, of an unknown kind, unreadable or not trusted.
    """
    regular(path, "archive", USABLE)
    directory = NetworkDirectory(path.parent)
    for artifact in _entries(directory).values():
        if artifact.file == path.name and artifact.format in FORMATS.values():
            return open_listed(directory, artifact, trust)
    suffix = next(
        (candidate for candidate in sorted(FORMATS, key=len, reverse=True) if path.name.endswith(candidate)), None
    )
    if suffix is None:
        raise UserError(f"{path} is a file of a kind that cannot be compared", USABLE)
    provenance.require_kind(path, FORMATS[suffix])
    provenance.require(path, FORMATS[suffix], [sha256_of(path)], trust)
    return _open_unlisted(path, FORMATS[suffix])


def _entries(directory: NetworkDirectory) -> dict[str, Artifact]:
    """Return the manifest's entries; nothing if there is no manifest, or it is not one of this package."""
    path = directory.path / MANIFEST
    ours = path.is_file() and '"stn_export/' in regular(path, "json").read_text(errors="replace", encoding="utf-8")
    return directory.artifacts if ours else {}


def open_listed(directory: NetworkDirectory, artifact: Artifact, trust: bool = False) -> Side:
    """Open an artifact of a run; it may be stale.

    Raises:
        UserError: if it is missing, edited, unreadable, or runs code and is neither this user's nor trusted.
    """
    runner = _runner(directory.intact(artifact, trust), artifact)
    believed = trust or provenance.is_known(artifact.files.values())
    return Side(directory.path / artifact.file, artifact, runner, directory=directory, believed=believed)


def _open_unlisted(path: Path, kind: str) -> Side:
    """Open a file that no manifest lists; the inputs that it declares are believed, its precision is not."""
    metadata = _metadata(path, kind)
    ours = isinstance(metadata.get("contract"), dict)
    artifact = Artifact(
        name=path.name,
        file=path.name,
        network="",
        format=kind,
        sha256="",
        contract=Contract.from_dict(metadata["contract"]) if ours else BLANK,
        parent_sha256=metadata.get("program_sha256") if ours else None,
        precision=metadata.get("precision", "fp32") if ours else "fp32",
    )
    side = Side(path, artifact, _runner(path, artifact), known=ours)
    if not ours and isinstance(side.runner, OnnxRuntime):
        return side.taking(contract_of_session(side.runner.session))
    return side


def _metadata(path: Path, kind: str) -> dict:
    if kind == "onnx":
        return {entry.key: _parsed(entry.value) for entry in read_model(path).model.metadata_props}
    if not zipfile.is_zipfile(archive(path)):
        raise UserError(f"{path} is truncated or no PyTorch file", USABLE)
    return {"contract": load_program(path).contract.as_dict()} if kind == "pt2" else read_metadata(path)


def _parsed(text: str) -> object:
    """Parse a value of an ONNX file's metadata: JSON if this package wrote it, else any text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _runner(path: Path, artifact: Artifact) -> Runner:
    specs = [spec for spec in RUNNERS if (spec.format, spec.device) == (artifact.format, "cpu")]
    if not specs:
        raise UserError(f"{path} does not run on the CPU, where files are compared", USABLE)
    try:
        return specs[0].open(path, artifact.contract)
    except UserError:
        raise
    except Exception as error:  # PyTorch and ONNX Runtime raise various errors for damaged files
        raise UserError(f"{path} cannot be opened as {artifact.format}: {one_line(error)}", USABLE) from error


def contract_of_session(session: onnxruntime.InferenceSession) -> Contract:
    """Return the contract that an ONNX file of any origin declares.

    A first dimension with the name of the first input's is the batch; one that all inputs and outputs share is a batch
    of static size.
    """
    sides = session.get_inputs(), session.get_outputs()
    shapes = [
        [None if size == -1 else size for size in argument.shape]
        for side in sides
        for argument in side
        if argument.shape is not None
    ]
    first = next((shape[0] for shape in shapes if shape and not isinstance(shape[0], int)), None)
    shared = len({shape[0] if shape else None for shape in shapes}) == 1

    def spec(place: str, argument: onnxruntime.NodeArg) -> TensorSpec:
        shape = tuple(_size(size, axis, place, first) for axis, size in enumerate(argument.shape or ()))
        batched = bool(shape) and (shape[0] == BATCH or (shared and isinstance(shape[0], int)))
        kind = argument.type.removeprefix("tensor(").removesuffix(")")
        return TensorSpec(argument.name, TYPES.get(kind, kind), shape, batched)

    return Contract(*(tuple(spec(argument.name, argument) for argument in side) for side in sides))


def _size(size: int | str | None, axis: int, place: str, batch: str | None) -> int | str:
    if isinstance(size, int) and size >= 0:
        return size
    size = None if size == -1 else size
    return BATCH if axis == 0 and size in (None, batch) else size or f"{place}{axis}"


def agreed(left: Side, right: Side) -> tuple[Side, Side] | str:
    """Complete what one side does not declare from the other; return both, or why they have no inputs in common."""
    if not left.known and not right.known:
        return f"neither {left.path} nor {right.path} describes its inputs"
    if not (left.known and right.known):
        left, right = (
            side if side.known else side.taking(other.contract) for side, other in ((left, right), (right, left))
        )
    pairs, counts = paired(left.contract, right.contract), {len(side.contract.inputs) for side in (left, right)}
    if counts != {len(pairs)} or not all(alike(*pair) for pair in pairs):
        return f"takes {said(left.contract)} instead of {said(right.contract)}"
    return _normalised(left, {a.name: b for a, b in pairs}), _normalised(right, {b.name: a for a, b in pairs})


def paired(left: Contract, right: Contract) -> list[tuple[TensorSpec, TensorSpec]]:
    """Return the pairs of inputs of two contracts that take the same values."""
    ours, theirs = ({spec.name: spec for spec in contract.inputs} for contract in (left, right))
    return [(ours[one], theirs[other]) for one, other in matched(ours, theirs)]


def _normalised(side: Side, others: Mapping[str, TensorSpec]) -> Side:
    """Return a side that normalises images as the other does, if it declares no normalisation."""
    inputs = tuple(
        replace(spec, pixels=others[spec.name].pixels) if spec.is_float and spec.pixels is None else spec
        for spec in side.contract.inputs
    )
    return side.taking(replace(side.contract, inputs=inputs))


def alike(left: TensorSpec, right: TensorSpec) -> bool:
    """Return whether two inputs accept the same values: equal dtypes and shapes, or raw and normalised images."""
    raw = {left.dtype, right.dtype} == {"uint8", "float32"} and bool(left.pixels or right.pixels)
    shapes = left.nchw, right.nchw
    return (
        (left.dtype == right.dtype or raw)
        and len(shapes[0]) == len(shapes[1])
        and all(
            a == b or isinstance(a, str) or isinstance(b, str) or (axis == 0 and left.batched and right.batched)
            for axis, (a, b) in enumerate(zip(*shapes, strict=True))
        )
    )


def said(contract: Contract) -> str:
    """Describe the inputs for people."""
    return ", ".join(f"{spec.name} {spec.text}" for spec in contract.inputs) or "nothing"


def matched(left: Iterable[str], right: Iterable[str]) -> list[tuple[str, str]]:
    """Pair equal names, then the other names by position if both sides have the same number."""
    left, right = list(left), list(right)
    others = [name for name in left if name not in right], [name for name in right if name not in left]
    same = [(name, name) for name in left if name in right]
    return [*same, *zip(*others, strict=True)] if len(left) == len(right) else same


def common(left: Contract, right: Contract) -> Contract:
    """Return the inputs that both sides accept: the left one's names, NCHW, bytes if either takes them.

    Raises:
        UserError: for an input that is no tensor of numbers.
    """
    return Contract(tuple(_both(*pair) for pair in paired(left, right)), ())


def _both(left: TensorSpec, right: TensorSpec) -> TensorSpec:
    if not isinstance(getattr(torch, left.dtype, None), torch.dtype):
        raise UserError(f"input {left.name} is no tensor of numbers", "files with such inputs are not supported")
    sizes = zip(left.nchw, right.nchw, strict=True)
    shape = tuple(b if isinstance(a, str) and isinstance(b, int) else a for a, b in sizes)
    pixels = left.pixels or right.pixels or (Pixels() if "uint8" in (left.dtype, right.dtype) else None)
    both = replace(left, shape=shape, layout="NCHW", pixels=pixels, batched=left.batched and right.batched)
    return both.opened()


# Inputs for files of any origin: floats of several scales, integers over the range that runs.


Runs = Callable[[Batch], bool]
SPANS = ((1, -1.0, 1.0), (2, -1.0, 1.0), (7, -1.0, 1.0), (7, 0.0, 1.0), (7, -30.0, 30.0), (7, -1000.0, 1000.0))
NEAR = 4  # the first spans, in which half precision does not overflow
FURTHER_SPANS = ((4, 0.0, 255.0), (4, -130.0, 130.0), (4, -400.0, 400.0))  # between the last two; tried if time is left
SPIKES = (50.0, -100.0, 100.0, -200.0, 400.0, -800.0, 1000.0)
FURTHEST = 2**20  # largest integer that is tried
CALLS = 8  # calls to cover the range of one input
COVERED = 2**13  # numbers of the range per call


@dataclass(frozen=True)
class Span:
    """The range of integers that an input may hold, both ends included."""

    low: int
    high: int

    @property
    def count(self) -> int:
        """Return how many integers there are."""
        return self.high - self.low + 1


def random_batches(
    contract: Contract, spans: Sequence[tuple[int, float, float]] = SPANS, first: int = 0
) -> Iterator[tuple[str, Batch]]:
    """Yield batches of floats from several ranges and integers 0 and 1, named by shape; always the same ones.

    Images with a known normalisation are bytes; ranges are skipped if no other input is a float.
    """
    plain = [spec.name for spec in contract.inputs if spec.is_float and spec.pixels is None]
    for seed, (size, low, high) in enumerate(spans, first):
        if not plain and (low, high) != SPANS[0][1:]:
            continue
        batch = contract.random(size, seed)
        for name in plain:
            batch[name] = _over(batch[name], low, high)
        within = "" if (low, high) == SPANS[0][1:] else f" in [{low:g}, {high:g}]"
        yield f"random {seed}{within}: {shapes_of(batch)}", batch


def spiked(contract: Contract) -> Iterator[tuple[str, Batch]]:
    """Yield a batch with one large number in each example: networks that place samples lose wide noise altogether."""
    plain = [spec.name for spec in contract.inputs if spec.is_float and spec.pixels is None]
    if not plain:
        return
    batch, random = contract.random(len(SPIKES), 0), np.random.default_rng(0)
    for name in plain:
        values = batch[name]
        rows = values.view(len(SPIKES), -1) if len(values.shape) and len(values) == len(SPIKES) else values.view(1, -1)
        for row, spike in zip(rows, SPIKES, strict=False):
            if row.numel() > 1:
                row[int(random.integers(row.numel()))] = spike
    yield f"single numbers up to {max(SPIKES):g}: {shapes_of(batch)}", batch


def _over(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Stretch numbers from [-1, 1] over another range, and include both of its ends."""
    if (low, high) == SPANS[0][1:]:
        return values
    wide = low + (values.double() + 1) / 2 * (high - low)
    if wide.numel():
        wide.view(-1)[0], wide.view(-1)[-1] = low, high
    return wide.to(values.dtype)


def shapes_of(batch: Batch) -> str:
    """Describe the inputs with their sizes for people."""
    return ", ".join(f"{name} {by(values.shape)}" for name, values in batch.items())


def whole_inputs(contract: Contract) -> list[TensorSpec]:
    """Return the integer inputs whose range must be found; bytes of images may take any value."""
    return [spec for spec in contract.inputs if not (spec.is_float or spec.is_picture or spec.dtype == "bool")]


def span_of(spec: TensorSpec, contract: Contract, runs: Runs) -> Span | None:
    """Find by trial the range of one input in which a file runs; None if it runs with neither 0 nor 1.

    Args:
        spec: the input.
        contract: of all inputs; the others hold the values of ``random_batches``.
        runs: whether the file runs on a batch.
    """
    usual = contract.random(1, 0)
    limits = torch.iinfo(usual[spec.name].dtype)

    def takes(value: int) -> bool:
        return runs(usual | {spec.name: torch.full_like(usual[spec.name], value)})

    start = next((value for value in (0, 1) if takes(value)), None)
    if start is None:
        return None
    high = _furthest(start, min(FURTHEST, int(limits.max)), takes)
    low = start if start else -_furthest(0, min(FURTHEST, -int(limits.min)), lambda value: takes(-value))
    return Span(low, high)


def _furthest(start: int, limit: int, takes: Callable[[int], bool]) -> int:
    """Return the largest number up to ``limit`` that is accepted, by doubling and bisection; assumes all below are."""
    accepted, step = start, max(1, 2 * start)
    while step < limit and takes(step):
        accepted, step = step, 2 * step
    if step >= limit:
        if takes(limit):
            return limit
        step = limit
    while step - accepted > 1:
        middle = (accepted + step) // 2
        accepted, step = (middle, step) if takes(middle) else (accepted, middle)
    return accepted


def covering(spec: TensorSpec, contract: Contract, span: Span) -> Iterator[tuple[str, Batch]]:
    """Yield batches in which an input takes every number of its range, or as many as ``CALLS`` calls hold."""
    one = contract.random(1, 0)[spec.name].numel()
    size = -(-min(COVERED, -(-span.count // CALLS)) // one) if spec.batched else 1
    batches = [contract.random(size, seed) for seed in range(CALLS)]
    room = batches[0][spec.name].numel()
    numbers = _numbers(span, room * CALLS)
    calls = -(-len(numbers) // room)
    amount = "all" if len(numbers) == span.count else f"{len(numbers)} of {span.count}"
    for index in range(calls):
        chosen = np.resize(numbers[index * room : (index + 1) * room], room)
        values = torch.from_numpy(chosen).view(batches[index][spec.name].shape).to(batches[index][spec.name].dtype)
        yield (
            f"{spec.name} {span.low} to {span.high}, {amount}, {index + 1}/{calls}",
            batches[index] | {spec.name: values},
        )


def _numbers(span: Span, count: int) -> np.ndarray:
    """Return the numbers of a range in random order, or ``count`` of them including both ends."""
    random = np.random.default_rng(0)
    if span.count <= count:
        return random.permutation(np.arange(span.low, span.high + 1))
    inner = random.choice(span.count - 2, max(0, count - 2), replace=False) + span.low + 1
    return np.array([span.low, span.high, *inner])[:count]
