"""How files are called: the snippets run where their tools are at hand, with the file's names, sizes, normalisation."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from stn_export import cli
from stn_export.audit import __main__ as audit
from stn_export.errors import UserError
from stn_export.onnx_graph.calls import HowToCall
from stn_export.onnx_graph.records import Described
from stn_export.onnx_graph.snippets import LANGUAGES, Call, c_program, snippet
from stn_export.report.__main__ import render, sections
from stn_export.report.page import Page, Report

# Put real ones there: the folder of onnxruntime_cxx_api.h, and one whose node_modules hold onnxruntime-node.
HEADERS, NODE = os.environ.get("STN_EXPORT_ORT_HEADERS"), os.environ.get("STN_EXPORT_ORT_NODE")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONTRACT = '{"inputs": [{"name": "picture", "pixels": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}]}'
STUB = """
#pragma once
// What the program uses of ONNX Runtime's C++ header, declared alike; running says what it was given.
#include <cstddef>
#include <cstdint>
#include <iostream>
#include <vector>
#define ORT_TSTR(text) text
enum OrtAllocatorType { OrtArenaAllocator };
enum OrtMemType { OrtMemTypeDefault };
namespace Ort {
struct Float16_t { uint16_t value; };
struct BFloat16_t { uint16_t value; };
struct Env { Env() {} Env(const Env&) = delete; };
struct SessionOptions {};
struct RunOptions { explicit RunOptions(std::nullptr_t) {} };
struct MemoryInfo {
  static MemoryInfo CreateCpu(OrtAllocatorType, OrtMemType) { return MemoryInfo(); }
};
struct Info { size_t GetElementCount() const { return 3; } };
struct Value {
  std::vector<int64_t> shape; double first = 0, last = 0; float data[3] = {};
  Value(const Value&) = delete; Value(Value&&) = default; Value() = default;
  template <class T> static double number(T value) { return static_cast<double>(value); }
  static double number(Float16_t) { return 0; }
  static double number(BFloat16_t) { return 0; }
  template <class T>
  static Value CreateTensor(const MemoryInfo&, T* data, size_t count, const int64_t* shape, size_t n) {
    Value made; made.shape.assign(shape, shape + n); made.first = number(data[0]); made.last = number(data[count - 1]);
    return made;
  }
  template <class T> const T* GetTensorData() const { return reinterpret_cast<const T*>(data); }
  Info GetTensorTypeAndShapeInfo() const { return Info(); }
};
struct Session {
  Session(const Env&, const char* path, const SessionOptions&) { std::cout << path << "\\n"; }
  std::vector<Value> Run(const RunOptions&, const char* const* inputs, const Value* values, size_t count,
                         const char* const* outputs, size_t outputs_count) {
    for (size_t i = 0; i < count; ++i) {
      std::cout << "given " << inputs[i];
      for (auto size : values[i].shape) std::cout << " " << size;
      std::cout << " from " << values[i].first << " to " << values[i].last << "\\n";
    }
    for (size_t i = 0; i < outputs_count; ++i) std::cout << "asked " << outputs[i] << "\\n";
    return std::vector<Value>(outputs_count);
  }
};
}
"""


def model() -> onnx.ModelProto:
    """Of a picture, some token ids and a mask, with names that are words of programs or no identifiers."""
    body = """{
      small = Constant <value = float[3] {0.1, 0.2, 0.3}> ()
      axes = Constant <value = int64[2] {2, 3}> ()
      means = ReduceMean <keepdims = 0> (picture, axes)
      class = Mul (means, small)
      ids = Cast <to = 1> (token)
      sums = ReduceSum <keepdims = 0> (ids, one)
      lengths = Cast <to = 7> (sums)
      flags = Not (mask)
    }"""
    inputs = "(float[N,3,4,5] picture, int64[N,7] token, bool[N,7] mask, int64[1] one)"
    outputs = "(float[N,3] class, int64[N] lengths, bool[N,7] flags)"
    made = parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> g {inputs} => {outputs} {body}')
    made.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    del made.graph.input[3]
    for value in (*made.graph.input, *made.graph.output):
        value.name = {"token": "token.ids", "lengths": "2nd"}.get(value.name, value.name)
    for node in made.graph.node:
        node.input[:] = ["token.ids" if name == "token" else name for name in node.input]
        node.output[:] = ["2nd" if name == "lengths" else name for name in node.output]
    made.metadata_props.append(onnx.StringStringEntryProto(key="contract", value=CONTRACT))
    onnx.checker.check_model(made)
    return made


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(model(), "model.onnx")
    return Path("model.onnx")


def text_of(file: Path, language: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.run(audit.main, [str(file), "--snippet", language]) == 0
    return capsys.readouterr().out


def pictures() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (1, 3, 4, 5), np.uint8)


def test_python_runs_and_normalises_as_the_file_says(file: Path, capsys: pytest.CaptureFixture[str]):
    code = text_of(file, "python", capsys)
    assert "np.zeros((1, 3, 4, 5), np.uint8)" in code
    names: dict = {"given": pictures()}
    exec(code.replace("np.zeros((1, 3, 4, 5), np.uint8)", "given"), names)
    mean, std = (np.float32(each).reshape(3, 1, 1) for each in (MEAN, STD))
    feeds = {"picture": (pictures() / np.float32(255) - mean) / std}
    feeds |= {"token.ids": np.zeros((1, 7), np.int64), "mask": np.zeros((1, 7), bool)}
    expected = onnxruntime.InferenceSession(file).run(None, feeds)
    np.testing.assert_allclose(names["class_"], expected[0], rtol=1e-5)
    assert (names["x2nd"], names["flags"].all()) == (expected[1], True)
    assert "class (1, 3) float32" in capsys.readouterr().out


def test_cpp_hands_over_names_sizes_and_normalised_numbers(file: Path, capsys: pytest.CaptureFixture[str]):
    if not shutil.which("g++"):
        pytest.skip("there is no g++ here")
    code = text_of(file, "c++", capsys)
    Path("onnxruntime_cxx_api.h").write_text(STUB, encoding="utf-8")
    code = code.replace("make_unique<uint8_t[]>(60);", "make_unique<uint8_t[]>(60); picture_bytes[59] = 255;")
    Path("main.cpp").write_text(code, encoding="utf-8")
    subprocess.run(["g++", "-std=c++17", "-Wall", "-Werror", "-I.", "main.cpp", "-o", "main"], check=True)
    said = subprocess.run(["./main"], check=True, capture_output=True, encoding="utf-8").stdout.splitlines()
    first, last = -MEAN[0] / STD[0], (1 - MEAN[2]) / STD[2]
    assert said[:4] == [
        "model.onnx",
        f"given picture 1 3 4 5 from {first:.6g} to {last:.6g}",
        "given token.ids 1 7 from 0 to 0",
        "given mask 1 7 from 0 to 0",
    ]
    assert [line for line in said if line.startswith("asked")] == ["asked class", "asked 2nd", "asked flags"]


@pytest.mark.slow  # what needs more than a compiler is no part of make test
@pytest.mark.skipif(not HEADERS, reason="STN_EXPORT_ORT_HEADERS names no folder of onnxruntime_cxx_api.h")
def test_cpp_runs_against_the_real_headers(file: Path, capsys: pytest.CaptureFixture[str]):
    Path("main.cpp").write_text(text_of(file, "c++", capsys), encoding="utf-8")
    [library] = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    linked = ["main.cpp", library, f"-Wl,-rpath,{library.parent}", "-o", "main"]
    subprocess.run(["g++", "-std=c++17", f"-I{HEADERS}", *linked], check=True)
    said = subprocess.run(["./main"], check=True, capture_output=True, encoding="utf-8").stdout
    assert re.findall(r"^(\w+): (\d+) from", said, re.MULTILINE) == [("class", "3"), ("2nd", "1"), ("flags", "7")]


@pytest.mark.slow
def test_rust_lacks_nothing_but_the_crate(file: Path, capsys: pytest.CaptureFixture[str]):
    starts = shutil.which("rustc") and not subprocess.run(["rustc", "--version"], capture_output=True).returncode
    if not starts:
        pytest.skip("there is no rustc here")
    code = text_of(file, "rust", capsys)
    assert 'outputs["2nd"].try_extract_tensor::<i64>()' in code
    Path("main.rs").write_text(code, encoding="utf-8")
    command = ["rustc", "--edition", "2021", "--crate-type", "bin", "--emit=metadata", "main.rs"]
    said = subprocess.run(command, capture_output=True, encoding="utf-8").stderr
    assert set(re.findall(r"^error\[(E\d+)\]", said, re.MULTILINE)) <= {"E0432", "E0433"}, said
    assert "`ort`" in said
    assert not re.findall(r"^error: (?!aborting)", said, re.MULTILINE), said


def test_javascript_is_of_its_syntax(file: Path, capsys: pytest.CaptureFixture[str]):
    if not shutil.which("node"):
        pytest.skip("there is no node here")
    Path("main.mjs").write_text(text_of(file, "js", capsys), encoding="utf-8")
    subprocess.run(["node", "--check", "main.mjs"], check=True)


@pytest.mark.slow
@pytest.mark.skipif(not NODE, reason="STN_EXPORT_ORT_NODE names no folder with onnxruntime-node")
def test_javascript_runs(file: Path, capsys: pytest.CaptureFixture[str]):
    Path("main.mjs").write_text(text_of(file, "js", capsys), encoding="utf-8")
    Path("node_modules").symlink_to(Path(NODE) / "node_modules")
    said = subprocess.run(["node", "main.mjs"], check=True, capture_output=True, encoding="utf-8").stdout
    assert said.splitlines() == ["class [ 1, 3 ]", "2nd [ 1 ]", "flags [ 1, 7 ]"]


def call(*inputs: Described, sizes: tuple[int, ...] = (1, 2)) -> Call:
    return Call("a.onnx", inputs, (Described("y", "float32", (1,)),), {each.name: sizes for each in inputs})


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_name_that_would_end_a_string_or_a_comment_does_not(language: str):
    hostile = Described('x"; evil() //\\\n\u202e*/', "float32", ("N\n evil()", 2))
    text = snippet(language, call(hostile))
    assert "\u202e" not in text
    assert not [line for line in text.splitlines() if line.strip().startswith("evil")]
    assert '\\"; evil()' in text
    if language == "python":
        compile(text, "snippet", "exec")


@pytest.mark.parametrize("language", ["c++", "rust", "js"])
def test_what_a_language_cannot_be_given_is_one_line(language: str):
    with pytest.raises(UserError, match=r"input words: its type is string") as caught:
        snippet(language, call(Described("words", "string", ("N", 2))))
    assert "--snippet python" in caught.value.hint


def test_two_names_alike_are_two_variables():
    found = call(*(Described(name, "float32", (1, 2)) for name in ("a.b", "a/b", "a_b", "a_b_bytes", "session", "")))
    assert len(set(found.variables.values())) == 7
    assert "session" not in found.variables.values()


def test_a_c_program_is_made_from_the_header():
    header = "enum { NET_X = 4, NET_Y = 2, NET_MEMORY = 64 };\nint net_run(const float *x, size_t n, float *y);\n"
    text = c_program(header, "net.h")
    assert "net_run_in(x, 1, y, memory, sizeof memory)" in text
    assert "static float x[NET_X];" in text


def test_the_report_shows_lines_as_they_stand():
    text = 'int main() { return 1 < 2 && "x"; }\n'
    report = Report("run", calls=[HowToCall("stn/a.onnx", ("b.onnx",), "c++", text)])
    [section] = [each for each in sections(report) if each.id == "call"]
    html, markdown = (render(f"report.{kind}.j2", Page("t", [section])).decode() for kind in ("html", "md"))
    assert "int main() { return 1 &lt; 2 &amp;&amp; &#34;x&#34;; }" in html
    assert "stn/a.onnx, in C++; b.onnx likewise" in html
    assert f"```cpp\n{text}```\n" in markdown
    assert json.loads(json.dumps(report.as_dict()))["calls"][0]["text"] == text
