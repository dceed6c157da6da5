"""Files of any origin, opened to be compared, and the inputs that they are tried on."""

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
from stn_export.onnx_graph.model import as_array, read_model
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
TYPES = {"float": "float32", "double": "float64"}  # as ONNX Runtime calls them, where NumPy says otherwise
BLANK = Contract((), ())


@dataclass(frozen=True)
class Side:
    """An opened file.

    ``known`` says whether it knows what it takes: a TorchScript file of others does not. ``believed`` is whether a
    manifest of this machine's user, or one that is trusted, lists it: no other file says how it is judged.
    """

    path: Path
    artifact: Artifact
    runner: Runner
    known: bool = True
    directory: NetworkDirectory | None = None  # where a manifest lists the file
    believed: bool = False

    @property
    def contract(self) -> Contract:
        """What goes in and comes out."""
        return self.runner.contract

    @property
    def precision(self) -> str:
        """What it is judged as: its manifest's precision, and float32 whatever a file says of itself."""
        return self.artifact.precision if self.believed else "fp32"

    @cached_property
    def kinds(self) -> dict[str, str]:
        """What its outputs are, by name, where a manifest lists it beside its program."""
        if not self.believed or self.directory is None:
            return {}
        try:
            program = self.directory.program()
        except UserError:  # edited or stale: then nothing says what the outputs are
            return {}
        return {name: each.kind for name, each in output_kinds(program).items()}

    @property
    def origin(self) -> str | None:
        """The sha256 of the program that it was made from, or that it is; None where it is not known."""
        return (self.artifact.sha256 if self.artifact.name == PROGRAM else self.artifact.parent_sha256) or None

    @property
    def examples(self) -> Examples | None:
        """What the run tries it on."""
        return self.directory.examples() if self.directory else None

    def taking(self, contract: Contract) -> "Side":
        """The same under another contract."""
        self.runner.contract, self.runner.outputs = contract, tuple(spec.name for spec in contract.outputs)
        return replace(self, artifact=replace(self.artifact, contract=contract), known=True)

    def run(self, batch: Batch, change: Callable[[Arrays], Arrays] = lambda feeds: feeds) -> Arrays | str:
        """Every output by name, or why there is none; ``change`` is made to the arrays that it is fed.

        Where the file's batch is fixed it gets filled-up ones, and what is not an example's own is left out.
        """
        try:
            axes = {s.name: int(s.batched) for s in self.contract.outputs}
            return feed(lambda feeds: self._arrays(change(feeds)), batch, self.contract, axes)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # what a foreign file raises is its own affair
            return f"{self.path} does not run on it: {one_line(error)}"

    def _arrays(self, feeds: Arrays) -> Arrays:
        """The outputs, sequences and maps among them as arrays."""
        return {name: as_array(value) for name, value in self.runner.infer(feeds).items()}


def open_side(path: Path, trust: bool = False) -> Side:
    """Open a file; where a manifest beside it lists it, its bytes are checked and its contract is taken from there.

    Args:
        path: the file.
        trust: whether to load what runs code even where none of this user's commands wrote it.

    Raises:
        UserError: where it is missing, edited, of an unknown kind, unreadable or not trusted.
    """
    regular(path, "archive", USABLE)
    directory = NetworkDirectory(path.parent)
    for artifact in _entries(directory).values():
        if artifact.file == path.name and artifact.format in FORMATS.values():
            return open_listed(directory, artifact, trust)
    suffix = next((each for each in sorted(FORMATS, key=len, reverse=True) if path.name.endswith(each)), None)
    if suffix is None:
        raise UserError(f"{path} is of no kind that can be compared", USABLE)
    provenance.require_kind(path, FORMATS[suffix])
    provenance.require(path, FORMATS[suffix], [sha256_of(path)], trust)
    return _open_unlisted(path, FORMATS[suffix])


def _entries(directory: NetworkDirectory) -> dict[str, Artifact]:
    """What the manifest lists; nothing where there is none, or where it is somebody else's."""
    path = directory.path / MANIFEST
    ours = path.is_file() and '"stn_export/' in regular(path, "json").read_text(errors="replace", encoding="utf-8")
    return directory.artifacts if ours else {}


def open_listed(directory: NetworkDirectory, artifact: Artifact, trust: bool = False) -> Side:
    """Open an artifact of a run; one made from an older program will do.

    Raises:
        UserError: where it is missing, edited, unreadable, or runs code and is neither this user's nor trusted.
    """
    runner = _runner(directory.intact(artifact, trust), artifact)
    believed = trust or provenance.is_known(artifact.files.values())
    return Side(directory.path / artifact.file, artifact, runner, directory=directory, believed=believed)


def _open_unlisted(path: Path, kind: str) -> Side:
    """A file on its own: what it says that it takes is believed, its precision is not."""
    said = _metadata(path, kind)
    ours = isinstance(said.get("contract"), dict)
    artifact = Artifact(
        name=path.name,
        file=path.name,
        network="",
        format=kind,
        sha256="",
        contract=Contract.from_dict(said["contract"]) if ours else BLANK,
        parent_sha256=said.get("program_sha256") if ours else None,
        precision=said.get("precision", "fp32") if ours else "fp32",
    )
    side = Side(path, artifact, _runner(path, artifact), known=ours)
    if not ours and isinstance(side.runner, OnnxRuntime):
        return side.taking(contract_of_session(side.runner.session))
    return side


def _metadata(path: Path, kind: str) -> dict:
    if kind == "onnx":
        return {each.key: _parsed(each.value) for each in read_model(path).model.metadata_props}
    if not zipfile.is_zipfile(archive(path)):
        raise UserError(f"{path} is truncated or no PyTorch file", USABLE)
    return {"contract": load_program(path).contract.as_dict()} if kind == "pt2" else read_metadata(path)


def _parsed(text: str) -> object:
    """A value of an ONNX file's metadata: ours are JSON, other people's any text."""
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
    except Exception as error:  # what PyTorch and ONNX Runtime raise depends on the kind of damage
        raise UserError(f"{path} cannot be opened as {artifact.format}: {one_line(error)}", USABLE) from error


def contract_of_session(session: onnxruntime.InferenceSession) -> Contract:
    """What other people's ONNX file declares. What is called as the first input's first dimension is the batch.

    A first dimension that all inputs and outputs share is a batch of fixed size.
    """
    sides = session.get_inputs(), session.get_outputs()
    shapes = [
        [None if size == -1 else size for size in each.shape]
        for side in sides
        for each in side
        if each.shape is not None
    ]
    first = next((shape[0] for shape in shapes if shape and not isinstance(shape[0], int)), None)
    shared = len({shape[0] if shape else None for shape in shapes}) == 1

    def spec(place: str, each: onnxruntime.NodeArg) -> TensorSpec:
        shape = tuple(_size(size, axis, place, first) for axis, size in enumerate(each.shape or ()))
        batched = bool(shape) and (shape[0] == BATCH or (shared and isinstance(shape[0], int)))
        kind = each.type.removeprefix("tensor(").removesuffix(")")
        return TensorSpec(each.name, TYPES.get(kind, kind), shape, batched)

    return Contract(*(tuple(spec(each.name, each) for each in side) for side in sides))


def _size(size: int | str | None, axis: int, place: str, batch: str | None) -> int | str:
    if isinstance(size, int) and size >= 0:
        return size
    size = None if size == -1 else size
    return BATCH if axis == 0 and size in (None, batch) else size or f"{place}{axis}"


def agreed(left: Side, right: Side) -> tuple[Side, Side] | str:
    """Both sides, what one does not know of itself taken from the other, or why they cannot be fed with the same."""
    if not left.known and not right.known:
        return f"neither {left.path} nor {right.path} says what it takes"
    if not (left.known and right.known):
        left, right = (
            side if side.known else side.taking(other.contract) for side, other in ((left, right), (right, left))
        )
    pairs, counts = paired(left.contract, right.contract), {len(side.contract.inputs) for side in (left, right)}
    if counts != {len(pairs)} or not all(alike(*pair) for pair in pairs):
        return f"takes {said(left.contract)} instead of {said(right.contract)}"
    return _normalised(left, {a.name: b for a, b in pairs}), _normalised(right, {b.name: a for a, b in pairs})


def paired(left: Contract, right: Contract) -> list[tuple[TensorSpec, TensorSpec]]:
    """The inputs of two contracts that take the same."""
    ours, theirs = ({spec.name: spec for spec in each.inputs} for each in (left, right))
    return [(ours[one], theirs[other]) for one, other in matched(ours, theirs)]


def _normalised(side: Side, others: Mapping[str, TensorSpec]) -> Side:
    """A side that normalises pictures as the other one does, where it does not know by itself."""
    inputs = tuple(
        replace(spec, pixels=others[spec.name].pixels) if spec.is_float and spec.pixels is None else spec
        for spec in side.contract.inputs
    )
    return side.taking(replace(side.contract, inputs=inputs))


def alike(left: TensorSpec, right: TensorSpec) -> bool:
    """Whether two inputs can be fed with the same: raw pictures, and normalised ones, are."""
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
    """The inputs for a person."""
    return ", ".join(f"{spec.name} {spec.text}" for spec in contract.inputs) or "nothing"


def matched(left: Iterable[str], right: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of one name, then the others by position where there are as many on both sides."""
    left, right = list(left), list(right)
    others = [name for name in left if name not in right], [name for name in right if name not in left]
    same = [(name, name) for name in left if name in right]
    return [*same, *zip(*others, strict=True)] if len(left) == len(right) else same


def common(left: Contract, right: Contract) -> Contract:
    """What both can be fed with: inputs under the left one's names, NCHW, bytes where either takes them.

    Raises:
        UserError: for an input that is no tensor of numbers.
    """
    return Contract(tuple(_both(*pair) for pair in paired(left, right)), ())


def _both(left: TensorSpec, right: TensorSpec) -> TensorSpec:
    if not isinstance(getattr(torch, left.dtype, None), torch.dtype):
        raise UserError(f"input {left.name} is no tensor of numbers", "such a file cannot be tried")
    sizes = zip(left.nchw, right.nchw, strict=True)
    shape = tuple(b if isinstance(a, str) and isinstance(b, int) else a for a, b in sizes)
    pixels = left.pixels or right.pixels or (Pixels() if "uint8" in (left.dtype, right.dtype) else None)
    both = replace(left, shape=shape, layout="NCHW", pixels=pixels, batched=left.batched and right.batched)
    return both.opened()


# What two files of any origin are tried on: floats of several scales, whole numbers over the range that runs.


Runs = Callable[[Batch], bool]
SPANS = ((1, -1.0, 1.0), (2, -1.0, 1.0), (7, -1.0, 1.0), (7, 0.0, 1.0), (7, -30.0, 30.0), (7, -1000.0, 1000.0))
NEAR = 4  # spans that half precision does not overflow in
FURTHEST = 2**20  # whole numbers are tried up to it
CALLS = 8  # that cover the range of one input
COVERED = 2**13  # numbers of it in a call


@dataclass(frozen=True)
class Span:
    """The whole numbers that an input may hold, both ends included."""

    low: int
    high: int

    @property
    def count(self) -> int:
        """How many there are."""
        return self.high - self.low + 1


def random_batches(
    contract: Contract, spans: Sequence[tuple[int, float, float]] = SPANS
) -> Iterator[tuple[str, Batch]]:
    """Batches of floats from several ranges and whole numbers of 0 and 1, named by shape; the same every time.

    Pictures of known normalisation are bytes: where nothing else is a float, ranges make no difference.
    """
    plain = [spec.name for spec in contract.inputs if spec.is_float and spec.pixels is None]
    for seed, (size, low, high) in enumerate(spans):
        if not plain and (low, high) != SPANS[0][1:]:
            continue
        batch = contract.random(size, seed)
        for name in plain:
            batch[name] = _over(batch[name], low, high)
        within = "" if (low, high) == SPANS[0][1:] else f" in [{low:g}, {high:g}]"
        yield f"random {seed}{within}: {shapes_of(batch)}", batch


def _over(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Numbers from [-1, 1] stretched over another range, both of whose ends are among them."""
    if (low, high) == SPANS[0][1:]:
        return values
    wide = low + (values.double() + 1) / 2 * (high - low)
    if wide.numel():
        wide.view(-1)[0], wide.view(-1)[-1] = low, high
    return wide.to(values.dtype)


def shapes_of(batch: Batch) -> str:
    """The inputs with their sizes, for a person."""
    return ", ".join(f"{name} {by(values.shape)}" for name, values in batch.items())


def whole_inputs(contract: Contract) -> list[TensorSpec]:
    """The inputs of whole numbers whose range has to be found; bytes of pictures may be anything."""
    return [spec for spec in contract.inputs if not (spec.is_float or spec.is_picture or spec.dtype == "bool")]


def span_of(spec: TensorSpec, contract: Contract, runs: Runs) -> Span | None:
    """The range of one input in which a file runs, found by trying; None where it runs with neither 0 nor 1.

    Args:
        spec: the input.
        contract: of all inputs; the others hold what ``random_batches`` gives them.
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
    """The largest number up to ``limit`` that is taken, if all below it are: by doubling, then by halving."""
    known, step = start, max(1, 2 * start)
    while step < limit and takes(step):
        known, step = step, 2 * step
    if step >= limit:
        if takes(limit):
            return limit
        step = limit
    while step - known > 1:
        middle = (known + step) // 2
        known, step = (middle, step) if takes(middle) else (known, middle)
    return known


def covering(spec: TensorSpec, contract: Contract, span: Span) -> Iterator[tuple[str, Batch]]:
    """Batches in which one input takes every number of its range, or as many of them as ``CALLS`` calls hold."""
    one = contract.random(1, 0)[spec.name].numel()
    size = -(-min(COVERED, -(-span.count // CALLS)) // one) if spec.batched else 1
    batches = [contract.random(size, seed) for seed in range(CALLS)]
    room = batches[0][spec.name].numel()
    numbers = _numbers(span, room * CALLS)
    calls = -(-len(numbers) // room)
    said = "all" if len(numbers) == span.count else f"{len(numbers)} of {span.count}"
    for index in range(calls):
        chosen = np.resize(numbers[index * room : (index + 1) * room], room)
        values = torch.from_numpy(chosen).view(batches[index][spec.name].shape).to(batches[index][spec.name].dtype)
        yield (
            f"{spec.name} {span.low} to {span.high}, {said}, {index + 1}/{calls}",
            batches[index] | {spec.name: values},
        )


def _numbers(span: Span, count: int) -> np.ndarray:
    """The numbers of a range in any order, or ``count`` of them with both ends."""
    random = np.random.default_rng(0)
    if span.count <= count:
        return random.permutation(np.arange(span.low, span.high + 1))
    inner = random.choice(span.count - 2, max(0, count - 2), replace=False) + span.low + 1
    return np.array([span.low, span.high, *inner])[:count]
