"""Networks that exports were tried on: equal to a fresh module in ONNX Runtime, or refused in one true line."""

import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree

import stn_export
from stn_export.errors import UserError
from stn_export.export import running
from stn_export.export.finish import name_ends
from stn_export.export.onnx import export_onnx
from stn_export.program import capture as capturing
from stn_export.program.capture import capture
from stn_export.program.sites import not_looked_into
from stn_export.program.specs import Given
from tests.exportable import EXPORTABLE, Applied, Row, Siamese
from tests.foreign import Volume
from tests.test_onnx_export import session_of
from tests.zoo import ZOO

BATCHES = (2, 3, 1)
CHOSEN = pytest.mark.parametrize("name", EXPORTABLE)


def row(name: str) -> Row:
    found = EXPORTABLE[name]
    if found.package and importlib.util.find_spec(found.package) is None:
        pytest.skip(f"{found.package} is not installed")
    return found


def worst(session: object, fresh: Callable[[], nn.Module], inputs: Sequence[Tensor]) -> float:
    """The largest difference of any output from a fresh module's, by its largest value; infinite for another shape."""
    feeds = {each.name: value.numpy() for each, value in zip(session.get_inputs(), inputs, strict=True)}
    with torch.no_grad():
        wanted = [np.asarray(each) for each in _pytree.tree_leaves(fresh()(*inputs))]
    differences = []
    for actual, expected in zip(session.run(None, feeds), wanted, strict=True):
        if actual.shape != expected.shape or actual.dtype != expected.dtype:
            return np.inf
        finite = np.isfinite(expected)
        if not np.array_equal(actual[~finite], expected[~finite], equal_nan=True):
            return np.inf
        off = np.abs(actual[finite].astype(float) - expected[finite].astype(float)).max(initial=0)
        differences.append(off / max(1.0, np.abs(expected[finite].astype(float)).max(initial=0)))
    return max(differences)


@CHOSEN
def test_each_equals_a_fresh_module_at_other_batches_or_is_refused(name: str):
    network = row(name)
    if network.refused:
        with pytest.raises(UserError, match=network.refused) as found:
            export_onnx(network.module(), network.example(2), **network.options)
        assert "\n" not in found.value.message + found.value.hint
        assert "\x1b" not in found.value.message
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = export_onnx(network.module(), network.example(2), **network.options)
    assert {"is fixed at 2" in str(each.message) for each in said} == ({True} if network.fixed else set())
    session = session_of(model)
    opened = {str(size) for each in session.get_inputs() for size in each.shape if isinstance(size, str)}
    assert opened == (set() if network.fixed else {"batch"})
    for count in BATCHES[:1] if network.fixed else BATCHES:
        assert worst(session, network.module, network.example(count)) < 2e-5


@pytest.mark.slow
@CHOSEN
@pytest.mark.filterwarnings("ignore")
def test_none_is_lost_that_pytorch_manages(name: str):
    """``torch.onnx.export`` of the same, its batch open: what is refused here is not right there either."""
    network = row(name)
    try:
        dims = tuple({0: Dim.DYNAMIC} for _ in network.shapes)
        made = torch.onnx.export(
            network.module(), network.example(2), dynamo=True, verbose=False, dynamic_shapes=dims, **network.options
        )
        session = session_of(made.model_proto)
        right = all(worst(session, network.module, network.example(count)) < 2e-5 for count in BATCHES)
    except Exception:  # whatever it raises, the file is lost
        right = False
    assert not (right and (network.refused or network.fixed))


@pytest.mark.parametrize(
    "name", [name if name == "GreyDigits" else pytest.param(name, marks=pytest.mark.slow) for name in ZOO]
)
def test_each_of_the_zoo(name: str):
    foreign = ZOO[name]
    session = session_of(export_onnx(foreign.build(), foreign.values(2)))
    for count in (2, 3, 1):
        assert worst(session, foreign.build, foreign.values(count, seed=count)) < 1e-4


def test_names_come_from_what_forward_gives():
    def names(function: Callable, **options: object) -> list[str]:
        model = export_onnx(Applied(function).eval(), torch.rand(2, 3), verify=False, **options)
        return [each.name for each in (*model.graph.input, *model.graph.output)]

    assert names(lambda x: x + 1) == ["x", "output"]
    assert names(lambda x: (x + 1, [x, x])) == ["x", "output0", "output1_0", "output1_1"]
    assert names(lambda x: {"x": x, "a b": x, "a_b": x}) == ["x", "x_output", "a_b", "a_b2"]
    assert names(lambda x: x.relu(), output_names=["x_inner"]) == ["x", "x_inner"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_names": ["x"]}, "'x' names two"),
        ({"output_names": ["a", "b"]}, "2 outputs are named, there are 1"),
        ({"input_names": []}, None),
        ({"input_names": ["a", "b"]}, "2 inputs are named, there are 1"),
    ],
)
def test_names_that_cannot_be_are_refused(options: dict, message: str | None):
    module, inputs = Applied(lambda x: x + 1).eval(), torch.rand(2, 3)
    if message is None:
        assert export_onnx(module, inputs, **options).graph.input[0].name == "x"
        return
    with pytest.raises(UserError, match=message):
        export_onnx(module, inputs, **options)


def test_values_inside_keep_out_of_the_way_of_names():
    model = export_onnx(Applied(lambda x: x.relu() * 2).eval(), torch.rand(2, 3), output_names=["relu"])
    produced = [name for node in model.graph.node for name in node.output]
    assert len(produced) == len(set(produced))
    assert model.graph.node[-1].output[0] == "relu"


def test_a_file_that_answers_otherwise_is_not_given_unless_it_is_asked_for():
    network = EXPORTABLE["antialiased"]
    model = export_onnx(network.module(), network.example(2), verify=False)
    assert worst(session_of(model), network.module, network.example(2)) > 0.05


def spoiled(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Let every Mul by 2 of the files to come multiply by another number."""
    load = running.cpu_session

    def session(model: onnx.ModelProto, **settings: object) -> object:
        changed = onnx.ModelProto.FromString(model.SerializeToString())
        for each in changed.graph.initializer:
            if onnx.numpy_helper.to_array(each).size == 1:
                each.CopyFrom(
                    onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(each) * np.float32(factor), each.name)
                )
        return load(changed, **settings)

    monkeypatch.setattr(running, "cpu_session", session)


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.00001, True), (1.001, False)])
def test_the_run_tells_a_thousandth(factor: float, passes: bool, monkeypatch: pytest.MonkeyPatch):
    spoiled(monkeypatch, factor)
    module, inputs = Applied(lambda x: x * 2.5).eval(), torch.rand(2, 3)
    if passes:
        assert export_onnx(module, inputs)
    else:
        with pytest.raises(UserError, match=r"answers otherwise than in PyTorch: output is 0\.00\d+ off"):
            export_onnx(module, inputs)


def test_what_roundings_move_is_allowed(monkeypatch: pytest.MonkeyPatch):
    """Values near a step: a rounding of the input turns the answer over in eager, and one of a factor in the file."""
    spoiled(monkeypatch, 1.0000003)
    module = Applied(lambda x: ((x * 2.5e6).sin() > 0).float()).eval()
    assert export_onnx(module, torch.rand(2, 64, generator=torch.Generator().manual_seed(0)))


def test_nothing_of_the_module_or_the_inputs_changes():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))
            self.calls: list[int] = []

        def forward(self, x: Tensor) -> Tensor:
            self.calls.append(x.shape[0])
            self.seen += 1
            x *= 2
            return x + 1

    module, inputs = Counting().eval(), torch.rand(2, 3)
    before = inputs.clone()
    with pytest.warns(UserWarning, match="Counting keeps"):
        export_onnx(module, inputs)
    assert module.calls == []
    assert module.seen == 0
    assert torch.equal(inputs, before)


def test_what_an_answer_depends_on_between_calls_is_refused():
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("last", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            answer = x + self.last
            self.last = x[-1].clone()
            return answer

    with pytest.raises(UserError, match="depends on calls before: it keeps buffer last"):
        export_onnx(Remembering().eval(), torch.rand(2, 3))


@pytest.mark.parametrize("apart", [lambda x: x.chunk(2), lambda x: x.split(x.shape[0] // 2)], ids=["chunk", "split"])
def test_two_inputs_joined_and_taken_apart_have_one_batch(apart: Callable):
    inputs = (torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5))
    found = capture(Siamese(apart).eval(), inputs, [("N", 3, 4, 5)] * 2)
    assert [shape[0] for shape in found.shapes] == ["N", "N"]
    for count in (1, 3):
        given = torch.rand(2, count, 3, 4, 5)
        assert found.exported.module(check_guards=False)(*given).shape == (count, 20, 20)


class Joined(nn.Module):
    """Takes its parts by the first input's size."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        one, other = torch.split(torch.cat([first, second]), [first.shape[0]] * 2)
        return one + other


def test_batches_that_are_two_numbers_are_fixed_and_that_is_said(monkeypatch: pytest.MonkeyPatch):
    """What PyTorch does by itself: it never learns that the parts are as large as the second input."""
    monkeypatch.setattr(capturing, "_with_equal_sizes", lambda module, shapes: module)
    module = Joined().eval()
    found = capture(module, (torch.rand(2, 3), torch.rand(2, 3)), [("N", 3)] * 2)
    assert [shape[0] for shape in found.shapes] == [2, 2]
    assert "not one number" in found.problem


def test_a_graph_that_has_the_examples_batch_inside_does_not_run_at_others():
    example = (torch.rand(2, 3),)
    exported = torch.export.export(Applied(lambda x: x.view(2, 3) * 2).eval(), example)
    assert "batch of 1" in capturing._refuted(capturing.Captured(exported, (("N", 3),)), [("N", 3)], example)
    assert not capturing._refuted(capturing.Captured(exported, ((2, 3),)), [("N", 3)], example)


def test_outputs_that_are_one_value_or_an_input_become_identities():
    value = onnx_ir.val("x", onnx_ir.DataType.FLOAT, [2])
    node = onnx_ir.node("Relu", [value])
    node.outputs[0].name = "b"
    outputs = [node.outputs[0], value, node.outputs[0]]
    graph = onnx_ir.Graph([value], outputs, nodes=[node], opset_imports={"": 18}, name="g")
    name_ends(onnx_ir.Model(graph, ir_version=10), ["x"], ["a", "b", "c"])
    assert [each.name for each in graph.outputs] == ["a", "b", "c"]
    assert [each.op_type for each in graph] == ["Relu", "Identity", "Identity"]


def test_it_is_captured_once(monkeypatch: pytest.MonkeyPatch):
    calls, own = [], torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *a, **k: calls.append(1) or own(*a, **k))
    foreign = ZOO["GreyDigits"]
    export_onnx(foreign.build(), foreign.values(2))
    assert len(calls) == 1


def test_deformable_convolutions_choose_their_opset_and_are_named():
    network = row("deformed")
    assert export_onnx(network.module(), network.example(2)).opset_import[0].version == 19
    with pytest.raises(UserError, match="opset 18 has no DeformConv"):
        export_onnx(network.module(), network.example(2), opset=18)
    graph = capture(network.module(), network.example(2), [(2, 3, 8, 9)]).exported.graph
    [sentence] = not_looked_into(graph)
    assert sentence.startswith("deform_conv2d in ")
    assert sentence.endswith("not looked into, outputs compared")


def test_samplers_of_volumes_are_named():
    captured = capture(Volume().eval(), Volume.inputs, [tuple(each.shape) for each in Volume.inputs])
    assert ["grid_sample of volumes in " in each for each in not_looked_into(captured.exported.graph)] == [True]


def test_adoption_says_what_is_not_looked_into():
    notes = stn_export.adopt(Volume().eval(), Given.of(Volume.inputs, {})).notes
    assert [note for note in notes if "grid_sample of volumes in " in note and "not looked into" in note]


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_torchvision_may_be_imported_after_an_export():
    code = """
import torch, stn_export
from torch import nn
stn_export.export_onnx(nn.ReLU().eval(), torch.rand(2, 3))
import torchvision
class Boxes(nn.Module):
    def forward(self, boxes, scores):
        return torchvision.ops.nms(boxes, scores, 0.5)
boxes = torch.tensor([[0., 0, 4, 4], [0, 0, 4, 5], [5, 5, 9, 9]])
stn_export.export_onnx(Boxes().eval(), (boxes, torch.rand(3)), dynamic_batch=False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_error_says_where():
    with pytest.raises(UserError, match=r"ONNX has no translation of aten\.\w*eigh\w* at .*\(exportable\.py:\d+\)"):
        export_onnx(EXPORTABLE["no translation"].module(), EXPORTABLE["no translation"].example(2))


@pytest.mark.parametrize("lowering", ["matmul", "gather"])
def test_the_table_serves_a_call_of_ones_own(lowering: str):
    foreign = ZOO["GreyDigits"]
    made = torch.onnx.export(
        foreign.build(),
        foreign.values(2),
        dynamo=True,
        verbose=False,
        opset_version=18,
        custom_translation_table=stn_export.translations(lowering),
    )
    operators = {node.op_type for node in made.model_proto.graph.node}
    assert ("GridSample" in operators) == (lowering == "matmul")
    assert "ReduceSum" not in operators
    assert worst(session_of(made.model_proto), foreign.build, foreign.values(2)) < 2e-5
    with pytest.raises(UserError, match="unknown lowering 'best'"):
        stn_export.translations("best")
