"""Run a model made by ``export_onnx`` on the example, another batch and other sizes; compare it with the module."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree

from stn_export.errors import UserError, one_line
from stn_export.onnx_graph.placement import cpu_session
from stn_export.program.capture import SMALLEST, location
from stn_export.program.program import Program
from stn_export.program.specs import BATCH, BFLOAT16, Contract, by, numbers_of
from stn_export.program.state import Batch, Copies, answer, told, trial
from stn_export.results.tolerances import unlike_where_not_finite

GROSS = 1e-4  # share of an output's largest value, far above rounding
ROUNDING = 1.2e-7  # relative rounding of an input; the outputs' response to it is no fault of a file
MAGNIFIED = 10.0  # multiple of that response which is allowed
OWN = 4.0  # multiple of eager's own error against float64 that a file in reduced precision may have
REDUCED = (torch.float16, torch.bfloat16)
NO_KERNEL = re.compile(r"Could not find an implementation for (\w+)\(\d+\)")
READABLE = "{}/float32"  # the name of an output that NumPy cannot hold, once it is converted
SHADE = 0.75  # weight of an example when blended with the next one; factor of a darkened image
PICTURE = 2  # tensors with more dimensions are images
OTHER = 3  # examples of the other batch; 1 if the example has 3
LACKING = ("NOT_IMPLEMENTED", "NotImplemented", "INVALID_GRAPH", "is not a registered function/op", "unsupported")
Shapes = tuple[tuple[int, ...], ...]  # one per input
TRIES: tuple[tuple[Callable[[int, int], int], ...], ...] = (  # of a size and its place; the first that the module takes
    (lambda size, place: 3 * size // 4, lambda size, place: size // 2),
    (lambda size, place: (5 * size // 4 + 2 * place) | 1,),  # odd, and of other proportions
    (lambda size, place: 2 * size,),
)
POOLING = re.compile(r"aten\._?(adaptive_(?:avg|max)_pool[123]d)\b")


@dataclass(frozen=True)
class Found:
    """The outcome of running a model: the reason if it is wrong, whether only at the ``other`` batch, and notes.

    ``size`` is the shape of the inputs if it is right at the example's and wrong at this one.
    """

    reason: str = ""
    other: bool = False
    size: str = ""
    notes: tuple[str, ...] = ()


def own_structure(module: nn.Module) -> nn.Module:
    """Return a copy of a module that shares its parameters and buffers; the module itself if it cannot be copied."""
    try:
        return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})
    except Exception:  # the user's module may not be copyable
        return module


def run_against(
    module: nn.Module, first: Batch, tensors: Sequence[Tensor], model: onnx.ModelProto, program: Program
) -> Found:
    """Run a model on the example, another batch and other sizes; compare each with the outputs of a copy of the module.

    Args:
        module: the module that was exported.
        first: the example, as arguments and keywords.
        tensors: those in it, in the contract's order.
        model: the exported model.
        program: the captured module, with the model's inputs and outputs.

    Returns:
        An empty reason if all agree, or if they cannot be compared, which a note says.

    Raises:
        UserError: if the module's outputs depend on earlier calls, or are not finite.
    """
    copies = Copies(module)
    difference = None
    for second in _others(first, tensors, program.contract):
        try:
            difference = trial(copies, first, second.batch)
            break
        except UserError:  # it does not accept this batch size
            continue
    if difference is None:
        return Found(notes=("it could not be run on copies of the module: the file was not compared",))
    notes = [*told(module, difference.mutations), *([copies.note] if copies.note else [])]
    if not difference.steady:
        return Found(notes=(*notes, "it returns different outputs when it is called again: the file was not compared"))
    try:
        session = cpu_session(_readable(model, program.contract), log_severity_level=4)
    except Exception as error:  # ONNX Runtime has no kernel, or rejects the file
        if any(word in str(error) for word in LACKING):
            reason = _lacking(error, program)
            return Found(notes=(*notes, f"ONNX Runtime cannot run the file, it was not compared: {reason}"))
        return Found(f"ONNX Runtime does not load it: {one_line(error)}", notes=tuple(notes))
    sides = Sides(session, copies, program)
    example = Tried(first, tuple(tensors))
    for tried, answers, other in ((example, difference.answers[0], False), (second, difference.answers[1], True)):
        if reason := _difference(sides, tried, answers):
            return Found(reason, other, notes=tuple(notes))
    at_others = _at_other_sizes(sides, example)
    return replace(at_others, notes=(*notes, *at_others.notes))


@dataclass(frozen=True)
class Sides:
    """What is compared: a session of the model, and copies of the module; and the captured program."""

    session: onnxruntime.InferenceSession
    copies: Copies
    program: Program


@dataclass(frozen=True)
class Tried:
    """A batch as arguments of the module, and its tensors as inputs of the model."""

    batch: Batch
    tensors: tuple[Tensor, ...]


def _at_other_sizes(sides: Sides, example: "Tried") -> Found:
    """Run the model with every dynamic size smaller, odd and larger; sizes that the module does not take are left out.

    A file holds whatever the exporter computed from the example's sizes, and nothing in it tells.
    """
    kinds = other_shapes(sides.program, example.tensors)
    compared = 0
    for candidates in kinds:
        for shapes in candidates:
            tried = _with_tensors(example.batch, example.tensors, tuple(map(resized, example.tensors, shapes)))
            try:
                with sides.copies.fresh() as module:
                    answers = answer(module, tried.batch)
                reason = _difference(sides, tried, answers)
            except UserError:  # it does not accept these sizes, or gives nothing finite there
                continue
            if reason:
                return Found(reason, size=called(sides.program, shapes))
            compared += 1
            break
    if kinds and not compared:
        return Found(notes=("it took no other size that was tried: the file was compared at the example's only",))
    return Found()


def _readable(model: onnx.ModelProto, contract: Contract) -> onnx.ModelProto:
    """Return a model whose bfloat16 outputs, which NumPy cannot hold, are also there as float32; itself without any."""
    names = [spec.name for spec in contract.outputs if spec.dtype == BFLOAT16]
    if not names:
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for name in names:
        also = READABLE.format(name)
        changed.graph.node.append(onnx.helper.make_node("Cast", [name], [also], to=onnx.TensorProto.FLOAT))
        changed.graph.output.append(onnx.helper.make_tensor_value_info(also, onnx.TensorProto.FLOAT, None))
    return changed


def _run(session: onnxruntime.InferenceSession, contract: Contract, tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Run a model on tensors and return its outputs, bfloat16 as float32."""
    names = [READABLE.format(spec.name) if spec.dtype == BFLOAT16 else spec.name for spec in contract.outputs]
    feeds = {spec.name: _fed(value) for spec, value in zip(contract.inputs, tensors, strict=True)}
    return [value.numpy() for value in session.run_with_ort_values(names, feeds)]


def _fed(tensor: Tensor) -> onnxruntime.OrtValue:
    value = tensor.detach().cpu().contiguous()
    if value.dtype == torch.bfloat16:
        bits = value.view(torch.int16).numpy().view(np.uint16)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx.TensorProto.BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(value.numpy())


def _lacking(error: Exception, program: Program) -> str:
    """Return what ONNX Runtime lacks to run a file: the operator, and the reduced precision if there is one."""
    lacking = NO_KERNEL.search(str(error))
    if lacking is None:
        return one_line(error)
    types = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in _reduced(program)))
    return f"it has no kernel of {lacking[1]} on the CPU for the types in it" + (
        f", {types} among them" if types else ""
    )


def _reduced(program: Program) -> set[torch.dtype]:
    """Return the precisions below float32 that a captured program computes in."""
    values = [node.meta.get("val") for node in program.exported.graph.nodes]
    return {value.dtype for value in values if isinstance(value, Tensor) and value.dtype in REDUCED}


def _others(first: Batch, tensors: Sequence[Tensor], contract: Contract) -> list[Tried]:
    """Return batches other than the example, another batch size first; inputs without a batch stay the same."""
    made = []
    for count in (OTHER, 1):
        values = tuple(_rows(tensor, spec.shape, count) for tensor, spec in zip(tensors, contract.inputs, strict=True))
        if any(a.shape != b.shape for a, b in zip(values, tensors, strict=True)):
            made.append(_with_tensors(first, tensors, values))
    most = max((len(tensor) for tensor in tensors if tensor.ndim), default=0)
    alike = [BATCH if tensor.ndim and len(tensor) == most else "" for tensor in tensors]
    return [*made, _with_tensors(first, tensors, tuple(map(_of_same_size, tensors, alike)))]


def _of_same_size(value: Tensor, batch: str) -> Tensor:
    """Return another tensor of the same size; a darker image if there is one example only."""
    if batch and len(value) > 1:
        return _rows(value, (BATCH,), len(value))
    return value.detach() * SHADE if value.is_floating_point() and value.ndim > PICTURE else value.detach()


def _rows(value: Tensor, shape: Sequence[int | str], count: int) -> Tensor:
    """Return a tensor of ``count`` examples, each between two given ones; unchanged if it has no dynamic batch."""
    value = value.detach()
    for axis, size in enumerate(shape):
        if size == BATCH:
            rows = torch.arange(count, device=value.device) + 1
            turned, next_to_it = (value.index_select(axis, (rows + step) % value.shape[axis]) for step in (0, 1))
            value = torch.lerp(turned, next_to_it, 1 - SHADE) if value.is_floating_point() else turned
    return value.contiguous()


def _with_tensors(first: Batch, tensors: Sequence[Tensor], values: tuple[Tensor, ...]) -> Tried:
    by_id = {id(tensor): value for tensor, value in zip(tensors, values, strict=True)}
    return Tried(_pytree.tree_map(lambda leaf: by_id.get(id(leaf), leaf), first), values)


def _difference(sides: Sides, tried: Tried, expected: Sequence[Tensor]) -> str:
    """Describe how a model's outputs differ from the module's; empty if they do not.

    Raises:
        UserError: if the module's own output is not finite and the model's is another.
    """
    contract = sides.program.contract
    try:
        actual = _run(sides.session, contract, tried.tensors)
    except Exception as error:  # ONNX Runtime may raise anything for a wrong graph
        return f"ONNX Runtime fails on it: {one_line(error)}"
    if len(actual) != len(expected):
        return f"it gives {len(actual)} outputs, the module {len(expected)}"
    moved: list[list[Tensor]] = []
    for index, (spec, ours, theirs) in enumerate(zip(contract.outputs, actual, expected, strict=True)):
        theirs_array = numbers_of(theirs)
        if tuple(ours.shape) != theirs_array.shape:
            return f"{spec.name} is {by(ours.shape)}, not {by(theirs_array.shape)}"
        worst, scale = _worst(ours, theirs_array)
        if worst <= GROSS * scale:
            continue
        if np.isinf(worst):
            _require_finite(sides.copies.module, spec.name, theirs_array)
            return f"{spec.name}: {unlike_where_not_finite(ours, theirs_array)}"
        moved = moved or [_moved(sides.copies, tried.batch, seed) for seed in range(3)]
        allowed = MAGNIFIED * max((_worst(numbers_of(arrays[index]), theirs_array)[0] for arrays in moved), default=0.0)
        if not worst <= allowed and not _rounded(sides.program, tried, index, ours, theirs_array):
            return f"{spec.name} is {worst:.2g} off, where it is {scale:.2g} at most"
    return ""


def _require_finite(module: nn.Module, name: str, values: np.ndarray) -> None:
    """Require that a module gives a finite value somewhere: a model is not wrong where there is nothing right.

    Raises:
        UserError: if there is none; it names a parameter or buffer that is not finite.
    """
    if np.isfinite(values).any():
        return
    held = (*module.named_parameters(), *module.named_buffers())
    bad = next((own for own, value in held if not value.detach().isfinite().all()), "")
    what = "NaN" if np.isnan(values).all() else "not finite"
    raise UserError(
        f"{type(module).__name__} itself gives {name} that is {what} everywhere: no file of it can be compared",
        f"{bad} is not finite: load other weights" if bad else "look for a division by 0 or an overflow in forward",
    )


def _rounded(program: Program, tried: Tried, index: int, ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Return whether the roundings of a reduced precision explain a difference: eager's own are as large as that.

    Against float64 the model may be ``OWN`` times as far off as the module, at most and in the root mean square. The
    float64 reference is the captured graph, so it counts only where that graph in its own precision is the module.
    """
    if not _reduced(program):
        return False
    name = program.contract.outputs[index].name
    try:
        with torch.no_grad():
            captured = numbers_of(program.run(tried.tensors)[name])
            exact = numbers_of(program.exact.points(tried.tensors, kinds=())[name])
    except Exception:  # the graph is of one size, or has operators without float64
        return False
    room = GROSS * float(np.abs(theirs).max(initial=0.0))
    if captured.shape != theirs.shape or not _worst(captured, theirs)[0] <= room:
        return False
    off, own = (array.astype(np.float64) - exact for array in (ours, theirs))
    sizes = ((np.abs(off).max(), np.abs(own).max()), (np.sqrt((off**2).mean()), np.sqrt((own**2).mean())))
    return all(size <= OWN * eager + room for size, eager in sizes)


def _worst(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Return the largest difference, infinite if only one of two elements is finite, and the largest finite value."""
    if not theirs.size:
        return 0.0, 0.0
    one, other = (array.astype(np.complex128 if np.iscomplexobj(array) else np.float64) for array in (ours, theirs))
    finite = np.isfinite(other)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.where(finite & np.isfinite(one), np.abs(one - other), np.inf))
    return float(difference.max()), float(np.abs(other[finite]).max(initial=0.0))


def _moved(copies: Copies, batch: Batch, seed: int) -> list[Tensor]:
    """Return the outputs of a copy once every float input is off by a rounding."""
    random = torch.Generator().manual_seed(seed)

    def rounded(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        signs = torch.rand(value.shape, generator=random).sub_(0.5).sign_().to(value.device)
        step = max(ROUNDING, torch.finfo(value.dtype).eps) if value.dtype != torch.float64 else ROUNDING
        return (value.detach() * (1 + step * signs)).to(value.dtype)

    with copies.fresh() as module:
        return answer(module, _pytree.tree_map(rounded, batch))


# Other sizes that a file with dynamic sizes must be right at, and operators that keep the example's.


@dataclass(frozen=True)
class OpenSize:
    """A dynamic size other than the batch: its value in the example, and the least and largest that it may have."""

    value: int
    least: int
    most: int | None

    def near(self, size: int) -> int:
        """Return the allowed size that is nearest."""
        return max(self.least, size if self.most is None else min(size, self.most))


def other_shapes(program: Program, tensors: Sequence[Tensor]) -> list[list[Shapes]]:
    """Return shapes of the inputs with every dynamic size but the batch smaller, odd, and larger.

    Each of the three is a list, of which the first that the module takes is meant. Empty where no size is dynamic.
    """
    opened = _open_sizes(program, tensors)
    every, seen = [], {tuple(tuple(tensor.shape) for tensor in tensors)}
    for tries in TRIES if opened else ():
        chosen = []
        for resize in tries:
            sizes = {
                symbol: size.near(resize(size.value, place)) for place, (symbol, size) in enumerate(opened.items())
            }
            shapes = tuple(
                tuple(_at(size, sizes, own) for size, own in zip(symbolic, tensor.shape, strict=True))
                for symbolic, tensor in zip(_symbolic(program), tensors, strict=True)
            )
            if shapes not in seen:
                seen.add(shapes)
                chosen.append(shapes)
        every.append(chosen)
    return every


def resized(value: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor of another shape, whose elements are the nearest ones of a given tensor."""
    value = value.detach()
    for axis, side in enumerate(shape):
        if side != value.shape[axis]:
            nearest = torch.arange(side, device=value.device) * value.shape[axis] // side
            value = value.index_select(axis, nearest)
    return value.contiguous()


def called(program: Program, shapes: Shapes) -> str:
    """Return the shapes of the inputs that have dynamic sizes, for people: ``images 2×1×12×14``."""
    pairs = zip(program.contract.inputs, shapes, strict=True)
    return ", ".join(f"{spec.name} {by(shape)}" for spec, shape in pairs if any(isinstance(n, str) for n in spec.shape))


def frozen_by(program: Program) -> str:
    """Name the adaptive pooling whose windows an exporter computes from the example's size; empty where there is none.

    Pooling to one value is a mean, which is right at any size.
    """
    for node in program.exported.graph.nodes:
        pooling = POOLING.match(str(node.target))
        if pooling and any(side != 1 for side in _sides(node)):
            area = ", which interpolate(mode='area') is too," if "avg" in pooling[1] else ""
            return f"{pooling[1]}{area} at {location(node)} is written for the example's size"
    return ""


def _sides(node: Node) -> Sequence[Any]:
    sides = node.args[1]
    return sides if isinstance(sides, list | tuple) else (sides,)


def _symbolic(program: Program) -> list[Sequence[int | torch.SymInt]]:
    """Return the shapes of the inputs in the captured graph, where dynamic sizes are expressions of symbols."""
    values = {node.name: node.meta.get("val") for node in program.exported.graph.nodes if node.op == "placeholder"}
    return [values[name].shape for name in program.exported.graph_signature.user_inputs]


def _open_sizes(program: Program, tensors: Sequence[Tensor]) -> dict[Any, OpenSize]:
    """Return the dynamic sizes other than the batch, by their symbols."""
    opened: dict[Any, OpenSize] = {}
    batches: set[Any] = set()
    for size, name, own in _dimensions(program, tensors):
        symbols = size.node.expr.free_symbols
        if name == BATCH:
            batches |= symbols
        elif len(symbols) == 1:
            (symbol,) = symbols
            first, second = (size.node.expr.subs({symbol: value}) for value in (0, 1))
            limits = program.exported.range_constraints.get(symbol)
            opened[symbol] = OpenSize(
                int((own - first) // (second - first)),
                max(SMALLEST, int(limits.lower)) if limits and limits.lower.is_Integer else SMALLEST,
                int(limits.upper) if limits and limits.upper.is_Integer else None,
            )
    return {symbol: size for symbol, size in opened.items() if symbol not in batches}


def _dimensions(program: Program, tensors: Sequence[Tensor]) -> Iterator[tuple[Any, int | str, int]]:
    """Yield each dynamic size of the inputs: as a symbol, its name, and its value in the example."""
    for symbolic, spec, tensor in zip(_symbolic(program), program.contract.inputs, tensors, strict=True):
        for size, name, own in zip(symbolic, spec.shape, tensor.shape, strict=True):
            if isinstance(size, torch.SymInt) and isinstance(name, str):
                yield size, name, own


def _at(size: int | torch.SymInt, sizes: Mapping[Any, int], own: int) -> int:
    """Return a dimension's size where symbols have these values; its own where it depends on others."""
    if not isinstance(size, torch.SymInt):
        return size
    expression = size.node.expr
    return int(expression.subs(sizes)) if expression.free_symbols <= set(sizes) else own
