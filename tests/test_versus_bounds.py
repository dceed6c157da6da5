"""Two files against each other: none is called equal that differs, and no file differs from itself."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stn_export import cli
from stn_export.errors import UserError
from stn_export.program.specs import Contract
from stn_export.results.tolerances import RESAMPLED, TOLERANCES, WARPED
from stn_export.verify import __main__ as verify
from stn_export.verify.bounds import Asked, allowance, channel_axes, movement, rounded, scales
from stn_export.verify.file_comparison import Row, compare_files, compare_output
from stn_export.verify.foreign_files import FURTHEST, Span, covering, open_side, span_of

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
WHOLE = [getattr(TensorProto, f"{kind}INT{bits}") for kind in ("", "U") for bits in (8, 16, 32, 64)]
F, I64 = TensorProto.FLOAT, TensorProto.INT64
Nodes = list[onnx.NodeProto]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an ONNX file of nodes from ``x`` to ``y``."""

    def write(
        name: str,
        nodes: Nodes,
        shape: tuple = ("N", 4),
        kind: int = F,
        gives: int | None = None,
        metadata: dict[str, str] | None = None,
        **weights: np.ndarray,
    ) -> Path:
        graph = helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("x", kind, shape)],
            [helper.make_tensor_value_info("y", gives or kind, None)],
            [numpy_helper.from_array(value, each) for each, value in weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        helper.set_model_props(model, metadata or {})
        onnx.save(model, tmp_path / f"{name}.onnx")
        return tmp_path / f"{name}.onnx"

    return write


def node(operator: str, *inputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, [*inputs] or ["x"], ["y"], **attributes)


def run(*arguments: object) -> int:
    return cli.run(verify.main, [*map(str, arguments)])


def verdicts(left: Path, right: Path, **options: object) -> set[str]:
    return {row.verdict for row in compare_files(left, right, **options)}


def clip(low: float, high: float) -> dict[str, np.ndarray]:
    return {"low": np.array(low, np.float32), "high": np.array(high, np.float32)}


def test_clips_that_the_unit_interval_does_not_show(write: Write):
    relu, same = write("relu", [node("Relu")]), write("same", [node("Identity")])
    six = write("six", [node("Clip", "x", "low", "high")], **clip(0, 6))
    one = write("one", [node("Clip", "x", "low", "high")], **clip(-1, 1))
    wide = write("wide", [node("Clip", "x", "low", "high")], **clip(-999, 999))
    for left, right in ((six, relu), (relu, six), (one, same), (same, one)):
        assert "DIFFERENT" in verdicts(left, right)
    assert verdicts(wide, same) == {"equal", "DIFFERENT"}  # only the widest range shows it
    assert run(six, relu) == 1


def embedded(write: Write, name: str, rows: np.ndarray, **options: object) -> Path:
    nodes = [helper.make_node("Gather", ["rows", "x"], ["y"])]
    return write(name, nodes, ("N", 3), I64, F, rows=rows.astype(np.float32), **options)


def test_embeddings_that_differ_from_the_third_row_on(write: Write):
    rows = np.random.default_rng(0).normal(size=(500, 8))
    other, last = rows.copy(), rows.copy()
    other[2:] += 0.1
    last[-1] *= 1.01
    good = embedded(write, "good", rows)
    for name, changed in (("other", other), ("last", last)):
        found = compare_files(embedded(write, name, changed), good)
        assert "DIFFERENT" in {row.verdict for row in found}
        assert any(row.inputs.startswith("x -500 to 499, all, ") for row in found)
    assert verdicts(good, good) == {"equal"}
    short = compare_files(embedded(write, "short", rows[:400]), good)
    assert "takes x up to 399 instead of 499" in {row.reason for row in short}


def test_an_fp16_file_of_embeddings_is_not_equal(write: Write):
    """Their last layer cancels: in half precision some of them are 46 % off."""
    random = np.random.default_rng(1)
    weight = random.normal(size=(32, 96)).astype(np.float32)
    shape = np.array([0, 1, 1, 96])

    def path(name: str, weight: np.ndarray, **metadata: str) -> Path:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), node("Reshape", "m", "s")]
        return write(name, nodes, ("N", 32), metadata=metadata, w=weight, s=shape)

    contract = {"inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 32]}], "outputs": []}
    contract["outputs"] = [{"name": "y", "dtype": "float32", "shape": ["N", 1, 1, 96]}]
    good, half = path("good", weight), path("half", weight.astype(np.float16).astype(np.float32))
    claims = path("claims", weight * np.float32(1.02), precision='"bf16"', contract=json.dumps(contract))
    rows = compare_files(half, good)
    assert {row.verdict for row in rows} == {"DIFFERENT"}
    assert all(row.bound < 1e-2 * row.max_abs / 2e-4 for row in rows)
    assert verdicts(claims, good) == {"DIFFERENT"}
    assert verdicts(claims, good, asked=Asked("bf16")) == {"within bounds"}
    assert verdicts(good, good) == {"equal"}


def test_what_a_file_says_of_itself_is_told_and_not_believed(write: Write, capsys: pytest.CaptureFixture[str]):
    sides = {"inputs": "x", "outputs": "y"}
    contract = {side: [{"name": name, "dtype": "float32", "shape": ["N", 4]}] for side, name in sides.items()}
    said = {"precision": '"fp16"', "contract": json.dumps(contract)}
    same = write("same", [node("Identity")])
    off = write("off", [node("Mul", "x", "k")], metadata=said, k=np.array(1.001, np.float32))
    assert run(off, same) == 1
    assert "is judged as fp32: that it is fp16 it says itself only" in capsys.readouterr().out
    assert run(off, same, "--precision", "fp16") == 0
    assert "says itself" not in capsys.readouterr().out
    assert run(off, same, "--precision", "fp17") == 2


def test_convolution_weights_a_thousandth_larger(write: Write):
    weight = np.random.default_rng(2).normal(size=(4, 3, 3, 3)).astype(np.float32)
    good, other = (
        write(name, [node("Conv", "x", "w")], ("N", 3, 9, 9), w=weight * np.float32(by))
        for name, by in (("good", 1), ("other", 1.001))
    )
    assert "DIFFERENT" in verdicts(other, good)
    rows = compare_files(other, good)
    assert all(row.reason for row in rows)
    assert all(row.bound <= 1.1 * (5.6e-6 + 8e-5) * 1e3 * np.abs(weight).sum() for row in rows)


@pytest.mark.parametrize("axis", [1, 3])
def test_a_large_channel_hides_no_other(axis: int, write: Write):
    gain = np.ones((1, 2, 1, 1) if axis == 1 else (1, 1, 1, 96), np.float32)
    gain.flat[0] = 1e6
    off = gain.copy()
    off.flat[1] = 1.01
    good, other = (
        write(name, [node("Mul", "x", "k")], ("N", *([2, 5, 5] if axis == 1 else [1, 1, 96])), k=each)
        for name, each in (("good", gain), ("other", off))
    )
    assert all(row.reason for row in compare_files(other, good))
    assert verdicts(good, good) == {"equal"}


def test_sums_in_another_order_are_equal(write: Write):
    """What float32 loses where large numbers cancel is no difference: here 1000 times as much as the output's own."""
    weight = np.random.default_rng(3).normal(size=(64, 5)).astype(np.float32)
    order = np.random.default_rng(4).permutation(64)
    body = [helper.make_node("MatMul", ["x", "w"], ["m"]), node("Sub", "m", "c")]
    offset = np.full(5, 3e4, np.float32)
    large = [helper.make_node(*each) for each in (("MatMul", ["x", "w"], ["m"]), ("Add", ["m", "c"], ["n"]))]
    large.append(node("Sub", "n", "c"))
    plain = write("plain", body, ("N", 64), w=weight, c=np.zeros(5, np.float32))
    taken = [helper.make_node("Gather", ["x", "o"], ["g"], axis=1), helper.make_node("MatMul", ["g", "w"], ["y"])]
    other = write("other", taken, ("N", 64), w=weight[order], o=order)
    assert verdicts(other, plain) == {"equal"}
    assert "DIFFERENT" in verdicts(write("lossy", large, ("N", 64), w=weight, c=offset), plain)


@pytest.mark.parametrize("kind", [*FLOATS, *WHOLE, TensorProto.BOOL], ids=TensorProto.DataType.Name)
def test_a_file_equals_itself(kind: int, write: Write):
    same = write("same", [node("Identity")], kind=kind)
    rows = compare_files(same, same)
    assert {row.verdict for row in rows} == {"equal"}
    assert len(rows) >= 3


@pytest.mark.parametrize(("kind", "exit_code"), [(TensorProto.STRING, 2), (TensorProto.BFLOAT16, 2)])
def test_inputs_that_cannot_be_made_are_not_comparable(kind: int, exit_code: int, write: Write):
    same = write("same", [node("Identity")], kind=kind)
    assert run(same, same) == exit_code


def test_where_nothing_runs_a_file_is_not_comparable_with_itself(write: Write, capsys: pytest.CaptureFixture[str]):
    fixed = write("fixed", [node("Reshape", "x", "s")], ("N", 4), s=np.array([3, 5]))
    lost = write("lost", [node("Div", "z", "z")], z=np.zeros(3, np.float32))
    assert run(fixed, fixed) == 2
    err = capsys.readouterr().err
    assert "not comparable: neither runs" in err
    assert "give inputs that both run on with --inputs FILE.npz" in err
    assert run(lost, lost) == 2
    assert "not comparable: y: there was nothing to compare: no element is finite" in capsys.readouterr().err


def test_one_output_that_is_nowhere_finite_is_not_hidden_by_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = '<ir_version: 8, opset_import: ["" : 17]> graph (float[N,4] x) => (float[N,4] y, float[N,4] lost) { BODY }'
    body = "y = Identity (x) z = Sub (x, x) lost = Div (z, z)"
    onnx.save(onnx.parser.parse_model(text.replace("BODY", body)), tmp_path / "a.onnx")
    assert run(tmp_path / "a.onnx", tmp_path / "a.onnx") == 2
    assert "not comparable: lost: there was nothing to compare" in capsys.readouterr().err


def test_equal_places_that_are_not_finite_are_equal_and_others_are_compared(write: Write):
    good = write("good", [node("Log")])
    assert verdicts(good, good) <= {"equal", "not compared"}
    nodes = [helper.make_node("Log", ["x"], ["l"]), node("Mul", "l", "k")]
    other = write("other", nodes, k=np.array(1.01, np.float32))
    assert "DIFFERENT" in verdicts(other, good)
    zero = [helper.make_node("Abs", ["x"], ["p"]), node("Log", "p")]
    assert "DIFFERENT" in verdicts(write("finite", zero), good)


def test_a_file_that_rolls_dice_is_not_comparable(write: Write, capsys: pytest.CaptureFixture[str]):
    dice = [write(f"dice{seed}", [node("RandomUniformLike", "x", seed=float(seed))]) for seed in (1, 2)]
    assert run(*dice) == 2
    assert "answers the same inputs otherwise each time" in capsys.readouterr().err


def test_plain_bounds_replace_all_others(write: Write, capsys: pytest.CaptureFixture[str]):
    same = write("same", [node("Identity")])
    off = write("off", [node("Add", "x", "k")], k=np.array(0.1, np.float32))
    far = write("far", [node("Mul", "x", "k")], k=np.array(1.01, np.float32))
    assert run(off, same, "--atol", "0.11") == 0
    assert "as asked: |a - b| <= 0.11 + 0 |b|" in capsys.readouterr().out
    assert run(off, same, "--atol", "0.09") == 1
    assert run(far, same, "--rtol", "0.011") == 0
    assert run(far, same, "--atol", "0.011") == 1  # at inputs of 1000 it is 10 off
    assert run("--run", "nowhere", "--atol", "1") == 2
    assert "are for two files or two runs" in capsys.readouterr().err
    assert run(off, same, "--rtol", "-1") == 2


def test_the_bound_that_is_shown_is_the_bound_that_is_used(write: Write):
    same = write("same", [node("Identity")], ("N", 1, 1, 4))
    for row in compare_files(same, same):
        assert row.rule == "fp32: |a - b| <= 5.6e-06 max |b| of its channel + 8e-05 |b|"
    values = np.full((3, 1, 1, 4), 2.0, np.float32)
    allowed = allowance(values, "output", "fp32", Asked())
    assert allowed.most(values) == pytest.approx(5.6e-6 * 2 + 8e-5 * 2)
    for factor, passes in ((0.99, True), (1.05, False)):
        off = values.astype(np.float64) + factor * allowed.most(values)
        assert bool(compare_output(off.astype(np.float32), values, "fp32", "y", "in", allowed).reason) is not passes


def test_scales_are_those_of_the_channels():
    images, table = np.zeros((2, 3, 4, 4)), np.zeros((5, 3))
    images[:, 0], images[0, 1, 0, 0], table[:, 0], table[0, 1] = 1e6, 7.0, 50.0, 1e-9
    assert scales(images).ravel().tolist() == [1e6, 7.0, 1.0]
    assert scales(table).ravel().tolist() == [50.0, 1.0, 1.0]  # log-probabilities close to zero are rounded at 1
    assert scales(1e-3 * table).ravel().tolist() == pytest.approx([0.05, 0.05, 0.05])
    assert [channel_axes(shape) for shape in ((3,), (3, 5), (3, 5, 7), (3, 5, 7, 9), (3, 1, 1, 96), (3, 1, 7, 9))] == [
        (),
        (1,),
        (1, 2),
        (1,),
        (3,),
        (),
    ]
    infinite = np.array([[1.0, np.inf], [2.0, np.nan]])
    assert scales(infinite).ravel().tolist() == [2.0, 1.0]


def test_only_what_is_known_to_be_an_image_is_judged_as_one():
    values = np.ones((2, 3, 64, 16), np.float32)
    rooms = {
        kind: float(np.max(allowance(values, kind, "fp32", Asked()).room)) for kind in ("output", RESAMPLED, WARPED)
    }
    tolerance = TOLERANCES["fp32"]
    assert rooms["output"] == pytest.approx(16 * tolerance.output.absolute)
    assert rooms[RESAMPLED] == pytest.approx(2 * 16 * tolerance.resampled.absolute)  # 64 pixels
    assert rooms[WARPED] == pytest.approx(2 * 16 * tolerance.warped.absolute)


def test_half_precision_outputs_are_told_apart_by_their_own_roundings():
    values = np.ones((2, 4), np.float16)
    assert allowance(values, "output", "fp32", Asked()).bound.relative == pytest.approx(2 * 2**-10)


def test_a_movement_is_what_a_channel_moves_without_jumps():
    values = np.zeros((1, 2, 20, 20), np.float32)
    near, far = values.copy(), values.copy()
    near[0, 0, :3, 0], far[0, 0, :3, 0] = [1e-3, 2e-3, 0], [4e-3, 8e-3, 5.0]
    near[0, 1, 0, 0] = far[0, 1, 0, 0] = 5.0  # jumps
    assert movement(values, [(near, far)]).ravel().tolist() == pytest.approx([2e-3, 0.0])
    near[:, 0] = far[:, 0] = np.inf
    assert movement(values, [(near, far)]).ravel().tolist() == [0.0, 0.0]
    feeds = {"x": np.array([1.0, -1e3, 0.0], np.float32), "ids": np.array([5])}
    other = rounded(feeds, 0)
    assert np.abs(other["x"][:2].astype(np.float64) / [1, -1e3] - 1) == pytest.approx(2.0**-22, abs=2.0**-23)
    assert other["x"][2] == 0
    assert other["ids"].tolist() == [5]
    assert other["x"].dtype == np.float32


def test_a_span_is_found_by_trying(write: Write):
    contract = whole_contract(write)
    spec = contract.inputs[0]
    for low, high in ((0, 0), (0, 1), (-7, 6), (0, 99), (1, 30521)):
        found = span_of(spec, contract, lambda batch, low=low, high=high: low <= int(batch["x"].max()) <= high)
        assert found == Span(low, high)
    assert span_of(spec, contract, lambda batch: True) == Span(-FURTHEST, FURTHEST)
    assert span_of(spec, contract, lambda batch: False) is None


def whole_contract(write: Write) -> Contract:
    return open_side(write("ids", [node("Identity")], ("N", 3), I64)).contract


def test_every_number_of_a_span_is_tried(write: Write):
    contract = whole_contract(write)
    for span in (Span(0, 1), Span(-5, 499), Span(0, 30521)):
        batches = list(covering(contract.inputs[0], contract, span))
        values = np.concatenate([batch["x"].numpy().ravel() for _, batch in batches])
        assert set(values.tolist()) == set(range(span.low, span.high + 1))
        assert ", all, " in batches[0][0]
    batches = list(covering(contract.inputs[0], contract, Span(0, FURTHEST)))
    values = np.concatenate([batch["x"].numpy().ravel() for _, batch in batches])
    assert {0, FURTHEST} <= set(values.tolist())
    assert f"of {FURTHEST + 1}, " in batches[0][0]


def test_a_row_says_what_it_came_to():
    assert Row("y", "in", rule="fp32: …").verdict == "equal"
    assert Row("y", "in", reason="off").verdict == "DIFFERENT"
    assert Row("y", "in", reason="off", comparable=False).verdict == "not comparable"
    said = Row("y", "in", note="there was nothing to compare")
    assert (said.verdict, said.as_dict()["passed"]) == ("not compared", None)


def test_an_unknown_precision_is_refused():
    with pytest.raises(UserError, match="unknown precision 'fp17'"):
        Asked("fp17")
