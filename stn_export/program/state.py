"""Find state that a module keeps between calls, by running copies: the module and its inputs stay as they are.

``trial`` calls a copy with two batches, compares the copy's content with the module's, and its outputs with those of a
fresh copy. ``mutations`` is the short form.
"""

import copy
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from stn_export.cli.tables import by
from stn_export.errors import UserError, one_line, others_code
from stn_export.program.specs import require_values

INTERNAL = frozenset(vars(nn.Module())) - {"training"}  # PyTorch's own attributes of a module
SHADE = 0.75  # the second batch is the first times this
EXACT = 1e-5  # relative: the same code gives the same up to rounding
LINES = 200_000  # of third-party code that are traced at most
TORCH, OURS = f"{Path(torch.__file__).parent}/", f"{Path(__file__).parent.parent}/"
ATOMIC = (FunctionType, BuiltinFunctionType, MethodType, ModuleType, type)
SUMMED = 2**16  # largest tensor that is summed at each line
DEEPEST = 8  # nesting of containers and objects that is compared

Batch = tuple[tuple[Any, ...], dict[str, Any]]  # arguments and keywords of a call
Item = tuple[str, str]  # a kind, and a dotted name


@dataclass(frozen=True)
class Mutation:
    """Something that a call changes in a module: its ``kind`` (buffer, parameter, attribute) and dotted name.

    ``where`` is the function and line that change it; ``matters`` whether later outputs were seen to depend on it.
    """

    kind: str
    name: str
    where: str
    matters: bool

    def __str__(self) -> str:
        return f"{self.kind} {self.name}, changed in {self.where}"


@dataclass(frozen=True)
class Trial:
    """Result of calling copies of a module with two batches.

    Attributes:
        batches: arguments and keywords, the second made from the first unless it was given.
        answers: the tensors that a copy returned for each.
        mutations: what each call changes in the module.
        steady: whether the first batch gave the same outputs again.
        note: why the module itself had to be run, and what was done about it; empty where copies were run.
    """

    batches: tuple[Batch, Batch]
    answers: tuple[list[Tensor], list[Tensor]]
    mutations: tuple[Mutation, ...]
    steady: bool
    note: str = ""


class Copies:
    """Copies of a module to run in its place.

    A module that cannot be copied is run itself, and its parameters, buffers and attributes are restored; ``note`` says
    so.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self.note = module, ""

    @contextmanager
    def fresh(self) -> Iterator[nn.Module]:
        """Yield a new copy of the module; the module itself, restored afterwards, where it cannot be copied."""
        made = None if self.note else self._copied()
        if made is not None:
            yield made
            return
        kept = _Kept(self.module)
        try:
            yield self.module
        finally:
            kept.put_back()

    def _copied(self) -> nn.Module | None:
        try:
            return deep_copy(self.module)
        except Exception as error:  # third-party code may raise anything
            self.note = (
                f"{type(self.module).__name__} cannot be copied ({one_line(error)}): it was run itself, and its "
                "parameters, buffers and attributes were put back"
            )
            return None


def deep_copy(module: nn.Module) -> nn.Module:
    """Copy a module, computed tensors in attributes included, such as those of old weight norms."""
    held = (value for _, part in module.named_modules() for value in vars(part).values())
    leaves = (leaf for value in held for leaf in _pytree.tree_leaves(value) if isinstance(leaf, Tensor))
    return copy.deepcopy(module, {id(leaf): leaf.detach().clone() for leaf in leaves if not leaf.is_leaf})


def copied(values: Any) -> Any:
    """Copy the tensors and arrays in arguments, as code that runs on them may write into them."""
    return _pytree.tree_map(
        lambda tensor: (
            tensor.detach().clone()
            if isinstance(tensor, Tensor)
            else tensor.copy()
            if isinstance(tensor, np.ndarray)
            else tensor
        ),
        values,
    )


def mutations(module: nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any] | None = None) -> list[Mutation]:
    """List what a call changes in a module in evaluation mode; neither it nor the arguments change.

    Raises:
        UserError: where the module does not accept the arguments.
    """
    return list(trial(Copies(module), (tuple(arguments), dict(keywords or {}))).mutations)


def told(module: nn.Module, mutations: Sequence[Mutation]) -> list[str]:
    """Return one sentence for each change that no output was seen to depend on.

    Raises:
        UserError: where outputs depend on earlier calls; it names the state, and the line that changes it.
    """
    name = type(module).__name__
    if any(mutation.matters for mutation in mutations):
        raise UserError(
            f"what {name} gives depends on calls before: it keeps {'; '.join(map(str, mutations))}",
            "take what it keeps as an input and give it as an output; a file keeps nothing between calls",
        )
    return [
        f"{name} keeps {name_of_state}; what it gives did not depend on it, and files keep it as it is"
        for name_of_state in mutations
    ]


def trial(copies: Copies, first: Batch, second: Batch | None = None) -> Trial:
    """Call a copy of a module with two batches and the first one again, and find what that changes in the copy.

    Args:
        copies: of a module in evaluation mode.
        first: arguments and keywords.
        second: likewise; by default the first one's examples in reverse order, scaled by ``SHADE``.

    Raises:
        UserError: where the module does not accept the arguments, or something is on ``meta``.
    """
    require_values(copies.module, [leaf for leaf in _pytree.tree_leaves(first) if isinstance(leaf, Tensor)])
    second = second or following(first)
    with copies.fresh() as module:
        before = None if module is not copies.module else _Kept(module)
        answers = [answer(module, batch, seed) for seed, batch in enumerate((first, second, first))]
        changed = _differences(before.items if before else dict(_items(copies.module)), dict(_items(module)))
    steady = alike(answers[0], answers[2])
    changed = _not_by_copying(copies, changed)
    matters = bool(changed) and not (steady and _same_on_its_own(copies, second, answers[1]))
    lines = _lines(copies, changed, (first, second)) if changed else {}
    mutations = tuple(Mutation(*item, lines.get(item, "its code"), matters) for item in changed)
    return Trial((first, second), (answers[0], answers[1]), mutations, steady, copies.note)


def following(batch: Batch) -> Batch:
    """Make another batch that a network accepts wherever it accepts this one."""
    return _pytree.tree_map(lambda leaf: _other(leaf) if isinstance(leaf, Tensor) else leaf, batch)


def _other(value: Tensor) -> Tensor:
    turned = value.flip(0) if value.ndim and len(value) > 1 else value
    if not value.is_floating_point():
        return turned
    if value.numel() and bool(value.min() == value.max()):
        return torch.rand(value.shape, generator=torch.Generator().manual_seed(0)).to(value)
    return turned * SHADE


def answer(module: nn.Module, batch: Batch, seed: int = 0) -> list[Tensor]:
    """Return the tensors that a module returns for copies of the arguments; the caller's random state is kept.

    Raises:
        UserError: where the module raises.
    """
    arguments, keywords = copied(batch)
    tensors = [leaf for leaf in _pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
    sizes = ", ".join(by(leaf.shape) for leaf in tensors)
    devices = {leaf.device for leaf in (*tensors, *module.parameters()) if leaf.device.type == "cuda"}
    with (
        others_code(
            f"{type(module).__name__} does not take {sizes}:",
            "give inputs of the sizes, types and values that forward takes",
        ),
        torch.random.fork_rng(sorted(device.index or 0 for device in devices)),
        torch.no_grad(),
    ):
        torch.manual_seed(seed)
        result = module(*arguments, **keywords)
        return [leaf.detach().clone() for leaf in _pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def alike(first: Sequence[Tensor], second: Sequence[Tensor], relative: float = EXACT) -> bool:
    """Return whether two outputs are the same up to rounding, value by value.

    Non-finite values must be the same in both. A value may differ by a share of itself plus the mean magnitude along
    the axis where that is least (its column, channel or row), so that a large value excuses no other.
    """
    return len(first) == len(second) and all(
        _close(one, other, relative) for one, other in zip(first, second, strict=True)
    )


def _close(one: Tensor, other: Tensor, relative: float) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if _equal(one, other):
        return True
    if not (one.is_floating_point() or one.is_complex()):
        return False
    finite = one.isfinite()
    if not (finite == other.isfinite()).all() or not _equal(one[~finite], other[~finite]):
        return False
    epsilon = max(relative, 8 * torch.finfo(one.dtype).eps)
    wide = torch.complex128 if one.is_complex() else torch.float64
    one, other = (value.to(wide).where(finite, torch.zeros((), dtype=wide)) for value in (one, other))
    size = one.abs()
    return bool(((one - other).abs() <= epsilon * (size + _usual(size))).all())


def _usual(size: Tensor) -> Tensor:
    """Return the mean magnitude along each axis but the first, where that is least; below two axes, the median."""
    if size.ndim < 2:
        return size.median() if size.ndim else size
    axes = range(1, size.ndim)
    means = [size.mean([other for other in range(size.ndim) if other != axis], keepdim=True) for axis in axes]
    usual = means[0]
    for mean in means[1:]:
        usual = torch.minimum(usual, mean)
    return usual


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal, NaN counting as equal to NaN."""
    if torch.equal(one, other):
        return True
    if one.shape != other.shape or not (one.is_floating_point() or one.is_complex()):
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _items(module: nn.Module) -> Iterator[tuple[Item, Any]]:
    """Yield everything that a module and its parts hold, by kind and dotted name."""
    for prefix, part in module.named_modules():
        dotted = f"{prefix}." if prefix else ""
        for kind, held in (("parameter", part._parameters), ("buffer", part._buffers)):
            yield from (((kind, dotted + name), value) for name, value in held.items())
        yield from ((("attribute", dotted + name), value) for name, value in vars(part).items() if name not in INTERNAL)


def _differences(before: Mapping[Item, Any], after: Mapping[Item, Any]) -> list[Item]:
    missing = object()
    return [
        item
        for item in dict.fromkeys((*before, *after))
        if not _same(before.get(item, missing), after.get(item, missing))
    ]


def _same(one: Any, other: Any, depth: int = 0, seen: set[tuple[int, int]] | None = None) -> bool:
    """Return whether two values, one a copy of the other, are equal; what cannot be compared counts as equal."""
    seen = set() if seen is None else seen
    if one is other or (id(one), id(other)) in seen or depth > DEEPEST:
        return True
    seen.add((id(one), id(other)))
    if isinstance(one, ATOMIC) and isinstance(other, ATOMIC):
        return type(one) is type(other)
    if type(one) is not type(other) and not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return False
    return next((same(one, other, depth, seen) for kind, same in COMPARED if isinstance(one, kind)), True)


def _same_tensors(one: Tensor, other: Tensor, *_: object) -> bool:
    if nn.parameter.is_lazy(one) or one.is_sparse or one.is_quantized:
        return one.dtype == other.dtype
    return one.shape == other.shape and one.dtype == other.dtype and _equal(one.detach(), other.detach())


def _same_mappings(one: Mapping, other: Mapping, depth: int, seen: set[tuple[int, int]]) -> bool:
    if len(one) != len(other):
        return False
    keys = zip(one.items(), other.items(), strict=True)
    return all(
        _same(a, b, depth + 1, seen) and _same(one_value, other_value, depth + 1, seen)
        for (a, one_value), (b, other_value) in keys
    )


def _same_sequences(one: Sequence, other: Sequence, depth: int, seen: set[tuple[int, int]]) -> bool:
    return len(one) == len(other) and all(_same(a, b, depth + 1, seen) for a, b in zip(one, other, strict=True))


def _same_sets(one: set, other: set, *_: object) -> bool:
    return len(one) == len(other)


def _same_objects(one: Any, other: Any, depth: int, seen: set[tuple[int, int]]) -> bool:
    return not hasattr(one, "__dict__") or _same_mappings(vars(one), vars(other), depth, seen)


COMPARED: tuple[tuple[Any, Callable[..., bool]], ...] = (
    (Tensor, _same_tensors),
    (np.ndarray, lambda one, other, *_: one.shape == other.shape and one.tobytes() == other.tobytes()),
    ((bool, int, float, complex, str, bytes, np.generic), lambda one, other, *_: one == other or one != one),
    (torch.Generator, lambda one, other, *_: torch.equal(one.get_state(), other.get_state())),
    (np.random.Generator, lambda one, other, *_: str(one.bit_generator.state) == str(other.bit_generator.state)),
    (random.Random, lambda one, other, *_: one.getstate() == other.getstate()),
    (Mapping, _same_mappings),
    ((list, tuple, deque), _same_sequences),
    ((set, frozenset), _same_sets),
    (object, _same_objects),
)


class _Kept:
    """A snapshot of a module to restore: tensors by value, attributes by copies where they can be copied."""

    def __init__(self, module: nn.Module) -> None:
        self.parts = [(part, {name: _safe_copy(value) for name, value in vars(part).items() if name not in INTERNAL},
                       dict(part._parameters), dict(part._buffers)) for part in module.modules()]  # fmt: skip
        tensors = (*module.parameters(), *module.buffers())
        self.values = [(tensor, tensor.detach().clone()) for tensor in tensors if not nn.parameter.is_lazy(tensor)]
        self.own = [
            {name: value for name, value in vars(part).items() if name not in INTERNAL} for part, *_ in self.parts
        ]
        copies = {id(tensor): value for tensor, value in self.values}
        self.items = {item: copies.get(id(value), value) for item, value in _items(module)}
        for (prefix, _), (_, attributes, *_) in zip(module.named_modules(), self.parts, strict=True):
            dotted = f"{prefix}." if prefix else ""
            self.items |= {("attribute", dotted + name): value for name, value in attributes.items()}

    @torch.no_grad()
    def put_back(self) -> None:
        """Restore the module to the snapshot."""
        for (part, attributes, parameters, buffers), own in zip(self.parts, self.own, strict=True):
            part._parameters.clear()
            part._parameters.update(parameters)
            part._buffers.clear()
            part._buffers.update(buffers)
            for name in [name for name in vars(part) if name not in INTERNAL and name not in own]:
                delattr(part, name)
            for name, value in own.items():
                vars(part)[name] = value if _same(value, attributes[name]) else attributes[name]
        for tensor, value in self.values:
            if not _equal(tensor.detach(), value):
                tensor.copy_(value)


def _safe_copy(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # third-party code may raise anything: keep the object itself
        return value


def _not_by_copying(copies: Copies, changed: list[Item]) -> list[Item]:
    """Filter out what differs in every fresh copy, and so was not changed by a call."""
    if not changed or copies.note:
        return changed
    with copies.fresh() as module:
        others = _differences(dict(_items(copies.module)), dict(_items(module)))
    return [item for item in changed if item not in others]


def _same_on_its_own(copies: Copies, batch: Batch, after: list[Tensor]) -> bool:
    """Return whether a fresh copy gives the outputs for a batch that one gave after others; False on failure."""
    with copies.fresh() as module:
        try:
            return alike(answer(module, batch, seed=1), after)
        except UserError:
            return False


def _lines(copies: Copies, changed: Sequence[Item], batches: Sequence[Batch]) -> dict[Item, str]:
    """Find the line that first changes each item, by tracing a fresh copy line by line."""
    with copies.fresh() as module:
        watch = _Watch(module, changed)
        before = sys.gettrace()
        sys.settrace(watch.call)
        try:
            for batch in batches:
                answer(module, batch)
        except UserError:  # it ran before: use what was seen so far
            pass
        finally:
            sys.settrace(before)
        watch.look()
    return watch.found


class _Watch:
    """A tracer that records the line after which an item of a module has changed."""

    def __init__(self, module: nn.Module, items: Sequence[Item]) -> None:
        parts = dict(module.named_modules())
        self.places = {item: (parts[item[1].rpartition(".")[0]], item) for item in items
                       if item[1].rpartition(".")[0] in parts}  # fmt: skip
        self.prints = {item: self._print(item) for item in self.places}
        self.found: dict[Item, str] = {}
        self.last, self.lines = "", 0

    def call(self, frame: FrameType, event: str, argument: object) -> Any:
        """Trace the calls of third-party functions only, up to ``LINES`` lines."""
        file = frame.f_code.co_filename
        return None if file.startswith((TORCH, OURS, "<")) or self.lines > LINES else self.step

    def step(self, frame: FrameType, event: str, argument: object) -> Any:
        """Before each line, record what the one before it changed."""
        self.look()
        self.last = f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
        self.lines += 1
        return self.step

    def look(self) -> None:
        """Record which items have changed since the last line."""
        for item in [item for item in self.places if item not in self.found and self.last]:
            if self._print(item) != self.prints[item]:
                self.found[item] = self.last

    def _print(self, item: Item) -> object:
        part, (kind, dotted) = self.places[item]
        held = {"parameter": part._parameters, "buffer": part._buffers}.get(kind, vars(part))
        return _fingerprint(held.get(dotted.rpartition(".")[2]))


def _fingerprint(value: Any, depth: int = 0) -> object:
    """Return a small value that changes when ``value`` does."""
    if isinstance(value, Tensor):
        total = float(value.detach().double().abs().sum()) if value.numel() <= SUMMED else 0.0  # .data has no version
        return id(value), value._version, repr(total)
    if isinstance(value, np.ndarray):
        return id(value), hash(value.tobytes())
    if isinstance(value, Mapping):
        return len(value), *(_fingerprint(item, depth + 1) for item in value.values() if depth < DEEPEST)
    if isinstance(value, list | tuple | deque | set | frozenset):
        return len(value), *(_fingerprint(item, depth + 1) for item in value if depth < DEEPEST)
    if isinstance(value, bool | int | float | complex | str | bytes | None):
        return value
    inner = vars(value) if hasattr(value, "__dict__") and not isinstance(value, ATOMIC) and depth < DEEPEST else {}
    return id(value), _fingerprint(inner, depth + 1)
