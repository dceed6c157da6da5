"""Capture a module as a program with named inputs and outputs; find its sampling sites while it runs."""

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

from stn_export.adopt.batches import fixed_batch, without_batch
from stn_export.adopt.network import output_names
from stn_export.errors import UserError, one_line
from stn_export.program.capture import OTHER_BATCHES, SMALLEST, Captured, Shape, capture
from stn_export.program.program import Program, contract_of
from stn_export.program.sites import MODES, PADDINGS, Site, not_looked_into
from stn_export.program.specs import BATCH, Contract, TensorSpec, distinct
from stn_export.program.state import Batch, Copies, alike, answer, copied, following, told, trial
from stn_export.run.examples import Examples

GROSS = 1e-3  # relative difference allowed of graph and module: both round, but agree closely
REMEDY = "it may draw random numbers, or keep something outside itself: leave that out in evaluation mode"


def values_of(specs: Sequence[TensorSpec], tried: Examples, count: int = SMALLEST) -> tuple[Tensor, ...]:
    """Return the first ``count`` examples as tensors that the network takes."""
    return Contract(tuple(specs), ()).values(tried.take(count))


def program_of(
    network: nn.Module | Program,
    specs: Sequence[TensorSpec],
    outputs: Sequence[str],
    tried: Examples,
    notes: list[str],
    typed: bool = False,
) -> Program:
    """Capture a network as a program; a note is added for every size that cannot stay dynamic.

    ``typed`` says whether the inputs were named on a command line, in whose terms an error then offers others.

    Raises:
        UserError: if it cannot be captured, or the captured graph computes something else.
    """
    if isinstance(network, Program):
        return replace(network, contract=replace(network.contract, inputs=tuple(specs)))
    copies, count = Copies(network), _static(specs) or SMALLEST
    try:
        seen = trial(copies, *_two_batches(specs, tried, count))  # its errors are clearer than those of a capture
    except UserError as error:
        fixed = fixed_batch(copies, specs, tried, error, typed)
        notes.append(f"{fixed.text}, as many as the examples are")
        return program_of(network, fixed.fixed(specs), outputs, tried, notes, typed)
    notes += [
        f"{name} is taken too: as adopted, the network has no batch" for name in without_batch(copies, specs, tried)
    ]
    notes += [*filter(None, [seen.note]), *told(network, seen.mutations)]
    if not seen.steady:
        raise UserError(f"{type(network).__name__} returns different outputs when it is called again", REMEDY)
    captured, count = _captured(copies, specs, tried, count)
    notes += [*_closed(specs, captured), *not_looked_into(captured.exported.graph)]
    contract = contract_of(captured.exported, captured.shapes, outputs=_names(captured.exported, specs, outputs))
    inputs = tuple(replace(spec, shape=shape) for spec, shape in zip(specs, captured.shapes, strict=True))
    batch = Contract(inputs, ()).batch or (BATCH if any(spec.batched for spec in inputs) else None)
    specs_of_outputs = tuple(replace(spec, batched=spec.shape[:1] == (batch,)) for spec in contract.outputs)
    program = Program(captured.exported, Contract(inputs, specs_of_outputs))
    for (values, _), answers in zip(seen.batches, seen.answers, strict=True):
        _require_same(copies, program, values, answers)
    return program


def _two_batches(specs: Sequence[TensorSpec], tried: Examples, count: int) -> tuple[Batch, Batch]:
    """Return the first and the next ``count`` examples; if the second batch is the same, derive it from the first."""
    first: Batch = values_of(specs, tried, count), {}
    more = values_of(specs, _without_first(tried, count), count) if len(tried) >= 2 * count else first[0]
    same = all(torch.equal(one, other) for one, other in zip(first[0], more, strict=True))
    return first, following(first) if same else (more, {})


def _without_first(tried: Examples, count: int) -> Examples:
    """Return the examples without the first ``count``."""
    rows = dict(tried.rows(slice(count, None)))
    return replace(tried, inputs=rows, labels=None if tried.labels is None else tried.labels[count:])


def _captured(copies: Copies, specs: Sequence[TensorSpec], tried: Examples, count: int) -> tuple[Captured, int]:
    """Capture the network; return it with the batch size of the capture, at least 2 if the batch is dynamic."""
    shapes = [spec.shape for spec in specs]
    refusals: list[UserError] = []
    try:
        captured = _capture(copies, specs, tried, count, shapes)
        if _static(specs) or not (problem := _batch_problem(copies, specs, tried, captured)):
            return captured, count
    except UserError as error:
        if _static(specs) or not any(spec.batched for spec in specs):
            raise
        refusals, problem = [error], error.message
    for size in (1, count):
        fixed = [(size, *spec.shape[1:]) if spec.batched else spec.shape for spec in specs]
        try:
            captured = _capture(copies, specs, tried, size, fixed)
        except UserError as error:
            refusals.append(error)
            continue
        return replace(captured, problem=captured.problem or problem), size
    raise refusals[0]


def _static(specs: Sequence[TensorSpec]) -> int | None:
    """Return the one size of a batch that was asked for; None where it is to be dynamic, or there is none."""
    return next((spec.shape[0] for spec in specs if spec.batched and isinstance(spec.shape[0], int)), None)


def _capture(
    copies: Copies, specs: Sequence[TensorSpec], tried: Examples, count: int, shapes: Sequence[Shape]
) -> Captured:
    with copies.fresh() as module:
        return capture(module, values_of(specs, tried, count), shapes)


def _batch_problem(copies: Copies, specs: Sequence[TensorSpec], tried: Examples, captured: Captured) -> str:
    """Say why the batch cannot be dynamic; an empty string if it can.

    It can if all inputs share one batch size and the graph agrees with the network at every size in ``OTHER_BATCHES``.
    """
    batched = [shape for spec, shape in zip(specs, captured.shapes, strict=True) if spec.batched]
    if not batched:
        return ""
    if any(isinstance(shape[0], int) for shape in batched):
        return captured.problem or "what is captured holds for one size only"
    if any(shape[0] != BATCH for shape in batched):
        return "what is captured takes the inputs in batches of sizes of their own"
    graph = Program(captured.exported, Contract((), ())).module
    for size in OTHER_BATCHES:
        values = values_of(specs, tried, size)
        try:
            with copies.fresh() as module:
                expected = answer(module, (values, {}))
        except UserError:  # a size that the network itself does not take
            continue
        try:
            with torch.no_grad():
                same = alike(expected, list(graph(*copied(values))), GROSS)
        except Exception as error:  # a graph captured for other sizes may raise anything
            return f"what is captured does not run with a batch of {size}: {one_line(error)}"
        if not same:
            return f"what is captured gives something else with a batch of {size}"
    return ""


def _closed(specs: Sequence[TensorSpec], captured: Captured) -> list[str]:
    """Describe every size that was requested as dynamic and is static or limited."""
    notes = [
        f"{declared} of input {spec.name} cannot be kept open, it is {size}: {captured.problem}"
        if isinstance(size, int)
        else f"{declared} of input {spec.name} is a size of its own, {size}"
        for spec, shape in zip(specs, captured.shapes, strict=True)
        for declared, size in zip(spec.shape, shape, strict=True)
        if declared != size
    ]
    return notes + [f"{name} is at most {most}: {captured.problem}" for name, most in captured.limits.items()]


def _names(exported: ExportedProgram, specs: Sequence[TensorSpec], outputs: Sequence[str]) -> list[str]:
    names_of_outputs, inputs = output_names(exported), [spec.name for spec in specs]
    names = list(outputs or distinct(names_of_outputs, inputs))
    if len(names) != len(names_of_outputs):
        raise UserError(
            f"{len(names)} outputs are named, it gives {len(names_of_outputs)}: {', '.join(names_of_outputs)}",
            "name all",
        )
    if len({*names, *inputs}) < len(names) + len(inputs):
        raise UserError(f"a name is given twice among {', '.join(names)} and the inputs", "name them with --output")
    return names


def _require_same(copies: Copies, program: Program, values: Sequence[Tensor], answers: list[Tensor]) -> None:
    """Raise an error if the captured program computes something else than the network.

    Raises:
        UserError: if it does.
    """
    if (size := program.contract.batch) and any(
        spec.batched and len(value) != size for spec, value in zip(program.contract.inputs, values, strict=True)
    ):
        specs = program.contract.inputs
        values = tuple(value[:size] if spec.batched else value for spec, value in zip(specs, values, strict=True))
        with copies.fresh() as module:
            answers = answer(module, (values, {}))
    if not alike(answers, list(program.run(copied(values)).values()), GROSS):
        raise UserError(f"{type(copies.module).__name__} returns different outputs once it is captured", REMEDY)


def with_origin(program: Program, origin: dict, tried: Examples, notes: list[str]) -> Program:
    """Return the program with the place of its code recorded, if that code builds the same network; else add a note."""
    made_again = replace(program, origin=origin)
    own, values = made_again.own_module(), values_of(program.contract.inputs, tried, program.contract.batch or SMALLEST)
    if isinstance(own, str):
        why = own
    elif not alike(answer(own, (values, {})), list(program.run(copied(values)).values()), GROSS):
        why = "made again, it returns different outputs"
    elif _writes(own, values):
        why = "it writes into what it is given"
    else:
        return made_again
    notes.append(f"the captured graph stands in for the module itself: {why}")
    return program


def _writes(module: nn.Module, values: Sequence[Tensor]) -> bool:
    """Return whether a module changes the tensors that it is called with."""
    inputs = copied(tuple(values))
    with torch.no_grad():
        module(*inputs)
    return any(not alike([one], [other], 0.0) for one, other in zip(inputs, values, strict=True))


# Sampling sites of modules that ``torch.export`` cannot capture, recorded while they run.


SAMPLERS = (F.grid_sample, torch.grid_sampler)
AFFINE = (F.affine_grid, torch.affine_grid_generator)
TORCH = f"{Path(torch.__file__).parent}/"


class Watch(TorchFunctionMode):
    """Record every sampler that runs while the mode is active."""

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
        """Return the innermost line of code outside PyTorch, and the submodule that runs it."""
        place, module = "", None
        while frame is not None and module is None:
            file = frame.f_code.co_filename
            if not place and not file.startswith(TORCH) and file != __file__:
                place = f" ({Path(file).name}:{frame.f_lineno})"
            module = self.names.get(id(frame.f_locals.get("self")))
            frame = frame.f_back
        return f"{module or 'forward'}{place}"


def _bound(args: Sequence[Any], kwargs: Mapping[str, Any] | None, names: Sequence[str]) -> list[Any]:
    by_name = dict(zip(names, args, strict=False)) | dict(kwargs or {})
    return [by_name.get(name) for name in names]


def _word(value: str | int | None, words: Sequence[str]) -> str:
    return words[value] if isinstance(value, int) else value or words[0]


def watched(module: nn.Module, values: Sequence[Tensor]) -> tuple[Site, ...]:
    """Run a copy of the module and return its sampling sites in order, with the shapes that these inputs lead to.

    Raises:
        UserError: if the module itself fails.
    """
    with Copies(module).fresh() as made, Watch(made) as watch:
        answer(made, (tuple(values), {}))
    return tuple(watch.sites)
