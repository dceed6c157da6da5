"""Capture modules with ``torch.export``, keeping dimensions dynamic where that is asked for and possible."""

import copy
import functools
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.export import Dim, ExportedProgram
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from stn_export.errors import UserError, one_line
from stn_export.program.specs import BATCH, by, require_values

# Typed access to the arguments and results of a captured graph's nodes.


def operand(node: Node, index: int = 0) -> Node:
    """Return the node that computes argument ``index`` of an operator.

    Raises:
        TypeError: where that argument is a constant.
    """
    source = node.args[index]
    if not isinstance(source, Node):
        raise TypeError(f"argument {index} of {node.target} is {source!r}, which no node gives")
    return source


def number(node: Node, index: int) -> int:
    """Return argument ``index`` of an operator, which the graph states as an integer.

    Raises:
        TypeError: where it is anything else.
    """
    value = node.args[index]
    if not isinstance(value, int):
        raise TypeError(f"argument {index} of {node.target} is {value!r}, which is no whole number")
    return value


def outputs_of(result: Node) -> tuple[Node, ...]:
    """Return the nodes that a graph's output node returns, in order.

    Raises:
        TypeError: where the graph returns a constant, or no tuple.
    """
    outputs = result.args[0]
    nodes = tuple(output for output in outputs if isinstance(output, Node)) if isinstance(outputs, tuple | list) else ()
    if not isinstance(outputs, tuple | list) or len(nodes) != len(outputs):
        raise TypeError(f"{result.name} gives {outputs!r}, which are not all nodes")
    return nodes


def operator_of(node: Node) -> OpOverload:
    """Return the PyTorch operator that a node calls.

    Raises:
        TypeError: where the node calls no operator of PyTorch.
    """
    if not isinstance(node.target, OpOverload):
        raise TypeError(f"{node.target} of {node.name} is no operator of PyTorch's")
    return node.target


Shape = Sequence[int | str]  # sizes, and names of dynamic dimensions
NAMES = {BATCH: "batch", "H": "height", "W": "width"}  # their names in exported files
SMALLEST = 2  # least dynamic size: torch.export specialises on 0 and 1
OTHER_BATCHES = (1, 3)  # batches that a graph with a dynamic batch must run at
VALUES_DECIDE = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
VOLUMES = 20  # first ONNX opset whose GridSample takes volumes and float64
FEWER = "forward branches on shapes: leave fewer of them dynamic"
CAUSES = (  # patterns in messages of ``torch.export``, and what to do
    (
        r"data-dependent|GuardOnData|Could not guard|\.item\(\)|_local_scalar_dense",
        "replace Python branches on values by torch.where or torch.cond",
    ),
    (r"numpy|ndarray", "keep NumPy out of forward: it is not captured"),
    (r"[Cc]onstraint|specialized|[Dd]ynamic|marked", FEWER),
    (r"positional argument|unexpected keyword", "give every input that forward takes"),
    (
        r"non-zero|numel\(\) == 0|non-empty",
        "give example inputs that are not empty",
    ),
    (
        r"size of tensor|shapes? cannot be multiplied|[Ee]xpected (size|input)|must match",
        "try the module itself on these inputs first",
    ),
)


@torch.library.custom_op("stn_export::affine_grid", mutates_args=())
def affine_grid(theta: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Compute ``F.affine_grid`` as one opaque operator: PyTorch's own freezes height and width when captured."""
    return torch.ops.aten.affine_grid_generator.default(theta, size, align_corners)


@affine_grid.register_fake
def _(theta: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    return theta.new_empty(size[0], *size[2:], len(size) - 2)


AFFINE_GRIDS = (torch.ops.aten.affine_grid_generator.default, torch.ops.stn_export.affine_grid.default)
GRID_SAMPLES = (torch.ops.aten.grid_sampler.default, torch.ops.aten.grid_sampler_2d.default)


def samples_pictures(node: Node) -> bool:
    """Return whether a node samples images; samplers of volumes are left to PyTorch's exporter."""
    return node.target in GRID_SAMPLES and operand(node).meta["val"].ndim == 4


@contextmanager
def _opaque_affine_grid() -> Iterator[None]:
    def replacement(theta: Tensor, size: Sequence[int], align_corners: bool | None = None) -> Tensor:
        return torch.ops.stn_export.affine_grid(theta, list(size), bool(align_corners))

    with mock.patch.object(torch.nn.functional, "affine_grid", replacement):
        yield


class _ChunksAsSlices(TorchFunctionMode):
    """Replace ``chunk`` and ``split`` of a dynamic size by equal slices, where the size is known to divide.

    ``chunk`` rounds the size of a part up, to an expression that no other size is ever found equal to, and the exporter
    loses the number of parts of a dynamic ``split``.
    """

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if function in (torch.chunk, torch.Tensor.chunk):
            return _chunks(*arguments, **keywords)
        if function in (torch.split, torch.Tensor.split):
            return _split(*arguments, **keywords)
        return function(*arguments, **keywords)


def _chunks(input: Tensor, chunks: int, dim: int = 0) -> Sequence[Tensor]:
    size = input.shape[dim]
    if isinstance(size, torch.SymInt) and str(size % chunks) == "0":
        return _slices(input, size // chunks, chunks, dim)
    return torch.chunk(input, chunks, dim)


def _split(tensor: Tensor, split_size_or_sections: Any, dim: int = 0) -> Sequence[Tensor]:
    size, part = tensor.shape[dim], split_size_or_sections
    if isinstance(part, torch.SymInt) and str(size % part) == "0" and str(size // part).isdecimal():
        return _slices(tensor, part, int(size // part), dim)
    return torch.split(tensor, part, dim)


def _slices(tensor: Tensor, part: int | torch.SymInt, count: int, dim: int) -> Sequence[Tensor]:
    return tuple(tensor.narrow(dim, index * part, part) for index in range(count))


@dataclass(frozen=True)
class Captured:
    """A captured module and the shapes of its inputs; a size that could not be kept dynamic is a number.

    ``problem`` is the message of ``torch.export`` where it refused the named dynamic dimensions; ``limits`` holds the
    largest value of a dynamic size where the module limits it.
    """

    exported: ExportedProgram
    shapes: tuple[tuple[int | str, ...], ...]
    problem: str = ""
    limits: Mapping[str, int] = field(default_factory=dict)


def capture(
    module: nn.Module, inputs: tuple[Tensor, ...], shapes: Sequence[Shape], dims: Sequence[Mapping] | None = None
) -> Captured:
    """Capture a module in evaluation mode with one example of its inputs.

    Args:
        module: takes the inputs by position.
        inputs: an example; each dynamic dimension must be 2 or more.
        shapes: one per input; dimensions of one name have the same size.
        dims: PyTorch's dynamic dimensions per input, by axis, for the named sizes in ``shapes``; the only attempt then.

    Raises:
        UserError: where the module is in training mode, an example does not fit, or the module cannot be captured.
    """
    if live := [name or type(module).__name__ for name, part in module.named_modules() if part.training]:
        raise UserError(f"{live[0]} is in training mode", "call module.eval() first: a live Dropout would be exported")
    require_values(module, inputs)
    _check_sizes(inputs, shapes)
    sizes_open = any(name != BATCH for shape in shapes for name in shape if isinstance(name, str))
    problem = ""
    for attempt in [Attempt(module, dims)] if dims else _attempts(module, inputs, shapes):
        try:
            with (
                _opaque_affine_grid() if sizes_open else nullcontext(),
                _ChunksAsSlices(),
                warnings.catch_warnings(),
            ):
                warnings.filterwarnings("ignore", message="The tensor attributes? .* assigned during export")
                exported = torch.export.export(attempt.module, inputs, dynamic_shapes=tuple(map(dict, attempt.dims)))
            captured = _checked(exported, shapes, problem)
            reason = "" if dims else _refuted(captured, shapes, inputs)
            if not reason:
                return captured
            problem = problem or reason
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # raised by the module's code, sys.exit too, or by PyTorch
            problem, cause = problem or " ".join(str(error).split())[:300], error
    if scripted := _scripted(module):
        raise UserError(
            f"{scripted} is TorchScript, which torch.export does not take",
            f"give {type(module).__name__} the module that {scripted} was made from",
        ) from cause
    message = f"{type(cause).__name__}: {cause}"
    hint = _hint(message, any(isinstance(size, str) for shape in shapes for size in shape))
    raise UserError(f"torch.export cannot capture {type(module).__name__}: {problem or message}", hint) from cause


def _scripted(module: nn.Module) -> str:
    """Return the name of a part that is TorchScript and that ``torch.export`` cannot take; empty where there is none.

    A traced part without parameters is none of them: only its operators are captured.
    """
    parts = [(name, part) for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)]
    fatal = (
        name
        for name, part in parts
        if not isinstance(part, torch.jit.TopLevelTracedModule) or any(True for _ in part.parameters())
    )
    return next(fatal, "")


def _hint(message: str, dynamic: bool) -> str:
    """Return the hint for an error of ``torch.export``; hints on dynamic sizes only where there are some."""
    hints = (hint for pattern, hint in CAUSES if (dynamic or hint is not FEWER) and re.search(pattern, message))
    return next(hints, "see what torch.export.export says to it")


def _check_sizes(inputs: Sequence[Tensor], shapes: Sequence[Shape]) -> None:
    if len(inputs) != len(shapes):
        raise UserError(f"{len(inputs)} inputs have {len(shapes)} shapes", "give every input its shape")
    for tensor, shape in zip(inputs, shapes, strict=True):
        if tensor.ndim != len(shape) or any(
            isinstance(fixed, int) and fixed != size for fixed, size in zip(shape, tensor.shape, strict=True)
        ):
            raise UserError(
                f"an example of shape {tuple(tensor.shape)} is not {by(shape)}",
                "give one of that shape",
            )
        for name, size in zip(shape, tensor.shape, strict=True):
            if isinstance(name, str) and size < SMALLEST:
                raise _too_small(NAMES.get(name, name), size, tensor)


def _too_small(name: str, size: int, example: Tensor) -> UserError:
    """Return the error for an example that is too small where its size is to be dynamic."""
    if not size:
        return UserError(
            f"an example of shape {by(example.shape)} is empty: its {name} is 0",
            f"give example inputs of {name} {SMALLEST} or more",
        )
    return UserError(
        f"an example {name} of {size} would be taken for a constant",
        f"give example inputs of {name} {SMALLEST} or more",
    )


@dataclass(frozen=True)
class Attempt:
    """One attempt at capture: a module, and the dynamic dimensions of each input in the form of ``torch.export``."""

    module: nn.Module
    dims: Sequence[Mapping[int, Any]]


def _attempts(module: nn.Module, inputs: Sequence[Tensor], shapes: Sequence[Shape]) -> Iterator[Attempt]:
    """Yield the attempts at capture: named dimensions, then whatever the module can keep dynamic, then a static batch.

    Sizes that share a name are declared equal before anything is computed: PyTorch would find that out only where they
    meet, and not at all where the inputs are concatenated to one batch and split again.
    """
    joined = _with_equal_sizes(module, shapes)
    yield Attempt(joined, _dynamic(shapes, Dim))
    if not any(isinstance(size, str) for shape in shapes for size in shape):
        return
    automatic = _dynamic(shapes, lambda *_, **__: Dim.AUTO)
    yield Attempt(joined, automatic)
    if joined is not module:
        yield Attempt(module, automatic)
    fixed = [
        tuple(size if fixed == BATCH else fixed for fixed, size in zip(shape, tensor.shape, strict=True))
        for shape, tensor in zip(shapes, inputs, strict=True)
    ]
    if fixed != list(map(tuple, shapes)):
        yield Attempt(module, _dynamic(fixed, lambda *_, **__: Dim.AUTO))


def _with_equal_sizes(module: nn.Module, shapes: Sequence[Shape]) -> nn.Module:
    """Return the module with a forward that first declares sizes of one name equal; itself where no name recurs."""
    places: dict[str, list[tuple[int, int]]] = {}
    for index, shape in enumerate(shapes):
        for axis, name in enumerate(shape):
            if isinstance(name, str):
                places.setdefault(name, []).append((index, axis))
    pairs = [(first, other) for first, *others in places.values() for other in others]
    if not pairs:
        return module
    own = module.forward

    @functools.wraps(own)
    def forward(*tensors: Tensor) -> Any:
        for (index, axis), (other, other_axis) in pairs:
            torch._check(tensors[index].shape[axis] == tensors[other].shape[other_axis])
        return own(*tensors)

    shell = copy.copy(module)
    shell.forward = forward
    return shell


def _refuted(captured: Captured, shapes: Sequence[Shape], inputs: Sequence[Tensor]) -> str:
    """Return why a capture's batch is not dynamic; empty if it is one symbol and runs at other batches."""
    pairs = [
        pair for shape, kept in zip(shapes, captured.shapes, strict=True) for pair in zip(shape, kept, strict=True)
    ]
    batches = {kept for declared, kept in pairs if declared == BATCH and isinstance(kept, str)}
    if len(batches) > 1:
        return "the batches of its inputs are not one number to it"
    most = captured.limits.get(BATCH, max(OTHER_BATCHES))
    for count in (min(count, most) for count in OTHER_BATCHES if batches):
        if problem := _problem_at(captured, inputs, count):
            return f"captured, it does not run at a batch of {count}: {problem}"
    return ""


def _problem_at(captured: Captured, inputs: Sequence[Tensor], count: int) -> str:
    """Run a captured graph at another batch on fake tensors, and return its error; empty where values decide shapes."""
    module = captured.exported.module(check_guards=False)
    module = copy.deepcopy(
        module, {id(parameter): parameter for parameter in module.parameters()}
    )  # it may write into its buffers
    sizes = [
        [count if name == BATCH else size for name, size in zip(kept, tensor.shape, strict=True)]
        for kept, tensor in zip(captured.shapes, inputs, strict=True)
    ]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            resized = zip(inputs, sizes, strict=True)
            module(*(torch.empty(size, dtype=tensor.dtype, device=tensor.device) for tensor, size in resized))
    except VALUES_DECIDE:
        return ""
    except Exception as error:  # whatever an operator raises for sizes that do not fit
        return one_line(error)
    return ""


def _dynamic(shapes: Sequence[Shape], make: Callable[..., Any]) -> tuple[dict[int, Any], ...]:
    """Return the dynamic dimensions of each input in the form of ``torch.export``."""
    names = dict.fromkeys(name for shape in shapes for name in shape if isinstance(name, str))
    dims = {name: make(NAMES.get(name, name), **({} if name == BATCH else {"min": SMALLEST})) for name in names}
    return tuple({axis: dims[name] for axis, name in enumerate(shape) if isinstance(name, str)} for shape in shapes)


def _checked(exported: ExportedProgram, shapes: Sequence[Shape], problem: str) -> Captured:
    for node in exported.graph.nodes:
        node.meta.pop("from_node", None)  # contains addresses, and equal captures must give equal files
    shape_of = {node.name: node.meta["val"].shape for node in exported.graph.nodes if node.op == "placeholder"}
    names: dict[str, str] = {}  # by symbol; two symbols must not share a name
    kept = tuple(
        tuple(_named(size, declared, names) for size, declared in zip(shape_of[name], shape, strict=True))
        for name, shape in zip(exported.graph_signature.user_inputs, shapes, strict=True)
    )
    _own_memory(exported)
    ranges = {names.get(str(symbol)): limits.upper for symbol, limits in exported.range_constraints.items()}
    limits = {
        name: int(upper) for name, upper in ranges.items() if name and upper.is_Integer and upper < sys.maxsize // 2
    }
    return Captured(exported, kept, problem, limits)


def _named(size: int | torch.SymInt, declared: int | str, names: dict[str, str]) -> int | str:
    fixed = _fixed(size)
    if fixed is not None:
        return fixed
    if isinstance(declared, int):
        return declared
    return names.setdefault(str(size), declared if declared not in names.values() else f"{declared}{len(names) + 1}")


def _fixed(size: int | torch.SymInt) -> int | None:
    """Return a size that is a number, or a symbol found to be one; None for any other symbol."""
    return int(str(size)) if str(size).isdigit() else None


def _own_memory(exported: ExportedProgram) -> None:
    """Replace the weights by tensors that need no gradient; the module's own stay as they are.

    Views of larger tensors are copied, as a file would contain the whole of these. Shared tensors stay shared.
    """
    made: dict[int, Tensor] = {}
    for name, value in exported.state_dict.items():
        if id(value) not in made:
            window = value.untyped_storage().nbytes() != value.nbytes
            own = value.detach().clone(memory_format=torch.contiguous_format) if window else value.detach()
            made[id(value)] = nn.Parameter(own, requires_grad=False) if isinstance(value, nn.Parameter) else own
        exported.state_dict[name] = made[id(value)]


def location(node: Node) -> str:
    """Return the module and the source line that a node comes from: ``transformer (networks.py:62)``."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    module = stack[-1][0] if stack else ""
    frames = [
        line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip().startswith("File")
    ]
    own = [frame for frame in frames if f"{Path(torch.__file__).parent}/" not in frame]
    if not own:
        return module or "forward"
    file, line = own[-1].split(", ")[:2]
    return f"{module or 'forward'} ({Path(file.split(chr(34))[1]).name}:{line.removeprefix('line ')})"


def symbols_of(exported: ExportedProgram, shapes: Sequence[Shape] | None = None) -> dict[str, str]:
    """Return the names of the dynamic sizes, by their symbols in the graph.

    Args:
        exported: the captured program.
        shapes: of the inputs, with these names; by default ``N`` for a first axis, else ``size1`` and so on.
    """
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"}
    inputs = exported.graph_signature.user_inputs
    symbols: dict[str, str] = {}
    shapes_or_none: Sequence[Shape | None] = shapes or [None] * len(inputs)
    for name, shape in zip(inputs, shapes_or_none, strict=True):
        for axis, size in enumerate(values[name].shape):
            if _fixed(size) is None:
                named = shape[axis] if shape else BATCH if axis == 0 else f"size{len(symbols)}"
                symbols.setdefault(str(size), str(named))
    return symbols


def named_shape(sizes: torch.Size, symbols: Mapping[str, str]) -> tuple[int | str, ...]:
    """Return a shape in the graph with its dynamic sizes named: ``("2*N", 8, 12)``."""
    return tuple(_with_names(size, symbols) for size in sizes)


def _with_names(size: int | torch.SymInt, symbols: Mapping[str, str]) -> int | str:
    fixed = _fixed(size)
    if fixed is not None:
        return fixed
    return re.sub(r"[A-Za-z_]\w*", lambda match: symbols.get(match[0], match[0]), str(size))


def file_names(shapes: Sequence[Shape]) -> tuple[dict[int, str], ...]:
    """Return the names of each input's dynamic dimensions in an exported file, by axis."""
    return tuple(
        {axis: NAMES.get(name, name) for axis, name in enumerate(shape) if isinstance(name, str)} for shape in shapes
    )
