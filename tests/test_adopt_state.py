"""``adopt`` and ``check`` leave module and inputs as they were, bind by name, and refuse or tell what is kept."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stn_export
from stn_export import api, cli
from stn_export.adopt import __main__ as stage
from stn_export.adopt.adoption import Adoption
from stn_export.errors import UserError
from stn_export.program.passes import PROBE_BYTES, WINDOW_BYTES
from stn_export.program.program import Program, load_program
from stn_export.program.specs import Given
from stn_export.runners.external import RefusedError
from stn_export.runners.pytorch import Compiled
from stn_export.verify.challenges import MANY, challenges, size_of
from tests import memory_table, stateful

FILE = Path(stateful.__file__)


@pytest.mark.parametrize(("make", "shape", "words"), stateful.KEEPS, ids=lambda value: getattr(value, "__name__", None))
def test_what_a_network_keeps_is_refused_by_name_and_line(
    make: type[nn.Module], shape: tuple[int, ...], words: str, tmp_path: Path
):
    module, values = make().eval(), torch.rand(2 * shape[0], *shape[1:])
    held, given = repr(module.__dict__), values.clone()
    for call in (
        lambda: stn_export.adopt(module, {"x": values}, run=tmp_path / "run"),
        lambda: stn_export.check(module, values),
    ):
        with pytest.raises(
            UserError, match=rf"depends on calls before: it keeps {words}, changed in forward \(stateful"
        ):
            call()
    assert repr(module.__dict__) == held
    assert torch.equal(values, given)
    assert not (tmp_path / "run").exists()


def test_what_no_answer_depends_on_is_a_note():
    module = stateful.LooksBack().eval()
    notes = stn_export.adopt(module, {"x": torch.rand(4, 3)}).notes
    assert sum("keeps" in note and "did not depend on it" in note for note in notes) == 2
    assert (module.attention, int(module.seen)) == (None, 0)


@pytest.mark.parametrize("make", [stateful.WritesInput, stateful.WritesColumn])
def test_an_input_is_never_written_to(make: type[nn.Module], tmp_path: Path):
    values = torch.rand(4, 3)
    given, wanted = values.clone(), make()(values.clone())
    program = stn_export.adopt(make().eval(), {"x": values}, run=tmp_path / "run").program
    for _ in range(2):
        assert torch.equal(program.run((values,))["output"], wanted)
    assert torch.equal(program.points((values,))["output"], wanted)
    assert torch.equal(values, given)
    found = stn_export.adopt(f"{FILE}:{make.__name__}", {"x": values}, evaluation=True)
    assert "it writes into what it is given" in found.notes[0]
    assert torch.equal(values, given)


def test_the_mode_of_a_module_is_left_as_it_is():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = copy.deepcopy(module.state_dict())
    stn_export.adopt(module, {"input": torch.rand(4, 3)}, evaluation=True)
    assert module.training
    assert module[1].training
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    with pytest.raises(UserError, match="is in training mode"):
        stn_export.adopt(module, {"input": torch.rand(4, 3)})


def test_a_network_that_cannot_be_copied_is_said():
    module = stateful.Uncopyable().eval()
    notes = stn_export.adopt(module, {"x": torch.rand(4, 3)}).notes
    assert any("Uncopyable cannot be copied" in note and "were put back" in note for note in notes)
    with pytest.raises(UserError, match="cannot be copied, and its mode is left as it is: TypeError"):
        stn_export.adopt(stateful.Uncopyable(), {"x": torch.rand(4, 3)}, evaluation=True)


def flow_inputs() -> dict[str, Tensor]:
    return {"flow": 0.3 * torch.rand(4, 2, 5, 6), "image": torch.rand(4, 3, 5, 6)}


def test_inputs_are_bound_by_name():
    inputs, module = flow_inputs(), stateful.Masked().eval()
    program = stn_export.adopt(module, inputs).program
    assert [spec.name for spec in program.contract.inputs] == ["image", "flow"]
    assert len(program.sites) == 1
    wanted = module(inputs["image"], flow=inputs["flow"])
    assert torch.equal(program.run((inputs["image"], inputs["flow"]))["output"], wanted)
    with pytest.raises(UserError, match="Masked has no input pictures\nhint: forward takes image, mask, flow"):
        stn_export.adopt(module, {"pictures": inputs["image"]})


def test_inputs_are_bound_by_name_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [f"{FILE}:Masked", "--eval", "--run", str(tmp_path / "run"), "--input=flow=N,2,5,6"]
    assert cli.run(stage.main, [*arguments, "--input=image=N,3,5,6"]) == 0
    assert "grid_sample" in capsys.readouterr().out
    program = load_program(tmp_path / "run" / "run" / "program.pt2", own=True)
    assert [spec.name for spec in program.contract.inputs] == ["image", "flow"]
    own, inputs = program.own_module(), flow_inputs()
    assert isinstance(own, nn.Module)
    assert torch.equal(own(inputs["image"], inputs["flow"]), stateful.Masked()(inputs["image"], flow=inputs["flow"]))
    assert cli.run(stage.main, [*arguments, "--input=pictures=N,3,5,6"]) == 2
    error = capsys.readouterr().err
    assert "Masked has no input pictures" in error
    assert "forward takes image, mask, flow" in error


@pytest.mark.parametrize(
    ("inputs", "keywords"),
    [
        (([torch.rand(3, 4), torch.rand(3, 4)], {"bias": torch.rand(3, 4)}), {"scale": 2.0}),
        (
            {"more": {"bias": torch.rand(3, 4)}, "pair": [torch.rand(3, 4), torch.rand(3, 4)], "scale": 2.0},
            {"turn": True},
        ),
    ],
)
def test_check_takes_what_export_onnx_takes(inputs: object, keywords: dict, monkeypatch: pytest.MonkeyPatch):
    adopted: list[Adoption] = []

    def adopting(module: nn.Module, given: Given, **_: object) -> Adoption:
        adopted.append(stn_export.adopt(module, given))
        return adopted[-1]

    monkeypatch.setattr(api, "adopt", adopting)
    monkeypatch.setattr(api, "_checked", lambda place, notes, kept: notes)
    assert stn_export.check(stateful.Nested().eval(), inputs, keywords) == tuple(adopted[0].notes)
    [program] = [each.program for each in adopted]
    assert [spec.name for spec in program.contract.inputs] == ["pair_0", "pair_1", "more_bias"]
    call = Given.of(inputs, keywords)
    wanted = stateful.Nested()(*call.arguments, **call.keywords)
    order = inputs if isinstance(inputs, tuple) else (inputs["pair"], inputs["more"])
    assert torch.equal(program.run((*order[0], order[1]["bias"]))["output"], wanted)


def test_a_batch_that_does_not_hold_is_fixed_and_that_is_said():
    module = stateful.Siamese().eval()
    inputs = {"first": torch.rand(4, 1, 5, 5), "second": torch.rand(4, 1, 5, 5)}
    found = stn_export.adopt(module, inputs)
    contract = found.program.contract
    assert len({spec.shape[0] for spec in contract.inputs}) == 1  # one batch, not two of their own
    if contract.batch:
        assert any(note.startswith("N of input first cannot be kept open, it is 1: ") for note in found.notes)
    for size in (contract.batch,) if contract.batch else (1, 2, 3, 5):
        values = [value.repeat(2, 1, 1, 1)[:size] for value in inputs.values()]
        with torch.no_grad():
            assert torch.allclose(found.program.run(values)["output"], module(*values), atol=1e-5)


def test_odd_answers_are_adopted_or_refused_in_a_line(tmp_path: Path):
    for make, values in (
        (stateful.Truths, torch.rand(4, 3)),
        (stateful.NotNumbers, torch.rand(4, 3)),
        (stateful.Half, torch.rand(4, 3).half()),
    ):
        found = stn_export.adopt(make().eval(), {"x": values})
        assert found.program is not None, make
    with pytest.raises(UserError, match="Column returns different outputs when it is called again"):
        stn_export.adopt(stateful.Column().eval(), {"x": torch.rand(4, 3)}, run=tmp_path / "run")


@pytest.mark.parametrize("name", ["Exits", "RaisesOdd"])
def test_a_network_that_breaks_off_is_exit_code_2(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [f"{FILE}:{name}", "--input=x=N,3", "--eval", "--run", str(tmp_path / "run")]
    assert cli.run(stage.main, arguments) == 2
    assert f"{name} does not take 2×3: " in capsys.readouterr().err
    (tmp_path / "script.py").write_text("import sys\ndef build(): sys.exit(0)\n", encoding="utf-8")
    (tmp_path / "all.py").write_text("import sys\nsys.exit(0)\n", encoding="utf-8")
    for where, words in (("script", "build raised SystemExit: 0"), ("all", "cannot be imported: SystemExit: 0")):
        assert cli.run(stage.main, [f"{tmp_path / where}.py:build", *arguments[1:]]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


OPERATORS = """
import torch

@torch.library.custom_op("other_operators::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x

@double.register_fake
def _(x):
    return torch.empty_like(x)
"""


def test_the_package_of_an_operator_is_kept_and_imported(tmp_path: Path):
    (tmp_path / "some_operators.py").write_text(OPERATORS, encoding="utf-8")
    for child, code in (
        (
            "adopt",
            "import some_operators, torch, stn_export\nfrom tests.stateful import OtherOperator\n"
            f"stn_export.adopt(OtherOperator().eval(), {{'x': torch.rand(4, 3)}}, run={str(tmp_path / 'run')!r})",
        ),
        (
            "load",
            "import torch\nfrom pathlib import Path\nfrom stn_export.errors import UserError\n"
            "from stn_export.program.program import load_program\n"
            f"path = Path({str(tmp_path / 'run' / 'run' / 'program.pt2')!r})\n"
            "try: print(load_program(path).run((torch.ones(1, 3),)))\nexcept UserError as error: print(error)",
        ),
    ):
        paths = f"{tmp_path}:{Path(__file__).parent.parent}" if child == "adopt" else str(tmp_path)
        environment = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", env=environment)
        assert result.returncode == 0, result.stderr[-2000:]
    assert "tensor([[3., 3., 3.]])" in result.stdout
    (tmp_path / "some_operators.py").unlink()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", env=environment)
    assert "needs operators of other_operators, and some_operators cannot be imported: ModuleNotFound" in result.stdout
    assert "hint: install some_operators" in result.stdout


class Converted(nn.Module):
    """Runs, and cannot be compiled in one piece: it breaks off the graph."""

    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return 2 * x


def test_what_torch_compile_does_not_take_is_left_out_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = stn_export.adopt(nn.Linear(3, 2).eval(), {"input": torch.rand(4, 3)}, run=tmp_path / "run")
    path = found.written[0] / "program.pt2"
    monkeypatch.setattr(Program, "own_module", lambda self: Converted().eval())
    runner = Compiled(path, "cpu", found.program.contract)
    with pytest.raises(RefusedError, match=r"torch\.compile cannot compile it: "):
        runner.infer({"input": np.ones((2, 3), np.float32)})


def test_what_is_put_to_a_network_at_once_follows_from_its_activations(monkeypatch: pytest.MonkeyPatch):
    module = memory_table.convolutions(32, 1).eval()
    found = stn_export.adopt(module, {"input": ("N", 3, 64, 64)})
    program = found.program
    assert program is not None
    assert sum(value.numel() for value in module.parameters()) > 10_000
    activation = 32 * 64 * 64 * 8  # bytes of one layer's, in float64
    windows = 9 * activation
    assert 2 <= program.most_examples <= PROBE_BYTES // (activation + min(windows, WINDOW_BYTES))
    batches = challenges(program.contract, found.examples, program.most_examples)
    fixed = {"constants", "single pixels"}
    assert max(size_of(batch, program.contract) for name, batch in batches.items() if name not in fixed) <= max(
        MANY, program.most_examples
    )
    values = (torch.rand(5, 3, 64, 64),)
    wanted = program.exact.points(values)["output"]
    monkeypatch.setattr("stn_export.program.passes.WINDOW_BYTES", 1)
    assert torch.equal(program.exact.points(values)["output"], wanted)
