"""What a newcomer with an ONNX file meets first: kinds of files that runtimes hand over in ways of their own."""

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

from stn_export import cli
from stn_export.audit import __main__ as audit
from stn_export.audit.content import examined
from stn_export.bench import __main__ as bench
from stn_export.bench import files
from stn_export.errors import UserError
from stn_export.onnx_graph.contract import contract_of
from stn_export.onnx_graph.inputs import session_run
from stn_export.onnx_graph.lint import Subject, findings
from stn_export.onnx_graph.model import OnnxFile
from stn_export.onnx_graph.placement import open_session
from stn_export.onnx_graph.portability import TESTED, difference, portability
from stn_export.onnx_graph.records import Described
from stn_export.onnx_graph.snippets import Call, snippet
from stn_export.verify import __main__ as verify

REFERENCE, OPENVINO = "onnx reference evaluator", "OpenVINO"
HEAD = '<ir_version: 10, opset_import: ["": 21]> g '
CALLS_ITS_OWN = '<ir_version: 10, opset_import: ["": 21, "own": 1]> g (float[2] x, bool c) => (float[2] y) '
NOT_LOADED = (
    '<ir_version: 10, opset_import: ["": 21, "acme": 1]> g (float[N, 4] x) => (float[N, 4] y) { y = acme.Zap (x) }'
)


def graph(text: str) -> onnx.ModelProto:
    return parser.parse_model(HEAD + text)


def cast(to: int, kind: str, given: str = "float") -> onnx.ModelProto:
    return graph(f"({given}[2, 4] x) => ({kind}[2, 4] y) {{ y = Cast <to = {to}> (x) }}")


@pytest.mark.parametrize("kind", ["bfloat16", "float8e4m3fn"])
def test_openvino_s_bits_are_read_as_the_type_that_they_are_of(kind: str):
    pytest.importorskip("openvino")
    verdict, why = portability(cast(TensorProto.DataType.Value(kind.upper()), kind))[OPENVINO]
    assert verdict == TESTED, why


def test_openvino_is_given_what_it_takes_where_an_input_is_used_by_nothing():
    pytest.importorskip("openvino")
    verdict, why = portability(graph("(float[2] x, float[3] unused) => (float[2] y) { y = Neg (x) }"))[OPENVINO]
    assert verdict == TESTED, why


def test_an_optional_output_is_what_it_holds():
    held = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2, 3]))
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    node = helper.make_node("Optional", ["x"], ["y"])
    made = helper.make_graph([node], "g", [given], [helper.make_value_info("y", held)])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    assert portability(model)[REFERENCE][0] == TESTED


@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_numbers_of_four_bits_arrive(kind: str):
    """Values that are all different, an odd number of them, and negative ones where there are any."""
    model = graph(f"({kind}[3, 5] x) => (int32[3, 5] y) {{ y = Cast <to = {TensorProto.INT32}> (x) }}")
    values = (np.arange(15) - (8 if kind == "int4" else 0)).reshape(3, 5)
    found = session_run(open_session(model, "cpu"))({"x": values.astype(getattr(ml_dtypes, kind))})
    assert not isinstance(found, str)
    assert np.array_equal(found["y"], values)


def test_what_is_not_loaded_is_not_called_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "zap.onnx"
    onnx.save(parser.parse_model(NOT_LOADED), path)
    assert cli.run(audit.main, [str(path)]) == 0
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("not tried"))
    assert "acme" in line
    assert "--shape" not in line  # other sizes would not help
    assert "tried on" not in printed
    assert cli.run(audit.main, [str(path), "--snippet", "python"]) == 0
    assert "acme" in capsys.readouterr().err
    with pytest.raises(UserError, match="acme") as caught:
        files.subject_of(path, "zap", {}, None)
    assert "--shape" not in caught.value.hint


@pytest.mark.parametrize("model", [cast(1, "float", "bfloat16"), cast(16, "bfloat16"), cast(1, "float", "int4")])
def test_types_that_numpy_lacks_are_timed(model: onnx.ModelProto, tmp_path: Path):
    path = tmp_path / "bits.onnx"
    onnx.save(model, path)
    subject = files.subject_of(path, "bits", {}, None)
    step, outputs = subject.load(files.REFERENCE, 2)
    step()
    assert difference(outputs["y"], np.asarray(examined_output(model), outputs["y"].dtype)) == 0


def examined_output(model: onnx.ModelProto) -> np.ndarray:
    """What the audit's own trial gives for the same inputs."""
    outputs = Subject(model).trial.outputs
    assert not isinstance(outputs, str)
    return outputs["y"]


def test_operators_in_the_bodies_of_local_functions_are_counted():
    function = (
        '<domain: "own", opset_import: ["": 21]> f (x, c) => (y) '
        "{ y = If (c) <then_branch = t () => (a) { a = Neg (x) }, else_branch = e () => (b) { b = Abs (x) }> }"
    )
    model = parser.parse_model(CALLS_ITS_OWN + "{ y = own.f (x, c) }" + function)
    declared = contract_of(OnnxFile(model))
    assert declared.operators == {"Abs": 1, "If": 1, "Neg": 1, "own.f": 1}
    assert declared.nodes == 4


def test_one_is_singular():
    lines = dict(contract_of(OnnxFile(graph("(float[2] x) => (float[2] y) { y = Neg (x) }"))).lines())
    assert lines["size"] == "0 parameters, 1 node"


def test_a_finding_names_the_operator_set_that_changed_an_operator():
    made = (
        '<ir_version: 10, opset_import: ["": 23]> g (float[1, 1, 4, 4] x, float[1, 1, 3, 3] w) => (float[1, 1, 2, 2] y)'
    )
    found = findings(Subject(parser.parse_model(made + " { y = Conv (x, w) }")))
    assert next(each.detail for each in found if each.rule == "STN006").startswith("Conv changed in opset 22; ")


def call(dtype: str, shape: tuple[int, ...]) -> Call:
    given = Described("x", dtype, shape)
    return Call("model.onnx", (given,), (Described("y", "float32", shape),), {"x": shape})


@pytest.mark.parametrize("language", ["python", "c++", "rust", "js"])
def test_a_scalar_is_said_to_be_one(language: str):
    assert "the data goes here: scalar" in snippet(language, call("float32", ()))


def test_rust_knows_the_type_of_no_sizes():
    assert "(([0usize; 0], vec![0f32; 1]))" in snippet("rust", call("float32", ()))


@pytest.mark.parametrize(
    ("language", "dtype", "hint"),
    [
        ("python", "bfloat16", "try --snippet c++"),
        ("rust", "float16", "try --snippet python, c++, js"),
        ("c++", "string", "try --snippet python"),
        ("python", "sequence", "call it by hand"),
    ],
)
def test_a_refused_type_names_the_languages_that_take_it(language: str, dtype: str, hint: str):
    with pytest.raises(UserError, match=f"no {language.replace('+', '.')} .* input x: its type is {dtype}") as caught:
        snippet(language, call(dtype, (2,)))
    assert caught.value.hint == hint


def test_a_program_in_cpp_has_no_empty_array():
    text = snippet("c++", Call("model.onnx", (), (Described("y", "float32", (2,)),), {}))
    assert "{}" not in text.replace("SessionOptions{}", "")
    assert "session.Run(Ort::RunOptions{nullptr}, nullptr, values.data(), 0, outputs, 1)" in text


@pytest.mark.parametrize("model", [cast(1, "float", "bfloat16"), cast(17, "float8e4m3fn")])
def test_openvino_is_timed_on_the_same_numbers(model: onnx.ModelProto, tmp_path: Path):
    pytest.importorskip("openvino")
    path = tmp_path / "bits.onnx"
    onnx.save(model, path)
    subject = files.subject_of(path, "bits", {}, None)
    runner = next(spec for spec in files.RUNNERS if spec.name == "openvino-cpu")
    assert difference(examined_output(model), subject.load(runner, 2)[1]["y"]) <= subject.allowed / 10


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], list[str]]:
    """Write two files, and time them in the reference only: other runners take seconds to load."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "RUNNERS", (files.REFERENCE,))

    def write(first: str, second: str) -> list[str]:
        for name, text in (("a.onnx", first), ("b.onnx", second)):
            onnx.save(graph(text), name)
        return ["a.onnx", "b.onnx"]

    return write


NEG, ABS = (f"(float[N, 4] x) => (float[N, 4] y) {{ y = {operator} (x) }}" for operator in ("Neg", "Abs"))
SLOW = """(float[256, 256] x) => (float[256, 256] y) { c = Constant <value = bool {1}> ()
 n = Constant <value = int64 {1000000}> () y = Loop (n, c, x) <body = b (int64 i, bool ci, float[256, 256] s)
 => (bool co, float[256, 256] so) { co = Identity (ci) so = MatMul (s, x) }> }"""


def test_other_outputs_are_said_in_words(two: Callable, capsys: pytest.CaptureFixture[str]):
    assert cli.run(bench.main, [*two(NEG, ABS), "--budget", "2s"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "of both files" in line)
    assert "DIFFER by" in line
    assert "stn-export verify a.onnx b.onnx" in line
    assert cli.run(bench.main, [*two(NEG, NEG), "--budget", "2s"]) == 0
    assert "of both files are the same within 1e-04 of the largest" in capsys.readouterr().out


def test_a_name_that_one_of_two_files_lacks_is_said_of_that_file(two: Callable, capsys: pytest.CaptureFixture[str]):
    assert cli.run(bench.main, [*two(NEG, NEG.replace("x", "other")), "--shape", "x=1,4"]) == 2
    assert "b.onnx: there is no input x" in capsys.readouterr().err


def test_a_budget_ends_the_first_run_too(two: Callable, capsys: pytest.CaptureFixture[str]):
    """After the seconds that it has in an audit, and not the 60 of a timing."""
    assert cli.run(bench.main, [two(SLOW, NEG)[0], "--budget", "2s"]) == 2
    assert "it takes more than 5 seconds" in capsys.readouterr().err


def test_tables_in_csv_have_an_empty_line_between_them(two: Callable, capsys: pytest.CaptureFixture[str]):
    assert cli.run(bench.main, [*two(NEG, NEG), "--budget", "5s", "--format", "csv"]) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.startswith("runner,file,batch")
    assert second.startswith("runner,ms,other's ms")


def test_json_of_an_audit_says_that_a_file_was_not_loaded():
    content = examined("", OnnxFile(parser.parse_model(NOT_LOADED)), ["cpu"]).as_dict()
    assert "acme" in json.loads(json.dumps(content))["inputs"]["problem"]


def test_files_that_take_other_inputs_are_told_what_to_name(two: Callable, capsys: pytest.CaptureFixture[str]):
    assert cli.run(verify.main, two(NEG, NEG.replace("4", "5"))) == 2
    assert "hint: name two files that declare the same inputs" in capsys.readouterr().err


def test_an_interrupt_says_what_was_not_timed(
    two: Callable, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "compare_files", interrupted)
    assert cli.run(bench.main, [*two(NEG, NEG), "--format", "json"]) == 130
    content = json.loads(capsys.readouterr().out)
    assert len(content["timings"]) == 2
    left = {name for name, why in content["not_timed"].items() if why == "interrupted"}
    rows = {f"{file} in {files.REFERENCE.name} at batch {files.MANY}" for file in ("a.onnx", "b.onnx")}
    assert left == rows | {f"both in turns in {files.REFERENCE.name}"}
