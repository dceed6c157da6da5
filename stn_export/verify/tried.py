"""What two files of any origin are tried on: floats of several scales, whole numbers over the range that runs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stn_export.program.specs import Batch, Contract, TensorSpec, by

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
