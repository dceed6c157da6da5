"""Two files, or two runs, against each other: what is equal, what is not, and what is not loaded at all."""

import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import stn_export
from stn_export import cli
from stn_export.audit import __main__ as audit
from stn_export.errors import UserError
from stn_export.export.onnx import export_onnx
from stn_export.results.tolerances import Bound
from stn_export.results.tolerances import compare_typed as compare_arrays
from stn_export.run.manifest import MANIFEST, NetworkDirectory
from stn_export.run.store import sha256_of
from stn_export.verify import __main__ as verify
from stn_export.verify import file_comparison
from stn_export.verify.bounds import Asked
from stn_export.verify.file_comparison import compare_files
from stn_export.verify.foreign_files import matched, open_side
from tests.zoo import ZOO

Model = Callable[[str, str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Model:
    """Writes an ONNX model given as text: its file name, signature and body."""

    def write(name: str, signature: str, body: str) -> Path:
        text = f'<ir_version: 8, opset_import: ["" : 17]> graph {signature} {{ {body} }}'
        onnx.save(onnx.parser.parse_model(text), tmp_path / name)
        return tmp_path / name

    return write


def move_a_bias(path: Path, target: Path, by: float = 0.01) -> Path:
    """A copy whose last bias is moved in one element."""
    model = onnx.load(path)
    bias = [each for each in model.graph.initializer if each.name.endswith("bias")][-1]
    array = numpy_helper.to_array(bias).copy()
    array[0] += by
    bias.CopyFrom(numpy_helper.from_array(array, bias.name))
    onnx.save(model, target)
    return target


def run_files(*files: Path | str) -> int:
    return cli.run(verify.main, [*map(str, files)])


def reasons(left: Path, right: Path) -> list[str]:
    return [row.reason for row in compare_files(left, right, trust=True)]


def test_an_equal_pair(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    stn = trained_run / "stn"
    alone = Path(shutil.copy(stn / "matmul-fp32.onnx", tmp_path))
    for left, right in ((stn / "matmul-fp32.onnx", stn / "program.pt2"), (alone, stn / "affinegrid-fp32.onnx")):
        assert run_files(left, right) == 0
        out = capsys.readouterr().out
        assert len(re.findall(" equal$", out, re.MULTILINE)) == 4
        assert "fp32: |a - b| <= 5.6e-06 max |b| of its channel + 8e-05 |b|" in out


def test_files_of_pytorch_without_their_manifest(trained_run: Path, tmp_path: Path):
    copies = [
        Path(shutil.copy(trained_run / "stn" / name, tmp_path)) for name in ("torchscript-bf16.ts", "program.pt2")
    ]
    assert [open_side(copy, trust=True).artifact.precision for copy in copies] == ["bf16", "fp32"]
    assert run_files(*copies, "--trust", "--precision", "bf16") == 0
    assert run_files(*copies, "--trust") == 1
    other = Path(shutil.copy(trained_run / "cnn" / "program.pt2", tmp_path))
    assert open_side(other, trust=True).origin is None


def armed(path: Path, mark: Path) -> Path:
    """A ``.pt2`` file that writes ``mark`` as it is loaded."""
    whole = path.with_suffix(".whole")
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.ones(2),)), whole)
    with zipfile.ZipFile(whole) as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            content = good.read(name)
            if "sample_inputs" in name:
                buffer = io.BytesIO()
                torch.save(Touches(mark), buffer)
                content = buffer.getvalue()
            bad.writestr(name, content)
    return path


class Touches:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def test_a_file_that_runs_code_is_not_loaded_unless_it_is_trusted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, mark = armed(tmp_path / "stranger.pt2", tmp_path / "mark"), tmp_path / "mark"
    assert run_files(path, path) == 2
    assert "which can read, change and send your files" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match="none of your commands wrote here"):
        stn_export.compare(path, path)
    assert not mark.exists()
    run_files(path, path, "--trust")
    assert mark.exists()


def test_a_moved_bias_is_seen(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good = trained_run / "stn" / "matmul-fp32.onnx"
    moved = move_a_bias(good, tmp_path / "moved.onnx")
    assert run_files(moved, good) == 1
    out, err = capsys.readouterr()
    assert "DIFFERENT" in out
    assert "4 of 4 comparisons" in err
    assert "times its tolerance" in err
    assert "different programs" not in err


def test_different_contracts_get_the_same_images(trained_run: Path):
    stn = trained_run / "stn"
    for raw in ("folded-fp32-uint8.onnx", "folded-fp32-uint8-nhwc.onnx"):
        assert not any(reasons(stn / raw, stn / "folded-fp32.onnx"))


def test_json_and_different_checkpoints(trained_run: Path, capsys: pytest.CaptureFixture[str]):
    files = [str(trained_run / model / "program.pt2") for model in ("stn", "cnn")]
    assert cli.run(verify.main, [*files, "--json"]) == 1
    out, err = capsys.readouterr()
    content = json.loads(out)
    assert content["passed"] is False
    assert content["sides"] == files
    assert {row["inputs"] for row in content["rows"]} == {
        *(f"random {seed}: images {n}×3×32×32" for seed, n in enumerate((1, 2, 7))),
        "examples ×64",
    }
    assert "they come from different programs" in err


def test_int8_is_judged_by_its_predictions(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stn = trained_run / "stn"
    rows = compare_files(stn / "matmul-int8.onnx", stn / "matmul-fp32.onnx")
    assert not any(row.reason for row in rows)
    assert rows[-1].inputs == f"examples ×{file_comparison.JUDGED}"
    broken = move_a_bias(stn / "matmul-fp32.onnx", tmp_path / "one-class.onnx", by=1000.0)
    assert "of the predictions agree, less than 90" in reasons(stn / "matmul-int8.onnx", broken)[-1]
    alone = Path(shutil.copy(stn / "matmul-int8.onnx", tmp_path))
    with pytest.raises(UserError, match="int8 files are judged on examples"):
        compare_files(alone, alone, asked=Asked("int8"))


def test_a_stale_file_is_compared_and_an_edited_one_refused(stn: NetworkDirectory, capsys: pytest.CaptureFixture[str]):
    entry = stn.artifacts["matmul-fp32"]
    stn.add(replace(entry, parent_sha256="older"))
    files = stn.path / "matmul-fp32.onnx", stn.path / "affinegrid-fp32.onnx"
    assert run_files(*files) == 0
    move_a_bias(files[0], files[0])
    assert run_files(*files) == 2
    assert "was changed after it was written" in capsys.readouterr().err


TWO_INPUTS = "(float[N,3,H,W] x, float[N,2] pose) => (float[N,3,H,W] y, float[N,2] turned)"
BODY = "c = Constant <value = float {{{0}}}> () y = Sigmoid (x) turned = Mul (pose, c)"


def test_foreign_models_with_two_inputs_and_open_dimensions(write: Model):
    good, same = (write(f"{name}.onnx", TWO_INPUTS, BODY.format(2)) for name in "ab")
    rows = compare_files(good, same)
    assert not any(row.reason for row in rows)
    assert [row.output for row in rows] == ["y", "turned"] * 15  # 6 ranges, 5 other sizes, 3 ranges more, and spikes
    ranges = ("", "", "", " in [0, 1]", " in [-30, 30]", " in [-1000, 1000]")
    assert [row.inputs for row in rows[:12:2]] == [
        f"random {i}{ranges[i]}: x {n}×3×32×32, pose {n}×2" for i, n in enumerate((1, 2, 7, 7, 7, 7))
    ]
    assert [row.agreement is None for row in rows[:2]] == [True, False]
    other = write("c.onnx", TWO_INPUTS, BODY.format("2.001"))
    assert [bool(row.reason) for row in compare_files(other, good)] == [False, True] * 15


def test_the_same_inputs_every_time(write: Model):
    good, other = (write(f"{number}.onnx", TWO_INPUTS, BODY.format(number)) for number in (2, 3))
    assert compare_files(good, other) == compare_files(good, other)


def test_other_names_are_matched_by_position(write: Model):
    good = write("a.onnx", "(float[N,4] x) => (float[N,4] y)", "y = Neg (x)")
    renamed = write("b.onnx", "(float[M,4] in) => (float[M,4] out)", "out = Neg (in)")
    rows = compare_files(good, renamed)
    assert [(row.output, row.reason) for row in rows] == [("y / out", "")] * 10
    assert matched(["a", "b", "c"], ["c", "d", "a"]) == [("a", "a"), ("c", "c"), ("b", "d")]


def test_a_foreign_file_beside_ours_gets_the_images(trained_run: Path, tmp_path: Path, write: Model):
    ours, path = trained_run / "stn" / "matmul-fp32.onnx", tmp_path / "bare.onnx"
    bare = onnx.load(ours)
    del bare.metadata_props[:]
    onnx.save(bare, path)
    assert reasons(path, ours) == [""] * 4
    vector = write("vector.onnx", "(float[N,4] x) => (float[N,4] y)", "y = Neg (x)")
    assert reasons(ours, vector) == ["takes images N×3×32×32 float32 instead of x N×4 float32"]


@pytest.mark.filterwarnings("ignore")
def test_a_foreign_torchscript_file_takes_what_the_other_one_declares(tmp_path: Path):
    foreign, script, path = ZOO["FlowWarp"], tmp_path / "mine.ts", tmp_path / "mine.onnx"
    module, values = foreign.build(), foreign.values(3)
    torch.jit.save(torch.jit.trace(module, values), script)
    onnx.save(export_onnx(module, values), path)
    for left, right in ((script, path), (path, script)):
        rows = compare_files(left, right, trust=True)
        assert not any(row.reason for row in rows)
        assert [row.output for row in rows[:2]] == ["output0", "output1"]
        assert rows[0].inputs == "random 0: images 1×3×40×48, flow 1×2×40×48"
    assert all(reasons(move_a_bias(path, tmp_path / "moved.onnx"), script))
    assert reasons(script, script) == [f"neither {script} nor {script} describes its inputs"]
    alone = tmp_path / "alone.onnx"
    onnx.save(export_onnx(ZOO["GreyDigits"].build(), ZOO["GreyDigits"].values(3)), alone)
    assert "does not run on it" in reasons(script, alone)[0]


def test_bytes_are_drawn_over_their_whole_range(write: Model):
    signature = "(uint8[N,3,8,8] x) => (uint8[N,3,8,8] y)"
    same = write("a.onnx", signature, "y = Identity (x)")
    clipped = write("b.onnx", signature, "c = Constant <value = uint8 {200}> () y = Min (x, c)")
    assert not any(reasons(same, same))
    assert all("times its tolerance" in reason for reason in reasons(clipped, same))


GOOD = ("(float[N,4] x) => (float[N,4] y)", "y = Neg (x)")
UNLIKE = {
    "outputs": ("(float[N,4] x) => (float[N,4] y, float[N,4] z)", "y = Neg (x) z = Abs (x)", "gives y, z instead of y"),
    "output type": ("(float[N,4] x) => (double[N,4] y)", "n = Neg (x) y = Cast <to = 11> (n)", "type float64 instead"),
    "output shape": ("(float[N,4] x) => (float[4,N] y)", "n = Neg (x) y = Transpose (n)", "instead of (1, 4)"),
    "input shape": ("(float[N,5] x) => (float[N,5] y)", "y = Neg (x)", "takes x N×5 float32 instead of x"),
    "input type": ("(double[N,4] x) => (double[N,4] y)", "y = Neg (x)", "takes x N×4 float64 instead of x"),
    "inputs": ("(float[N,4] x, float[N,4] w) => (float[N,4] y)", "y = Add (x, w)", "w N×4 float32 instead of"),
    "NaN": ("(float[N,4] x) => (float[N,4] y)", "y = Log (x)", "not finite"),
}


def test_a_fixed_batch_is_filled_up(write: Model):
    fixed = write("fixed.onnx", "(float[4,4] x) => (float[4,4] y)", "y = Neg (x)")
    assert reasons(fixed, write("open.onnx", *GOOD)) == [""] * 10


@pytest.mark.parametrize("kind", UNLIKE)
def test_what_is_unlike_is_a_failure(kind: str, write: Model, capsys: pytest.CaptureFixture[str]):
    good, (signature, body, words) = write("good.onnx", *GOOD), UNLIKE[kind]
    assert run_files(write("other.onnx", signature, body), good) == (2 if kind.startswith("input") else 1)
    assert words in capsys.readouterr().err


def test_a_model_that_does_not_run_is_a_failure(write: Model):
    broken = write(
        "a.onnx", "(float[N,4] x) => (float[A,B] y)", "c = Constant <value_ints = [3, 5]> () y = Reshape (x, c)"
    )
    assert all("a.onnx does not run on it" in reason for reason in reasons(broken, broken))


def test_arrays_of_any_type():
    bound = Bound(0.1)
    words, numbers = np.array(["a", "b"]), np.array([10**6, 2])
    assert compare_arrays(words, words, bound)
    assert not compare_arrays(words, words[::-1], bound)
    assert not compare_arrays(words[:0], words[:0], bound)
    assert compare_arrays(numbers, numbers, bound)
    assert not compare_arrays(numbers + 1, numbers, bound)
    assert not compare_arrays(np.array([True]), np.array([False]), bound)
    assert compare_arrays(np.float32([[1]])[0, 0:1].reshape(()), np.array(1.05, np.float32), bound)


def test_no_rows_are_no_pass(trained_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(file_comparison, "apart", lambda *_, **__: [])
    assert run_files(trained_run / "cnn" / "program.pt2", trained_run / "cnn" / "program.pt2") == 1
    assert "0 of 0 comparisons" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x.onnx", "x.ts", "x.pt2", "x.pt", "x.txt"])
def test_unusable_files(name: str, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good, bad = trained_run / "cnn" / "plain-fp32.onnx", tmp_path / name
    assert run_files(good, bad) == 2
    assert f"there is no file {bad}" in capsys.readouterr().err
    bad.write_bytes(b"garbage" * 99)
    assert run_files(bad, good, "--trust") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {bad}")
    assert len(err.splitlines()) == 2


def test_what_onnx_runtime_cannot_load_is_unusable(write: Model, capsys: pytest.CaptureFixture[str]):
    unknown = write("a.onnx", "(float[N,4] x) => (float[N,4] y)", "y = Unheard (x)")
    assert run_files(unknown, unknown) == 2
    assert "a.onnx cannot be opened as onnx: " in capsys.readouterr().err


def test_empty_outputs_are_no_pass(write: Model):
    empty = write("a.onnx", "(float[N,4] x) => (int64[2,K] y)", "z = Sub (x, x) y = NonZero (z)")
    assert reasons(empty, empty) == ["there was nothing to compare"] * 10
    assert run_files(empty, empty) == 2


def test_another_manifest_beside_a_file_says_nothing(write: Model):
    path = write("a.onnx", *GOOD)
    (path.parent / MANIFEST).write_text('{"name": "a web page"}', encoding="utf-8")
    assert not any(reasons(path, path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.onnx"], "1 file cannot be compared"),
        (["a", "b", "c"], "3 files cannot be compared"),
        (["a", "b", "--against", "c"], "not both"),
        (["a", "b", "--fail-fast"], "--fail-fast"),
        (["--against", "nowhere", "--only", "x"], "--only"),
        (["--against", "nowhere"], "there is no run at"),
    ],
)
def test_nonsense_is_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    assert cli.run(verify.main, arguments) == 2
    assert words in capsys.readouterr().err


def against(run: Path, other: Path) -> int:
    return cli.run(verify.main, ["--run", str(run), "--against", str(other)])


@pytest.mark.slow
def test_a_run_against_itself(trained_run: Path, capsys: pytest.CaptureFixture[str]):
    assert against(trained_run, trained_run) == 0
    out = capsys.readouterr().out
    listed = [NetworkDirectory(trained_run / model).artifacts for model in ("cnn", "stn")]
    assert len(re.findall(" (?:equal|within bounds)$", out, re.MULTILINE)) == sum(
        len(each) - 1 for each in listed
    )  # no checkpoints
    assert "stn/matmul-fp32" in out


@pytest.mark.slow
def test_a_run_against_a_spoiled_and_a_missing_artifact(
    trained_run: Path, run: Path, stn: NetworkDirectory, capsys: pytest.CaptureFixture[str]
):
    entry, path = stn.artifacts["matmul-fp32"], stn.path / "matmul-fp32.onnx"
    move_a_bias(path, path)
    stn.add(replace(entry, sha256=sha256_of(path), parent_sha256="another"))
    (stn.path / "program.pt2").write_bytes(b"edited")
    manifest = json.loads((run / "cnn" / MANIFEST).read_text(encoding="utf-8"))
    del manifest["artifacts"]["plain-fp32"]
    (run / "cnn" / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    assert against(trained_run, run) == 1
    out, err = capsys.readouterr()
    assert f"cnn/plain-fp32: {run} has none" in err
    assert "stn/program: " in err
    assert "was changed after it was written" in err
    wrong = [line for line in err.splitlines() if line.startswith("stn/matmul-fp32: ")]
    assert len(wrong) == 1
    assert wrong[0].endswith("; they come from different programs")
    assert out.count("DIFFERENT") == 3
    assert "13 of" in err


FOREIGN = """<ir_version: 9, opset_import: ["" : 18]>
graph (float[batch, 4] x, float state) => (seq(float[batch, 4]) parts, float[batch, 4] y) {
    y = Div (x, state)
    parts = SequenceConstruct (x, y)
}"""


def test_files_of_others_with_sequences_and_sizes_of_minus_one(tmp_path: Path):
    model = onnx.parser.parse_model(FOREIGN)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(model, tmp_path / "a.onnx")
    assert not [row.reason for row in compare_files(tmp_path / "a.onnx", tmp_path / "a.onnx") if row.reason]
    assert cli.run(audit.main, [str(tmp_path / "a.onnx")]) == 0


def test_where_random_numbers_are_no_valid_input(tmp_path: Path):
    text = FOREIGN.replace("y = Div (x, state)", "low = Sqrt (state)\n    y = Div (x, low)").replace(
        "float state", "float[1] state"
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "a.onnx")
    rows = compare_files(tmp_path / "a.onnx", tmp_path / "a.onnx")
    assert not any(row.reason for row in rows)
    assert {(row.output, row.verdict) for row in rows} == {("parts", "equal"), ("y", "equal"), ("y", "not compared")}
    np.savez(tmp_path / "given.npz", x=np.ones((2, 4), np.float32), state=np.ones(1, np.float32))
    rows = compare_files(tmp_path / "a.onnx", tmp_path / "a.onnx", tmp_path / "given.npz")
    assert [(row.output, row.reason, row.max_abs) for row in rows] == [("parts", "", 0.0), ("y", "", 0.0)]
