"""Text is UTF-8 wherever it is read or written, whatever the locale."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from stn_export import cli
from tests.readme import REPOSITORY

SOURCES = [path for room in ("stn_export", "benchmarks", "tests") for path in (REPOSITORY / room).rglob("*.py")]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}


def _is_text(call: ast.Call) -> bool:
    """Whether a call reads or writes text: of a file, or of a process."""
    flags = [word.value for word in call.keywords if word.arg in ("text", "universal_newlines")]
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    return name in ("read_text", "write_text") or any(isinstance(x, ast.Constant) and x.value is True for x in flags)


def without_encoding(code: str) -> list[int]:
    """Lines that read or write text and name no encoding."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call) and _is_text(node)]
    return [call.lineno for call in calls if "encoding" not in {word.arg for word in call.keywords}]


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("path.read_text()", [1]),
        ("x = 1\n(a / b).write_text('é')", [2]),
        ("subprocess.run(words, text=True)", [1]),
        ("path.read_text(encoding='utf-8')\nsubprocess.run(words, encoding='utf-8')\npath.read_bytes()", []),
    ],
)
def test_a_text_without_an_encoding_is_found(code: str, lines: list[int]):
    assert without_encoding(code) == lines


def test_no_text_is_read_or_written_in_the_locales_encoding():
    """What ruff's PLW1514 does not see, because it does not know that a value is a path."""
    found = {path.name: lines for path in SOURCES if (lines := without_encoding(path.read_text(encoding="utf-8")))}
    assert not found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small ONNX file whose path is not ASCII."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    path = tmp_path / "é" / "réseau.onnx"
    path.parent.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def stage(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "stn_export", *map(str, words)]
    return subprocess.run(command, env=os.environ | ASCII, capture_output=True, encoding="utf-8", check=False)


def test_two_files_are_compared_where_the_locale_is_ascii(model: Path):
    done = stage("verify", model, model)
    assert done.returncode == 0, done.stderr
    assert "réseau" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_run_is_held_and_named_as_it_was_typed(tmp_path: Path):
    """Who holds a run stands in a file, with its path."""
    (tmp_path / "née").mkdir()
    done = stage("export", "--run", tmp_path / "née")
    assert done.returncode == 2
    assert "née" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_that_is_no_utf8_is_a_line_and_a_hint(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Whatever the locale: Latin-1 names out of an old archive."""

    def main(_: object) -> None:
        (tmp_path / "a").write_text(os.fsdecode(b"caf\xe9"), encoding="utf-8")

    assert cli.run(main, []) == 2
    assert r"'caf\udce9' is not UTF-8" in capsys.readouterr().err
