"""Small modules captured in one line, for tests that ask one thing of a program."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from stn_export.program.capture import capture
from stn_export.program.program import Program, contract_of
from stn_export.program.specs import Pixels
from stn_export.run.examples import Examples


def program_of(
    module: nn.Module,
    shapes: Mapping[str, tuple[int | str, ...]],
    outputs: Sequence[str],
    pixels: Pixels | None = None,
    **examples: Tensor,
) -> Program:
    """A module captured; inputs of floats are made up, others given by name."""
    sizes = {"N": 2, "H": 12, "W": 20}
    inputs = [
        examples.get(name, torch.rand([sizes.get(size, size) for size in shape])) for name, shape in shapes.items()
    ]
    captured = capture(module.eval(), tuple(inputs), list(shapes.values()))
    contract = contract_of(captured.exported, captured.shapes, list(shapes), outputs)
    first = next(iter(shapes.values()))[0]  # a fixed batch where it is a number
    inputs, given = (
        tuple(
            replace(spec, pixels=pixels if spec.is_picture else None, batched=spec.shape[:1] == (first,))
            for spec in side
        )
        for side in (contract.inputs, contract.outputs)
    )
    return Program(captured.exported, replace(contract, inputs=inputs, outputs=given))


def examples_of(count: int = 10, labels: Tensor | None = None, **inputs: tuple[int, ...] | Tensor) -> Examples:
    """Uniform floats of these shapes, or the tensors themselves."""
    random = torch.Generator().manual_seed(5)
    made = {
        name: each if isinstance(each, Tensor) else torch.rand([count, *each], generator=random)
        for name, each in inputs.items()
    }
    return Examples(made, tuple(made), labels)
