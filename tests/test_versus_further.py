"""Two files that differ at other sizes, in other ranges or in a branch only, and outputs that say nothing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import stn_export
from stn_export import cli
from stn_export.errors import UserError
from stn_export.program.specs import Contract, TensorSpec
from stn_export.verify import __main__ as verify
from stn_export.verify import file_comparison
from stn_export.verify.bounds import Row, Still, quiet, settled
from stn_export.verify.challenges import other_sizes
from stn_export.verify.file_comparison import compare_files

IMAGES = "(float[N,3,H,W] x) => (float[N,C,P,Q] y)"
VECTORS = "(float[N,4] x) => (float[N,4] y)"
Write = Callable[[str, str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an ONNX model given as text: its file name, signature and body."""

    def write(name: str, signature: str, body: str) -> Path:
        text = f'<ir_version: 9, opset_import: ["" : 20]> graph {signature} {{ {body} }}'
        onnx.save(onnx.parser.parse_model(text), tmp_path / f"{name}.onnx")
        return tmp_path / f"{name}.onnx"

    return write


def run(*arguments: object) -> int:
    return cli.run(verify.main, [*map(str, arguments)])


# Other sizes.


def warp(write: Write, name: str, last: str) -> Path:
    """A bilinear warp along the columns that divides by ``last`` where it should by the last column's number."""
    body = f"""
        two = Constant <value = float {{2.0}}> () one = Constant <value = float {{1.0}}> ()
        width = Shape <start = 3, end = 4> (x) whole = Cast <to = 1> (width)
        last = {last}
        scaled = Mul (flow, two) shifted = Div (scaled, last) grid = Sub (shifted, one)
        y = GridSample <align_corners = 1> (x, grid)"""
    return write(name, "(float[N,3,H,W] x, float[N,H,W,2] flow) => (float[N,C,P,Q] y)", body)


def test_a_baked_in_width_is_seen_at_other_sizes(write: Write):
    good, baked = warp(write, "good", "Sub (whole, one)"), warp(write, "baked", "Constant <value = float {31.0}> ()")
    assert not any(row.reason for row in compare_files(good, good))
    rows = compare_files(baked, good)
    assert not any(row.reason for row in rows if "×3×32×32" in row.inputs)
    assert any(row.reason for row in rows if "larger size" in row.inputs)


def test_outputs_of_another_shape_at_an_odd_size(write: Write, capsys: pytest.CaptureFixture[str]):
    floor, ceiling = (
        write(f"pool{mode}", IMAGES, f"y = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = {mode}> (x)")
        for mode in (0, 1)
    )
    assert run(floor, ceiling) == 1
    assert "shape (2, 3, 16, 16) instead of (2, 3, 17, 17)" in capsys.readouterr().err
    assert run(floor, floor) == 0


@pytest.mark.parametrize("axis", [2, 3])
def test_what_holds_for_large_images_only(axis: int, write: Write):
    body = f"""
        most = Constant <value = int64[1] {{32}}> () step = Constant <value = float {{0.1}}> ()
        size = Shape <start = {axis}, end = {axis + 1}> (x) large = Greater (size, most) one = Cast <to = 1> (large)
        more = Mul (one, step) y = Add (x, more)"""
    big, same = write("big", IMAGES, body), write("same", IMAGES, "y = Identity (x)")
    wrong = {row.inputs.split(":")[0].split(", ")[-1] for row in compare_files(big, same) if row.reason}
    assert {"larger size", "odd size"} <= wrong
    assert "smaller size" not in wrong


def test_a_size_that_one_file_refuses(write: Write, capsys: pytest.CaptureFixture[str]):
    """Twice as coarse and back, which an odd size does not survive."""
    body = """
        shape = Constant <value_ints = [0, 3, -1, 16]> ()
        z = Reshape (x, shape) z2 = ReduceSum <keepdims = 0> (z) zero = Sub (z2, z2) y = Add (x, zero)"""
    picky, same = write("picky", IMAGES, body), write("same", IMAGES, "y = Identity (x)")
    assert run(same, picky) == 1
    err = capsys.readouterr().err
    assert "b fails at x=2×3×33×33" in err
    assert "a fails" not in err
    assert run(picky, same) == 1
    assert "a fails at x=2×3×33×33" in capsys.readouterr().err
    assert run(picky, picky) == 0
    assert "odd size: x 2×3×33×33: neither runs at this size" in " ".join(capsys.readouterr().out.split())


def test_sizes_twice_as_large_where_no_other_runs(write: Write):
    body = """
        shape = Constant <value_ints = [0, 3, -1, 1024]> () z = Reshape (x, shape) sum = ReduceSum <keepdims = 0> (z)
        zero = Sub (sum, sum) y = Add (x, zero)"""
    coarse = write("coarse", IMAGES, body)
    rows = compare_files(coarse, coarse)
    assert [row.verdict for row in rows if row.inputs.startswith("size 64")] == ["equal"]
    assert not any("only" in row.note or row.reason for row in rows)


def test_only_one_size_runs(write: Write, capsys: pytest.CaptureFixture[str]):
    body = "shape = Constant <value_ints = [-1, 3, 32, 32]> () c = Constant <value = float[1,3,32,32] {ONES}> () "
    body = body.replace("ONES", ", ".join(["1"] * 3 * 32 * 32)) + "y = Add (x, c)"
    baked = write("baked", IMAGES, body)
    assert run(baked, baked) == 0
    assert "compared at 32×32 only" in capsys.readouterr().out


def test_sizes_that_the_user_chose_are_the_only_ones(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    same = write("same", IMAGES, "y = Identity (x)")
    np.savez(tmp_path / "given.npz", x=np.random.default_rng(0).normal(size=(2, 3, 40, 48)).astype(np.float32))
    assert run(same, same, "--inputs", tmp_path / "given.npz") == 0
    out = capsys.readouterr().out
    assert "compared at 40×48 only, as --inputs gives it" in out
    assert "1 of 1 passed" in out


def test_no_time_for_other_sizes(write: Write, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file_comparison, "SPARE", 0.0)
    monkeypatch.setattr(file_comparison, "AGAIN", 0.0)
    same = write("same", IMAGES, "y = Identity (x)")
    rows = file_comparison.compare_here(same, same, None, False, file_comparison.ASKED)
    assert rows[-1].note == "compared at 32×32 only"
    assert "there was no time for it" in {row.note for row in rows}
    assert not any(row.reason for row in rows)


def test_sizes_change_together_and_apart():
    spec = TensorSpec("x", "float32", ("N", 3, "H", "W"))
    chosen = [tuple(sizes.values()) for _, sizes in other_sizes(Contract((spec,), ()))]
    assert chosen == [(24, 24), (40, 40), (33, 33), (40, 32), (32, 40)]
    text = TensorSpec("ids", "int64", ("N", "T"))
    assert [sizes for _, sizes in other_sizes(Contract((text,), ()))] == [{"T": 24}, {"T": 40}, {"T": 33}]
    assert not list(other_sizes(Contract((TensorSpec("x", "float32", ("N", 4)),), ())))
    unnamed = [TensorSpec(name, "float32", ("N", 3, f"{name}2", f"{name}3")) for name in ("x", "flow")]
    assert {"x2": 40, "x3": 32, "flow2": 40, "flow3": 32} in [
        sizes for _, sizes in other_sizes(Contract(tuple(unnamed), ()))
    ]


# Outputs that say nothing.


def relu_from(write: Write, start: float, signature: str = VECTORS) -> Path:
    body = f"k = Constant <value = float {{{start}}}> () d = Sub (x, k) y = Relu (d)"
    return write(f"relu{start:g}-{len(signature)}", signature, body)


@pytest.mark.parametrize("width", [1, 4])
def test_outputs_of_zero_everywhere_are_not_equal(width: int, write: Write, capsys: pytest.CaptureFixture[str]):
    signature = VECTORS.replace("4", str(width))
    one, other = relu_from(write, 2000.0, signature), relu_from(write, 3000.0, signature)
    assert run(one, other) == 2
    captured = capsys.readouterr()
    assert "says nothing: every output is 0" in captured.out
    assert "0 of " in captured.out
    assert "not comparable: y: says nothing: every output is 0" in captured.err
    assert "on which the outputs vary with --inputs FILE.npz" in captured.err
    with pytest.raises(UserError, match="not comparable: says nothing") as raised:
        stn_export.compare(one, other)
    assert f"stn-export verify {one} {other} --inputs FILE.npz" in raised.value.hint


def test_a_row_that_says_nothing_is_not_counted(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Behind a threshold of 500 only the widest range shows anything."""
    gated = relu_from(write, 500.0)
    verdicts = [row.verdict for row in compare_files(gated, gated)]
    assert "equal" in verdicts
    assert verdicts[:5] == ["says nothing: every output is 0"] * 5
    np.savez(tmp_path / "given.npz", x=np.linspace(1000, 9000, 8, dtype=np.float32).reshape(2, 4))
    one, other = relu_from(write, 2000.0), relu_from(write, 3000.0)
    assert run(one, other, "--inputs", tmp_path / "given.npz") == 1
    assert run(one, one, "--inputs", tmp_path / "given.npz") == 0


def test_a_bias_behind_nothing_says_nothing(write: Write):
    """Every example gives the same numbers, though not one number."""
    biased = [
        write(
            f"biased{start}",
            VECTORS,
            f"k = Constant <value = float {{{start}}}> () b = Constant <value = float[4] {{1.0, 2.0, 3.0, 4.0}}> () "
            "d = Sub (x, k) r = Relu (d) y = Add (r, b)",
        )
        for start in ("2000.0", "3000.0")
    ]
    assert not any(row.comparable for row in compare_files(*biased))
    assert {row.reason for row in compare_files(*biased)} == {"says nothing: every example gives the same"}


def test_a_number_for_all_examples(write: Write):
    """One number a row says something if it changes from row to row, and nothing if it never does."""
    signature, mean = "(float[N,4] x) => (float y)", "y = ReduceMean <keepdims = 0> (x)"
    alive = write("alive", signature, mean)
    assert {row.verdict for row in compare_files(alive, alive)} == {"equal"}
    dead = write("dead", signature, mean.replace("y =", "m =") + " l = Abs (m) n = Neg (l) y = Relu (n)")
    assert {row.reason for row in compare_files(dead, dead)} == {"says nothing: every output is 0"}
    rows = [Row("y", str(place), still=Still("1", str(place)), rule="fp32") for place in range(3)]
    assert [bool(row.reason) for row in settled(rows)] == [True] * 3
    assert not any(
        row.note or row.reason for row in settled([*rows, Row("y", "3", still=Still("2", "3"), rule="fp32")])
    )
    assert not any(row.note or row.reason for row in settled(rows[:1]))
    again = [Row("y", str(place), still=Still("1", "the same"), rule="fp32") for place in range(3)]
    assert not any(row.note or row.reason for row in settled(again))


def test_true_constants_may_be_equal(write: Write, capsys: pytest.CaptureFixture[str]):
    body = "d = Shape (x) c = ConstantOfShape <value = float[1] {%s}> (d) y = Abs (c)"
    one, two = (write(name, VECTORS, body % number) for name, number in (("one", "1.0"), ("two", "2.0")))
    assert run(one, one) == 0
    assert "an output that the inputs' values do not reach is the same constant in both" in capsys.readouterr().out
    assert run(one, two) == 1


def test_inputs_that_do_not_vary_and_values_that_do():
    zeros, noise = np.zeros((3, 4), np.float32), torch.arange(12.0).view(3, 4)
    passed = Row("y", "in", rule="fp32")
    assert quiet(passed, zeros, zeros, {"x": noise}).note == "says nothing: every output is 0"
    assert quiet(passed, zeros, zeros, {"x": torch.ones(3, 4)}) == passed
    assert quiet(passed, zeros + 1e-9 * noise.numpy(), zeros, {"x": noise}) == passed
    assert quiet(Row("y", "in", reason="off"), zeros, zeros, {"x": noise}).note == ""
    each = np.tile(np.arange(4.0), (3, 1))
    assert quiet(passed, each, each, {"x": noise}).note == "says nothing: every example gives the same"
    assert quiet(passed, each, each, {"x": noise[:1].repeat(3, 1)}) == passed
    assert "still" not in passed.as_dict()


def test_another_output_that_says_nothing_does_not_spoil_the_rest(write: Write, capsys: pytest.CaptureFixture[str]):
    signature = "(float[N,4] x) => (float[N,4] y, float[N,4] z)"
    both = write("both", signature, "k = Constant <value = float {2000.0}> () d = Sub (x, k) y = Neg (x) z = Relu (d)")
    assert run(both, both) == 0
    assert {row.note for row in compare_files(both, both) if row.output == "z"} == {"says nothing: every output is 0"}


# Ranges between.


@pytest.mark.parametrize("most", [50, 100, 200, 380, 900])
def test_thresholds_between_the_ranges(most: int, write: Write):
    """The sum of the ranges' ends: what is beyond a threshold is seen although the widest range shows nothing."""
    body = """
        zero = Constant <value = float {0.0}> () far = Constant <value = float {950.0}> ()
        size = Abs (x) top = ReduceMax <keepdims = 1> (size) near = Less (top, far) z = Where (near, x, zero) """
    good = write("good", VECTORS, body + "y = Identity (z)")
    limits = f"high = Constant <value = float {{{most}.0}}> () low = Neg (high) "
    clipped = write(f"clip{most}", VECTORS, body + limits + "y = Clip (z, low, high)")
    assert any(row.reason for row in compare_files(clipped, good)) == (most < 400)


# Branches.

BRANCHES = """
    k = Constant <value = float {%s}> () m = ReduceMax <keepdims = 0> (x) far = Greater (m, k)
    y = If (far) <then_branch = g1 () => (float[N,4] p) { p = Neg (x) },
                  else_branch = g2 () => (float[N,4] q) { q = Identity (x) }>"""


def test_a_branch_that_is_never_taken_is_told(write: Write, capsys: pytest.CaptureFixture[str]):
    never, both = write("never", VECTORS, BRANCHES % "5000.0"), write("both", VECTORS, BRANCHES % "20.0")
    assert run(never, never) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "one branch of If 'y' was never taken" in out
    assert run(both, both) == 0
    assert "never taken" not in capsys.readouterr().out


def test_conditions_that_are_inputs_or_constants(write: Write):
    told = BRANCHES.replace("far = Greater (m, k)", "far = Identity (f)") % "0.0"
    asked = write("asked", "(float[N,4] x, bool f) => (float[N,4] y)", told.replace("If (far)", "If (f)"))
    assert "never taken" not in str([row.note for row in compare_files(asked, asked)])
    fixed = write("fixed", VECTORS, "f = Constant <value = bool {1}> () " + told)
    rows = compare_files(fixed, fixed)
    assert [row.note for row in rows if row.note] == ["one branch of If 'y' was never taken"] * 2
    assert not any(row.reason for row in rows)


def test_single_large_numbers_where_wide_noise_is_lost(write: Write):
    """Noise of ±1000 moves every sample out of the image, a single large number does not."""
    rows = np.random.default_rng(0).normal(size=(192, 2)) * 0.005
    numbers = ", ".join(f"{value:.6f}" for value in rows.ravel())
    body = f"""
        w = Constant <value = float[192,2] {{{numbers}}}> () flat = Flatten (x) move = MatMul (flat, w)
        eye = Constant <value = float[1,4] {{1.0, 0.0, 0.0, 1.0}}> () zero = Constant <value = float {{0.0}}> ()
        none = Mul (move, zero) two = Concat <axis = 1> (none, none) square = Add (two, eye)
        s4 = Constant <value_ints = [-1, 2, 2]> () s2 = Constant <value_ints = [-1, 2, 1]> ()
        turn = Reshape (square, s4) shift = Reshape (move, s2) theta = Concat <axis = 2> (turn, shift)
        size = Shape (x) grid = AffineGrid (theta, size) z = GridSample (x, grid) """
    signature = "(float[N,3,8,8] x) => (float[N,3,8,8] y)"
    good = write("good", signature, body + "y = Identity (z)")
    limits = "high = Constant <value = float {45.0}> () low = Neg (high) y = Clip (z, low, high)"
    rows = compare_files(write("clipped", signature, body + limits), good)
    assert any(row.reason for row in rows if row.inputs.startswith("single numbers"))
    assert {row.note for row in rows if "[-1000" in row.inputs} == {"says nothing: every output is 0"}
    assert not any(row.reason for row in compare_files(good, good))
