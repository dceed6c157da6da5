"""What a module keeps between calls is found, named with its line, and left as it was."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stn_export.errors import UserError
from stn_export.program.state import Copies, alike, answer, mutations, told, trial
from tests import stateful


def lines_of(module: nn.Module) -> tuple[int, int]:
    """First and last line of the class's code."""
    import inspect

    text, first = inspect.getsourcelines(type(module))
    return first, first + len(text)


@pytest.mark.parametrize(("make", "shape", "words"), stateful.KEEPS, ids=lambda value: getattr(value, "__name__", None))
def test_what_a_network_keeps_is_named_with_its_line(make: type[nn.Module], shape: tuple[int, ...], words: str):
    module = make().eval()
    before, values = copy.deepcopy(module.__dict__), torch.rand(shape)
    [found] = mutations(module, (values,))
    assert f"{found.kind} {found.name}" == words
    assert found.matters
    first, last = lines_of(module)
    file, line = found.where.rstrip(")").split(" (")[1].split(":")
    assert file == "stateful.py"
    assert first < int(line) < last
    with pytest.raises(UserError, match=f"{make.__name__} gives depends on calls before: it keeps {words}, changed in"):
        told(module, [found])
    assert repr(module.__dict__) == repr(before)  # nothing of ours changed it


def test_what_no_answer_depends_on_is_told_only():
    module = stateful.LooksBack().eval()
    found = mutations(module, (torch.rand(2, 3),))
    assert {(each.kind, each.name, each.matters) for each in found} == {
        ("buffer", "seen", False),
        ("attribute", "attention", False),
    }
    assert all("did not depend on it" in sentence for sentence in told(module, found))
    assert (module.attention, int(module.seen)) == (None, 0)
    assert [each.name for each in mutations(stateful.CachedGrid().eval(), (torch.rand(2, 3, 8, 8),))] == ["grids"]


def test_a_network_that_keeps_nothing_keeps_nothing():
    assert not mutations(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout()).eval(), (torch.rand(2, 3),))


def test_inputs_and_random_numbers_stay_the_callers():
    values, state = torch.rand(2, 3), torch.get_rng_state()
    before = values.clone()
    found = trial(Copies(stateful.WritesInput().eval()), ((values,), {}))
    assert torch.equal(values, before)
    assert not found.mutations
    assert found.steady
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(found.batches[0][0][0], found.batches[1][0][0])


@pytest.mark.parametrize("keeps", [False, True])
def test_a_network_that_cannot_be_copied_is_put_back_and_that_is_said(keeps: bool):
    module = stateful.Uncopyable(keeps).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = trial(Copies(module), ((torch.rand(2, 3),), {}))
    assert "Uncopyable cannot be copied (TypeError: cannot pickle a file that is open): it was run itself" in found.note
    assert [each.name for each in found.mutations] == (["last", "calls", "layer.bias"] if keeps else [])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.calls == 0


def test_computed_tensors_in_attributes_are_copied_too():
    module = nn.Linear(3, 3).eval()
    del module._parameters["weight"]
    module.weight = nn.Parameter(torch.eye(3)) * 2  # as PyTorch's older weight norm leaves it
    copies = Copies(module)
    with copies.fresh() as made:
        assert made is not module
        assert torch.equal(made.weight, module.weight)
    assert not copies.note


@pytest.mark.parametrize("module", [stateful.Exits(), stateful.RaisesOdd()])
def test_whatever_a_module_raises_is_said(module: nn.Module):
    with pytest.raises(UserError, match=f"{type(module).__name__} does not take 2×3: (SystemExit|Odd)"):
        answer(module.eval(), ((torch.rand(2, 3),), {}))


def test_an_interrupt_stays_one():
    class Interrupted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(Interrupted(), ((torch.rand(2, 3),), {}))


MILLION = torch.tensor([[1e6, 0.1, 0.2], [2e6, 0.3, 0.4]])
WRONG = MILLION * torch.tensor([1, 1, 1.01])
ODD = torch.tensor([[float("nan"), 1.0], [float("-inf"), 2.0]])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (MILLION, MILLION * (1 + 1e-7), True),
        (MILLION, WRONG, False),
        (MILLION[:, :2], WRONG[:, [0, 2]], False),
        (ODD, ODD.clone(), True),
        (ODD, ODD + 1, False),
        (ODD, ODD.nan_to_num(0.0), False),
        (MILLION > 1, MILLION > 1, True),
        (MILLION > 1, MILLION < 1, False),
        (torch.arange(4), torch.arange(4) + 1, False),
        (MILLION.half(), MILLION.half(), True),
        (MILLION[:, 1:].half(), (MILLION[:, 1:] * 1.0005).half(), True),
        (MILLION[:, 1:].bfloat16(), (MILLION[:, 1:] * 1.2).bfloat16(), False),
        (torch.zeros(2, 0), torch.zeros(2, 0), True),
        (torch.zeros(2, 3), torch.full((2, 3), 1e-3), False),
        (torch.tensor(2.0), torch.tensor(2.1), False),
    ],
)
def test_answers_are_compared_value_by_value(one: Tensor, other: Tensor, same: bool):
    assert alike([one], [other]) is same
    assert not alike([one], [])


def test_arrays_are_looked_into():
    module = stateful.ArrayState().eval()
    [found] = mutations(module, (torch.rand(2, 3),))
    assert found.name == "array"
    assert np.array_equal(module.array, np.ones(2))
