"""A module becomes a program whose contract names what it takes and gives, once both answer alike."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from stn_export.adopt.network import called, output_names
from stn_export.artifacts.examples import Examples
from stn_export.errors import UserError
from stn_export.program.capture import SMALLEST, capture
from stn_export.program.program import Program, contract_of
from stn_export.program.specs import BATCH, Contract, TensorSpec

GROSS = 1e-3  # of an output's largest value: captured graph and module may differ by roundings, not by this


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
    batched = [spec for spec in specs if spec.batched]
    count = 1 if any(spec.shape[0] == 1 for spec in batched) else SMALLEST
    called(network, values_of(specs, tried, count))  # its own errors are clearer than those of a capture
    found = capture(network, values_of(specs, tried, count), [spec.shape for spec in specs])
    if count > 1 and any(
        isinstance(shape[0], int) for spec, shape in zip(specs, found.shapes, strict=True) if spec.batched
    ):
        count, shapes = 1, [(1, *spec.shape[1:]) if spec.batched else spec.shape for spec in specs]
        found = replace(capture(network, values_of(specs, tried, count), shapes), problem=found.problem)
    for spec, shape in zip(specs, found.shapes, strict=True):
        notes += [
            f"{wanted} of input {spec.name} cannot be kept open, it is {size}: {found.problem}"
            if isinstance(size, int)
            else f"{wanted} of input {spec.name} is a size of its own, {size}"
            for wanted, size in zip(spec.shape, shape, strict=True)
            if wanted != size
        ]
    notes += [f"{name} is at most {most}: {found.problem}" for name, most in found.limits.items()]
    contract = contract_of(found.exported, found.shapes, outputs=_names(found.exported, specs, outputs))
    inputs = tuple(replace(spec, shape=shape) for spec, shape in zip(specs, found.shapes, strict=True))
    given = tuple(replace(spec, batched=spec.shape[:1] == (BATCH if count > 1 else 1,)) for spec in contract.outputs)
    program = Program(found.exported, Contract(inputs, given))
    _require_same(network, program, values_of(inputs, tried, count))
    return program


def _names(exported: ExportedProgram, specs: Sequence[TensorSpec], outputs: Sequence[str]) -> list[str]:
    found = output_names(exported)
    names = list(outputs or found)
    if len(names) != len(found):
        raise UserError(f"{len(names)} outputs are named, it gives {len(found)}: {', '.join(found)}", "name all")
    if len({*names, *(spec.name for spec in specs)}) < len(names) + len(specs):
        raise UserError(f"a name is given twice among {', '.join(names)} and the inputs", "name them with --output")
    return names


def _require_same(network: nn.Module, program: Program, values: Sequence[Tensor]) -> None:
    """Refuse a network that answers differently each time, and a capture that computes something else."""
    first, second = (called(network, values) for _ in range(2))
    remedy = "it may draw random numbers, or change what it holds: leave that out in evaluation mode"
    if not _alike(first, second):
        raise UserError(f"{type(network).__name__} answers differently when it is called again", remedy)
    if not _alike(first, list(program.run(values).values())):
        raise UserError(f"{type(network).__name__} computes something else once it is captured", remedy)


def _alike(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) and all(
        torch.allclose(a.double(), b.double(), rtol=0, atol=GROSS * float(a.abs().max()), equal_nan=True)
        for a, b in zip(first, second, strict=True)
        if a.numel()
    )


def with_origin(program: Program, origin: dict, tried: Examples, notes: list[str]) -> Program:
    """The program, which says where its code is if that makes the same network again."""
    made_again = replace(program, origin=origin)
    own, values = made_again.own_module(), values_of(program.contract.inputs, tried, program.contract.batch or SMALLEST)
    if isinstance(own, str):
        notes.append(f"the captured graph stands in for the module itself: {own}")
        return program
    same = _alike(called(own, values), list(program.run(values).values()))
    if not same:
        notes.append("the captured graph stands in for the module itself: made again, it answers differently")
    return made_again if same else program
