"""A network whose answer is of a type that another package registers is read again without that package."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from stn_export.program.capture import capture
from stn_export.program.program import Program, contract_of, load_program


@dataclass
class Detected:
    """An answer as transformers gives it: a class of its own, told to PyTorch by its package."""

    scores: Tensor
    boxes: tuple[Tensor, Tensor]


class Detector(nn.Module):
    def forward(self, x: Tensor) -> Detected:
        return Detected(x * 2, (x + 1, x.relu()))


def test_the_package_that_registers_the_answers_type_is_not_needed_to_read_the_program(tmp_path: Path):
    _pytree.register_pytree_node(
        Detected,
        lambda each: ([each.scores, each.boxes], None),
        lambda values, _: Detected(*values),
        serialized_type_name="tests.test_foreign_answers.Detected",
    )
    x = torch.linspace(-1, 1, 6).view(2, 3)
    try:
        exported = capture(Detector().eval(), (x,), [("N", 3)]).exported
        path = tmp_path / "program.pt2"
        path.write_bytes(Program(exported, contract_of(exported)).to_bytes({}))
        assert isinstance(exported.module()(x), Detected)  # nobody's program is changed by being written
    finally:
        _pytree._deregister_pytree_node(Detected)
    given = load_program(path).exported.module()(x)
    assert [torch.equal(*pair) for pair in zip(given, (x * 2, x + 1, x.relu()), strict=True)] == [True] * 3
