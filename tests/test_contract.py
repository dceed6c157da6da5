"""What an ONNX file declares: read right, said first by ``audit``, and legible on 80 columns."""

import io
import json
import re
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from stn_export import audit as audited
from stn_export import cli
from stn_export.audit import __main__ as audit
from stn_export.audit.content import examined
from stn_export.onnx_graph.contract import contract_of
from stn_export.onnx_graph.model import OnnxFile
from stn_export.onnx_graph.records import SHOWN

PIXELS = '{"inputs": [{"name": "x", "pixels": {"mean": [0.1, 0.2], "std": [0.5]}}]}'


def model() -> onnx.ModelProto:
    """Of a standard operator set and another one, with weights, sizes, a body and open sizes."""
    text = """<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1],
    producer_name: "maker", producer_version: "2.1">
    g (float[N,2,?,W] x, bool c) => (float[N,2,H,W] y) {
      a = Mul (x, scale)
      b = Mul (a, scale)
      d = com.microsoft.Gelu (b)
      y = If (c) <then_branch = t () => (float[N,2,H,W] u) { u = Mul (d, scale) },
                  else_branch = e () => (float[N,2,H,W] v) { k = Constant <value = float[2] {1.0, 2.0}> ()
                                                             v = Relu (d) }>
    }"""
    made = parser.parse_model(text)
    made.graph.initializer.append(numpy_helper.from_array(np.ones((2, 1, 1), np.float32), "scale"))
    made.graph.initializer.append(numpy_helper.from_array(np.ones(5, np.int64), "sizes"))
    return made


def test_every_part_is_what_the_file_says():
    found = contract_of(OnnxFile(model()))
    assert [each.text for each in found.inputs] == ["x: N×2×?×W float32", "c: scalar bool"]
    assert [each.text for each in found.outputs] == ["y: N×2×H×W float32"]
    assert found.opsets == {"ai.onnx": 18, "com.microsoft": 1}
    assert (found.ir_version, found.producer, found.bytes) == (9, "by maker 2.1", None)
    assert found.parameters == 2 + 2  # the scale and the body's constant; sizes are none
    assert found.operators == {"Mul": 3, "Constant": 1, "If": 1, "Relu": 1, "com.microsoft.Gelu": 1}
    assert found.nodes == 7


def test_what_is_no_tensor_has_no_shape():
    made = model()
    sequence = helper.make_tensor_sequence_value_info("words", TensorProto.STRING, None)
    made.graph.output.extend([sequence, onnx.ValueInfoProto(name="odd")])
    texts = [each.text for each in contract_of(OnnxFile(made)).outputs]
    assert texts[1:] == ["words: sequence", "odd: any shape unknown"]


@pytest.mark.parametrize(
    ("said", "mean"),
    [
        (PIXELS, (0.1, 0.2)),
        (PIXELS.replace("0.5", "0"), ()),
        (PIXELS.replace("0.2", "0.2, 0.3"), ()),
        ('{"inputs": 3}', ()),
        ("[" * 5000, ()),
        ("", ()),
    ],
)
def test_only_a_normalisation_that_fits_is_believed(said: str, mean: tuple[float, ...]):
    made = model()
    made.metadata_props.append(onnx.StringStringEntryProto(key="contract", value=said))
    assert contract_of(OnnxFile(made)).inputs[0].mean == mean


def test_weights_beside_the_file_count(tmp_path: Path):
    made = parser.parse_model('<ir_version: 8, opset_import: ["": 18]> g (float[N,300] x) => (float[N,300] y) '
                              "{ y = Mul (x, w) }")  # fmt: skip
    made.graph.initializer.append(numpy_helper.from_array(np.ones(300, np.float32), "w"))
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    content = audited(tmp_path / "m.onnx")["contract"]
    assert content["external_bytes"] == 1200
    assert content["bytes"] == (tmp_path / "m.onnx").stat().st_size


def test_five_thousand_outputs_are_not_printed():
    made = model()
    made.graph.output.extend(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [1]) for i in range(5000))
    lines = [text for word, text in contract_of(OnnxFile(made)).lines() if word == "output"]
    assert len(lines) == SHOWN + 1
    assert lines[-1].startswith("and 4,981 more")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = parser.parse_model('<ir_version: 8, opset_import: ["": 18]> g (float[N,4,6,6] x) => (float[N,4,6,6] y) '
                              "{ a = Relu (x) b = Relu (a) c = Tan (b) y = Relu (c) }")  # fmt: skip
    for node in made.graph.node:
        node.name = f"model/encoder/block/{node.output[0]}/a_long_name_of_the_exporter"
    onnx.save(made, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_the_contract_comes_first_and_json_has_all_of_it(file: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(audit.main, [str(file)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown[:5]] == ["file", "input", "output", "size", "operators"]
    assert shown[4].split(maxsplit=1)[1] == "Relu 3, Tan 1"
    assert cli.run(audit.main, [str(file), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)["contract"]
    assert content["inputs"][0] == {"name": "x", "dtype": "float32", "shape": ["N", 4, 6, 6], "mean": [], "std": []}
    assert (content["operators"], content["opsets"]) == ({"Relu": 3, "Tan": 1}, {"ai.onnx": 18})
    assert content["bytes"] == file.stat().st_size


def test_brief_and_scripts_are_spared_the_opening(file: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(audit.main, [str(file), "--brief"]) == 0
    assert "ONNX IR" not in capsys.readouterr().out


def test_nodes_alike_are_one_row_and_80_columns_keep_what_informs(file: Path, monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.run(audit.main, [str(file), "--provider", "cuda"]) == 0
    shown = re.sub("\x1b\\[[0-9;]*m", "", terminal.getvalue())
    head = next(line for line in shown.splitlines() if "operator" in line and "runs on" in line)
    for column in ("operator", "runs on", "multiply-adds", "why"):
        assert column in head
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert len([line for line in shown.splitlines() if line.strip().startswith("Relu")]) <= 2
    assert "columns hidden: first node" in shown


@pytest.mark.slow
def test_ten_megabytes_are_audited_in_three_seconds_of_a_processor():
    weights = [numpy_helper.from_array(np.ones((256, 256, 3, 3), np.float32), f"w{index}") for index in range(4)]
    steps = [helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"x{i + 1}"], pads=[1] * 4) for i in range(len(weights))]
    ends = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 256, 28, 28]) for name in ("x0", "x4"))
    made = helper.make_model(helper.make_graph(steps, "g", *([end] for end in ends), weights))
    started = time.process_time()
    found = examined("", OnnxFile(made))
    taken = time.process_time() - started
    assert found.contract.parameters == 4 * 256 * 256 * 9
    assert taken < 3, taken
