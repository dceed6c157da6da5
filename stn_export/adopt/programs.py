"""A module becomes a program whose contract names what it takes and gives; where it samples is seen while it runs."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from stn_export.adopt.network import output_names
from stn_export.errors import UserError, one_line
from stn_export.program.capture import OTHER_BATCHES, SMALLEST, Captured, Shape, capture
from stn_export.program.program import Program, contract_of
from stn_export.program.sites import MODES, PADDINGS, Site, not_looked_into
from stn_export.program.specs import BATCH, Contract, TensorSpec, distinct
from stn_export.program.state import Batch, Copies, alike, answer, copied, following, told, trial
from stn_export.run.examples import Examples

GROSS = 1e-3  # of a value, and of what is usual beside it: captured graph and module may differ by roundings only
REMEDY = "it may draw random numbers, or keep something outside itself: leave that out in evaluation mode"


def values_of(specs: Sequence[TensorSpec], tried: Examples, count: int = SMALLEST) -> tuple[Tensor, ...]:
    """The first examples as the network takes them."""
    return Contract(tuple(specs), ()).values(tried.take(count))


def program_of(
    network: nn.Module | Program,
    specs: Sequence[TensorSpec],
    outputs: Sequence[str],
    tried: Examples,
    notes: list[str],
) -> Program:
    """The program of a network; what could not be kept open goes into the notes.

    Raises:
        UserError: where it cannot be captured, or the capture computes something else.
    """
    if isinstance(network, Program):
        return replace(network, contract=replace(network.contract, inputs=tuple(specs)))
    count = 1 if any(spec.shape[0] == 1 for spec in specs if spec.batched) else SMALLEST
    copies = Copies(network)
    seen = trial(copies, *_two_batches(specs, tried, count))  # its own errors are clearer than those of a capture
    notes += [*filter(None, [seen.note]), *told(network, seen.mutations)]
    if not seen.steady:
        raise UserError(f"{type(network).__name__} answers differently when it is called again", REMEDY)
    found, count = _captured(copies, specs, tried, count)
    notes += [*_closed(specs, found), *not_looked_into(found.exported.graph)]
    contract = contract_of(found.exported, found.shapes, outputs=_names(found.exported, specs, outputs))
    inputs = tuple(replace(spec, shape=shape) for spec, shape in zip(specs, found.shapes, strict=True))
    given = tuple(
        replace(spec, batched=spec.shape[:1] == (BATCH if count > 1 else count,)) for spec in contract.outputs
    )
    program = Program(found.exported, Contract(inputs, given))
    for (values, _), answers in zip(seen.batches, seen.answers, strict=True):
        _require_same(copies, program, values, answers)
    return program


def _two_batches(specs: Sequence[TensorSpec], tried: Examples, count: int) -> tuple[Batch, Batch]:
    """The first examples, and the next ones; where there are none, or the same, others are made of the first."""
    first: Batch = values_of(specs, tried, count), {}
    more = values_of(specs, _without_first(tried, count), count) if len(tried) >= 2 * count else first[0]
    same = all(torch.equal(one, other) for one, other in zip(first[0], more, strict=True))
    return first, following(first) if same else (more, {})


def _without_first(tried: Examples, count: int) -> Examples:
    """The examples without the first ones."""
    rows = dict(tried.rows(slice(count, None)))
    return replace(tried, inputs=rows, labels=None if tried.labels is None else tried.labels[count:])


def _captured(copies: Copies, specs: Sequence[TensorSpec], tried: Examples, count: int) -> tuple[Captured, int]:
    """The network captured, and the batch that it was captured at: 2 or more where that is open, else its size."""
    shapes = [spec.shape for spec in specs]
    refusals: list[UserError] = []
    try:
        found = _capture(copies, specs, tried, count, shapes)
        if count == 1 or not (problem := _batch_problem(copies, specs, tried, found)):
            return found, count
    except UserError as error:
        if count == 1 or not any(spec.batched for spec in specs):
            raise
        refusals, problem = [error], error.message
    for size in (1, count):
        fixed = [(size, *spec.shape[1:]) if spec.batched else spec.shape for spec in specs]
        try:
            found = _capture(copies, specs, tried, size, fixed)
        except UserError as error:
            refusals.append(error)
            continue
        return replace(found, problem=found.problem or problem), size
    raise refusals[0]


def _capture(
    copies: Copies, specs: Sequence[TensorSpec], tried: Examples, count: int, shapes: Sequence[Shape]
) -> Captured:
    with copies.fresh() as module:
        return capture(module, values_of(specs, tried, count), shapes)


def _batch_problem(copies: Copies, specs: Sequence[TensorSpec], tried: Examples, found: Captured) -> str:
    """Why the batch is not open: one size for all inputs, at which the graph runs as the network does at 1 and at 3."""
    batched = [shape for spec, shape in zip(specs, found.shapes, strict=True) if spec.batched]
    if not batched:
        return ""
    if any(isinstance(shape[0], int) for shape in batched):
        return found.problem or "what is captured holds for one size only"
    if any(shape[0] != BATCH for shape in batched):
        return "what is captured takes the inputs in batches of sizes of their own"
    graph = Program(found.exported, Contract((), ())).module
    for size in OTHER_BATCHES:
        values = values_of(specs, tried, size)
        try:
            with copies.fresh() as module:
                wanted = answer(module, (values, {}))
        except UserError:  # a size that the network itself does not take
            continue
        try:
            with torch.no_grad():
                same = alike(wanted, list(graph(*copied(values))), GROSS)
        except Exception as error:  # what a graph raises that was made for other sizes
            return f"what is captured does not run with a batch of {size}: {one_line(error)}"
        if not same:
            return f"what is captured gives something else with a batch of {size}"
    return ""


def _closed(specs: Sequence[TensorSpec], found: Captured) -> list[str]:
    """What was to be open and is not, in words."""
    notes = [
        f"{wanted} of input {spec.name} cannot be kept open, it is {size}: {found.problem}"
        if isinstance(size, int)
        else f"{wanted} of input {spec.name} is a size of its own, {size}"
        for spec, shape in zip(specs, found.shapes, strict=True)
        for wanted, size in zip(spec.shape, shape, strict=True)
        if wanted != size
    ]
    return notes + [f"{name} is at most {most}: {found.problem}" for name, most in found.limits.items()]


def _names(exported: ExportedProgram, specs: Sequence[TensorSpec], outputs: Sequence[str]) -> list[str]:
    found, inputs = output_names(exported), [spec.name for spec in specs]
    names = list(outputs or distinct(found, inputs))
    if len(names) != len(found):
        raise UserError(f"{len(names)} outputs are named, it gives {len(found)}: {', '.join(found)}", "name all")
    if len({*names, *inputs}) < len(names) + len(inputs):
        raise UserError(f"a name is given twice among {', '.join(names)} and the inputs", "name them with --output")
    return names


def _require_same(copies: Copies, program: Program, values: Sequence[Tensor], answers: list[Tensor]) -> None:
    """Refuse a capture that computes something else than the network gave."""
    if (size := program.contract.batch) and any(
        spec.batched and len(value) != size for spec, value in zip(program.contract.inputs, values, strict=True)
    ):
        specs = program.contract.inputs
        values = tuple(value[:size] if spec.batched else value for spec, value in zip(specs, values, strict=True))
        with copies.fresh() as module:
            answers = answer(module, (values, {}))
    if not alike(answers, list(program.run(copied(values)).values()), GROSS):
        raise UserError(f"{type(copies.module).__name__} computes something else once it is captured", REMEDY)


def with_origin(program: Program, origin: dict, tried: Examples, notes: list[str]) -> Program:
    """The program, which says where its code is if that makes the same network again."""
    made_again = replace(program, origin=origin)
    own, values = made_again.own_module(), values_of(program.contract.inputs, tried, program.contract.batch or SMALLEST)
    if isinstance(own, str):
        why = own
    elif not alike(answer(own, (values, {})), list(program.run(copied(values)).values()), GROSS):
        why = "made again, it answers differently"
    elif _writes(own, values):
        why = "it writes into what it is given"
    else:
        return made_again
    notes.append(f"the captured graph stands in for the module itself: {why}")
    return program


def _writes(module: nn.Module, values: Sequence[Tensor]) -> bool:
    """Whether a module changes the tensors that it is called with."""
    given = copied(tuple(values))
    with torch.no_grad():
        module(*given)
    return any(not alike([one], [other], 0.0) for one, other in zip(given, values, strict=True))


# Where a module samples, seen while it runs: for modules that ``torch.export`` cannot capture.


SAMPLERS = (F.grid_sample, torch.grid_sampler)
AFFINE = (F.affine_grid, torch.affine_grid_generator)
TORCH = f"{Path(torch.__file__).parent}/"


class Watch(TorchFunctionMode):
    """Notes every sampler that runs inside it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.names = {id(part): name for name, part in module.named_modules()}
        self.grids: list[tuple[Tensor, bool]] = []  # of affine_grid, with its align_corners
        self.sites: list[Site] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in AFFINE:
            self.grids.append((result, bool(_bound(args, kwargs, ("theta", "size", "align_corners"))[2])))
        elif func in SAMPLERS:
            image, grid, mode, padding, align = _bound(
                args, kwargs, ("input", "grid", "mode", "padding_mode", "align_corners")
            )
            own = next((align for made, align in self.grids if made is grid), None)
            site = Site(
                name=f"site{len(self.sites)}",
                where=self._where(sys._getframe(1)),
                source="",
                mode=_word(mode, MODES),
                padding_mode=_word(padding, PADDINGS),
                align_corners=bool(align),
                grid_align_corners=own,
                image_shape=tuple(image.shape),
                warped_shape=tuple(result.shape),
                image="",
                grid="",
                warped="",
                theta="" if own is None else "theta",
            )
            self.sites.append(site)
        return result

    def _where(self, frame: FrameType | None) -> str:
        """The innermost line outside PyTorch, and the module that it runs in."""
        place, module = "", None
        while frame is not None and module is None:
            file = frame.f_code.co_filename
            if not place and not file.startswith(TORCH) and file != __file__:
                place = f" ({Path(file).name}:{frame.f_lineno})"
            module = self.names.get(id(frame.f_locals.get("self")))
            frame = frame.f_back
        return f"{module or 'forward'}{place}"


def _bound(args: Sequence[Any], kwargs: Mapping[str, Any] | None, names: Sequence[str]) -> list[Any]:
    given = dict(zip(names, args, strict=False)) | dict(kwargs or {})
    return [given.get(name) for name in names]


def _word(value: str | int | None, words: Sequence[str]) -> str:
    return words[value] if isinstance(value, int) else value or words[0]


def watched(module: nn.Module, values: Sequence[Tensor]) -> tuple[Site, ...]:
    """Every sampler that runs when a copy of the module does, in order; shapes are those of these inputs.

    Raises:
        UserError: where the module itself fails.
    """
    with Copies(module).fresh() as made, Watch(made) as watch:
        answer(made, (tuple(values), {}))
    return tuple(watch.sites)
