"""Batches of one size only: whether a module takes them, how many examples they hold, and which line says so."""

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from stn_export.errors import UserError
from stn_export.program.specs import BATCH, Contract, TensorSpec
from stn_export.program.state import OURS, TORCH, Copies, alike, answer, following
from stn_export.run.examples import Examples

USUAL = (1, 4, 8, 16, 32, 64, 128, 3, *range(5, 16))  # sizes that are tried where no number is named
MOST = 512  # largest size that is tried
SECONDS = 10.0  # that all tries may take
GROSS = 1e-3  # relative difference allowed of the same example in two batches: both round
NUMBER = re.compile(r"\d+")


class InputsError(UserError):
    """A module does not take inputs of the shapes that were named, and others are offered."""


@dataclass(frozen=True)
class FixedBatch:
    """The one batch size that a module takes, and the line that fixes it (``plates.py:24``), if it was found."""

    size: int
    line: str = ""

    @property
    def text(self) -> str:
        """The size and the line, in words."""
        return f"{self.line or 'the module'} fixes the batch at {self.size}"

    def error(self, specs: Sequence[TensorSpec], tried: Examples, typed: bool) -> InputsError:
        """Return the error of a module that was to keep its batch dynamic; ``typed`` if on a command line."""
        shapes = {spec.name: (self.size, *tried.inputs[spec.name].shape[1:]) for spec in specs if spec.batched}
        if not typed:
            return InputsError(self.text, f"give these shapes or examples of them: {shapes}")
        types = {spec.name: "" if spec.dtype == "float32" else f":{spec.dtype}" for spec in specs}
        options = [f"--input {name}={','.join(map(str, sizes))}{types[name]}" for name, sizes in shapes.items()]
        return InputsError(self.text, f"adopt it so with {' '.join(options)}, or let it take any batch")

    def fixed(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """Return the specs with this batch."""
        return tuple(spec.fixed({BATCH: self.size}) for spec in specs)


class _Steps(TorchFunctionMode):
    """Record every function of PyTorch that a module calls: its line, and the shapes of the tensors in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, list[torch.Size], list[torch.Size]]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not (line := _own_line()):
            return func(*args, **(kwargs or {}))
        shapes = _shapes((args, kwargs))
        self.made.append((line, shapes, []))
        result = func(*args, **(kwargs or {}))
        self.made[-1] = (line, shapes, _shapes(result))
        return result


def _own_line() -> str:
    """Return the innermost line of a module's own code, as ``path:number``; empty for calls of this package's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((TORCH, __file__)):
        frame = frame.f_back
    own = frame is not None and not frame.f_code.co_filename.startswith(OURS)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None and own else ""


def _shapes(values: Any) -> list[torch.Size]:
    return [leaf.shape for leaf in _pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _find(copies: Copies, specs: Sequence[TensorSpec], tried: Examples, error: UserError) -> FixedBatch | None:
    """Find the one batch size that a module takes which does not take 2 examples; None if there is none such.

    Args:
        copies: of the module.
        specs: of its inputs.
        tried: the examples.
        error: of a batch of 2; the numbers in it are tried first.
    """
    failing = _Steps()
    _runs(copies, specs, tried, 2, failing)
    end, named = time.monotonic() + SECONDS, map(int, NUMBER.findall(_said(error, failing)))
    for size in dict.fromkeys(number for number in (*named, *USUAL) if 0 < number <= MOST and number != 2):
        working = _Steps()
        if _runs(copies, specs, tried, size, working):
            other = any(_runs(copies, specs, tried, larger) for larger in (size + 1, 2 * size, 3 * size) if larger != 2)
            return None if other else FixedBatch(size, _line(failing, working, size))
        if time.monotonic() > end:
            break
    return None


def _said(error: UserError, failing: _Steps) -> str:
    """Return the error, and the source line on which the module failed: the batch's size often stands in one."""
    file, _, number = (failing.made[-1][0] if failing.made else "").rpartition(":")
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        return f"{error.message.rpartition('Error: ')[2]} {lines[int(number) - 1]}"
    except (OSError, ValueError, IndexError):
        return error.message.rpartition("Error: ")[2]


def _runs(
    copies: Copies, specs: Sequence[TensorSpec], tried: Examples, size: int, steps: TorchFunctionMode | None = None
) -> bool:
    values = Contract(tuple(specs), ()).values(tried.take(size))
    try:
        with steps or nullcontext():
            _answer(copies, values)
    except UserError:
        return False
    return True


def _line(failing: _Steps, working: _Steps, size: int) -> str:
    """Return the first line that makes ``size`` rows of another number in both runs; else the one that failed."""
    for (line, shapes, made), (_, _, same) in zip(failing.made, working.made, strict=False):
        rows = [shapes[0][:1] if shapes else None for shapes in (shapes, made, same)]
        if rows[0] != (size,) and rows[1] == rows[2] == (size,):
            return _short(line)
    return _short(failing.made[-1][0]) if failing.made else ""


def _short(line: str) -> str:
    return Path(line).name


def fixed_batch(
    copies: Copies, specs: Sequence[TensorSpec], tried: Examples, error: UserError, typed: bool
) -> FixedBatch:
    """Return the one batch that a module takes, if the caller's own examples are so many.

    Raises:
        UserError: offering the shapes that the module takes; ``error`` itself where none were found.
    """
    if _has_none(specs):
        _require_batch(copies, specs, tried, error, typed)
    batch = _find(copies, specs, tried, error) if any(spec.shape[:1] == (BATCH,) for spec in specs) else None
    if batch is None:
        raise error
    if typed or len(tried) != batch.size:
        raise batch.error(specs, tried, typed) from error
    return batch


def with_fixed_batch(
    module: nn.Module, specs: Sequence[TensorSpec], sizes: Mapping[str, int]
) -> tuple[TensorSpec, ...]:
    """Mark inputs as batches where their first sizes are one number and the module treats each row as an example.

    Only where no input is a batch already. A row is an example if every output has as many rows, and changing one row
    of the inputs changes that row of the outputs only.
    """
    count = one_size(specs)
    if not _has_none(specs):
        return tuple(specs)
    batched = tuple(replace(spec, batched=spec.shape[:1] == (count,)) for spec in specs)
    contract = Contract(tuple(specs), ())
    values = contract.values(contract.random(sizes=sizes))
    return batched if _rows_are_examples(Copies(module), batched, values) else tuple(specs)


def one_size(specs: Sequence[TensorSpec]) -> int | None:
    """Return the first size of the first input where it is a number above 1."""
    first = specs[0].shape[0] if specs and specs[0].shape else None
    return first if isinstance(first, int) and first > 1 else None


def _rows_are_examples(copies: Copies, specs: Sequence[TensorSpec], values: tuple[Tensor, ...]) -> bool:
    others, _ = following((values, {}))
    mixed = tuple(
        torch.cat([value[:-1], other[-1:]]) if spec.batched else value
        for spec, value, other in zip(specs, values, others, strict=True)
    )
    try:
        before, after = (_answer(copies, batch) for batch in (values, mixed))
    except UserError:
        return False
    count = next(len(value) for spec, value in zip(specs, values, strict=True) if spec.batched)
    by_row = all(rows.ndim and len(rows) == count for rows in (*before, *after))
    return by_row and alike([rows[:-1] for rows in before], [rows[:-1] for rows in after], GROSS)


def _answer(copies: Copies, values: tuple[Tensor, ...]) -> list[Tensor]:
    with copies.fresh() as module:
        return answer(module, (values, {}))


def _has_none(specs: Sequence[TensorSpec]) -> bool:
    return one_size(specs) is not None and not any(spec.batched for spec in specs)


def _with_batch(specs: Sequence[TensorSpec], tried: Examples) -> tuple[tuple[TensorSpec, ...], Examples]:
    """Return inputs without a batch as they would be with one, and examples of them."""
    shaped = tuple(replace(spec, shape=(BATCH, *spec.shape), batched=True) for spec in specs)
    rows = {name: torch.stack([value, value]) for name, value in tried.inputs.items()}
    return shaped, replace(tried, inputs=rows, batched=tuple(rows), labels=None)


def _require_batch(copies: Copies, specs: Sequence[TensorSpec], tried: Examples, error: UserError, typed: bool) -> None:
    """Raise an error if a module that was given inputs without a batch takes them with one.

    Raises:
        InputsError: offering them.
    """
    if offered := without_batch(copies, specs, tried):
        lacking = f"{', '.join(spec.name for spec in specs)} lacks the batch: {error.message}"
        raise InputsError(
            lacking, f"write {' '.join(f'--input {shape}' for shape in offered)}" if typed else offered[0]
        )
    shaped, several = _with_batch(specs, tried)
    if batch := _find(copies, shaped, several, error):
        raise batch.error(shaped, several, typed) from error


def without_batch(copies: Copies, specs: Sequence[TensorSpec], tried: Examples) -> list[str]:
    """Return inputs without a batch as they are with one, such as ``x=N,3,64,64``, if the module takes them so."""
    if not _has_none(specs):
        return []
    shaped, several = _with_batch(specs, tried)
    if not all(_runs(copies, shaped, several, size) for size in (2, 3)):
        return []
    return [f"{spec.name}={','.join(map(str, spec.shape))}" for spec in shaped]
