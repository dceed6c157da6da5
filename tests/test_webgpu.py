"""WebGPU: where nodes are predicted to run and where a session says so, which adapter serves, and what is timed.

The slow tests need ``onnxruntime-webgpu`` (``make test-webgpu`` installs it) and Vulkan, which Chromium brings in
software.
"""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from stn_export import cli
from stn_export.audit import content
from stn_export.bench import targets
from stn_export.onnx_graph.deployment import audit
from stn_export.onnx_graph.placement import kernels
from stn_export.onnx_graph.records import CPU, WEBGPU
from stn_export.run.manifest import NetworkDirectory
from stn_export.runners import FEW, RUNNERS
from stn_export.runners.external import environments, serve
from stn_export.runners.external.environments import OnWebGpu, by_name, in_folder
from stn_export.runtimes import __main__ as runtimes
from stn_export.verify import __main__ as verify
from tests import webgpu_table

SPEC = next(spec for spec in RUNNERS if spec.name == "onnxruntime-webgpu")
SAMPLER = """<ir_version: 9, opset_import: ["" : {opset}]>
g (float[1,3,8,8] x, float[1,8,8,2] grid) => (float[1,3,8,8] y) {{ y = GridSample <mode = "{mode}"> (x, grid) }}"""
HEADER = '<ir_version: 9, opset_import: ["" : 18]>'
OTHERS = """<ir_version: 9, opset_import: ["" : 18, "com.microsoft" : 1]>
g (float[4] x, int64[4] n, uint8[4] u) => (float[4] a, int64[4] b, float[4] c, float[4] d) {
  a = Sin (x)  b = Add (n, n)  c = Cast <to = 1> (u)  d = com.microsoft.FastGelu (x) }"""


def placed(text: str) -> dict[str, tuple[str, str]]:
    """Where each node is predicted to run, and why, by operator."""
    return {node.op_type: (node.provider, node.reason) for node in audit(onnx.parser.parse_model(text), "webgpu").nodes}


@pytest.mark.parametrize(
    ("opset", "mode", "provider"), [(16, "bilinear", WEBGPU), (19, "bilinear", WEBGPU), (20, "linear", CPU)]
)
def test_the_sampler_runs_on_the_gpu_up_to_opset_19(opset: int, mode: str, provider: str):
    assert placed(SAMPLER.format(opset=opset, mode=mode))["GridSample"][0] == provider


def test_why_a_node_falls_back_is_said():
    found = placed(OTHERS)
    assert found["Sin"] == (WEBGPU, "has a WebGPU kernel")
    assert found["Add"] == (CPU, "no WebGPU kernel of Add 14 for int64, int64")
    assert found["Cast"] == (CPU, "no WebGPU kernel of Cast 13 for uint8")
    assert found["FastGelu"] == (CPU, "the table has no kernels of domain com.microsoft")
    assert kernels("webgpu").release in audit(onnx.parser.parse_model(OTHERS), "webgpu").source


def test_the_table_holds_what_was_asked_and_nothing_that_was_expanded():
    table = kernels("webgpu").gpu
    assert {"Conv", "Gemm", "GridSample", "MatMul", "Relu", "Resize"} <= set(table)
    assert not {"AffineGrid", "LogSoftmax"} & set(table)
    assert [kernel.since for kernel in table["GridSample"]] == [16]


def test_nodes_that_a_session_does_not_list_run_on_the_gpu_if_its_graph_still_has_them(tmp_path: Path):
    """A session lists the nodes on the CPU and a few others; nodes made for another layout get a token."""
    graph = onnx.parser.parse_model(
        f"{HEADER} g (float[4] x) => (float[4] y) {{ a = Relu (x)  b = Sin (a)  y = Cos (b) }}"
    )
    for node, name in zip(graph.graph.node, ("conv_token_17", "relu", "left"), strict=True):
        node.name = name
    (tmp_path / "m.onnx.placed").write_bytes(graph.SerializeToString())
    answer = environments._of_all(tmp_path / "m.onnx", {"left": CPU, "gone": WEBGPU})
    assert answer == {"conv": WEBGPU, "relu": WEBGPU, "left": CPU}
    assert environments._of_all(tmp_path / "none.onnx", "it does not load") == "it does not load"


def test_audit_asks_the_session_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environments, "why_not", lambda runtime: "")
    monkeypatch.setattr(OnWebGpu, "version", "9.9")
    monkeypatch.setattr(OnWebGpu, "placement", lambda runtime, model: {node.name: CPU for node in model.graph.node})
    model = onnx.parser.parse_model(SAMPLER.format(opset=16, mode="bilinear"))
    [found] = content.audited(model, ["webgpu"])["audits"]
    assert (found["predicted"], found["source"]) == (False, "read from a session of ONNX Runtime 9.9")
    assert len(found["fallbacks"]) == 1
    monkeypatch.setattr(environments, "why_not", lambda runtime: "not installed")
    [found] = content.audited(model, ["webgpu"])["audits"]
    assert (found["predicted"], found["fallbacks"]) == (True, [])


VULKAN = """
#include <stdint.h>
#include <string.h>
static const uint32_t kinds[] = {KINDS};
int vkCreateInstance(const uint32_t *info, void *allocator, void **instance) {
  *instance = (void *)1;
  return info[0] != 1;
}
void vkDestroyInstance(void *instance, void *allocator) {}
int vkEnumeratePhysicalDevices(void *instance, uint32_t *count, void **devices) {
  *count = sizeof kinds / sizeof *kinds;
  for (uint32_t i = 0; devices && i < *count; i++) devices[i] = (void *)(uintptr_t)(i + 1);
  return 0;
}
void vkGetPhysicalDeviceProperties(void *device, char *facts) {
  uint32_t kind = kinds[(uintptr_t)device - 1];
  memcpy(facts + 16, &kind, 4);
  strcpy(facts + 20, (const char *[]){"other", "integrated", "discrete", "virtual", "software"}[kind]);
}
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler here")
@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("4", ("software", True)),
        ("4, 1", ("integrated", False)),
        ("1, 2, 4", ("discrete", False)),
        ("3", ("virtual", False)),
    ],
)
def test_the_best_adapter_serves(kinds: str, expected: tuple[str, bool], tmp_path: Path):
    (tmp_path / "vulkan.c").write_text(VULKAN.replace("KINDS", kinds), encoding="utf-8")
    library = tmp_path / "libvulkan.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", library, tmp_path / "vulkan.c"], check=True)
    assert serve._adapter(str(library)) == expected
    assert serve._adapter(str(tmp_path / "none.so")) == ("", True)


@pytest.mark.parametrize(
    ("system", "chromium", "expected"),
    [
        (("a GPU", False), True, ("a GPU", False)),  # its own driver goes first
        (("llvmpipe", True), True, ("SwiftShader", True)),  # which ONNX Runtime's WebGPU refuses
        (("llvmpipe", True), False, ("llvmpipe", True)),
        (("", True), True, ("SwiftShader", True)),
    ],
)
def test_swiftshader_stands_in_where_there_is_no_gpu(
    system: tuple[str, bool],
    chromium: bool,
    expected: tuple[str, bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    if chromium:
        (tmp_path / "vk_swiftshader_icd.json").touch()
    monkeypatch.setattr(serve, "CHROMIUM", (tmp_path / "none", tmp_path))
    chosen = "VK_ICD_FILENAMES"
    monkeypatch.setattr(serve, "_adapter", lambda library: ("SwiftShader", True) if chosen in os.environ else system)
    assert serve.vulkan() == expected
    assert os.environ.pop(chosen, "") == (
        str(tmp_path / "vk_swiftshader_icd.json") if expected[0] == "SwiftShader" else ""
    )


def test_without_vulkan_there_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serve, "_adapter", lambda library: ("", True))
    monkeypatch.setattr(serve, "CHROMIUM", ())
    with pytest.raises(RuntimeError, match="WebGPU needs Vulkan: a GPU with its driver"):
        serve.vulkan()
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho 'RuntimeError: WebGPU needs Vulkan' >&2; exit 1\n", encoding="utf-8")
    interpreter.chmod(0o755)
    monkeypatch.setattr(OnWebGpu, "interpreter", interpreter)
    monkeypatch.setattr(OnWebGpu, "version", "9.9")
    with in_folder(tmp_path):
        assert SPEC.unavailable() == "WebGPU needs Vulkan"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime on the CPU as a runner on a device that stands in for a GPU."""
    spec = next(spec for spec in RUNNERS if spec.name == "onnxruntime-cpu")
    there = replace(spec, name="stand-in", software=lambda: "SwiftShader")
    for module in (verify, targets):
        monkeypatch.setattr(module, "RUNNERS", (*RUNNERS, there))


def test_software_is_verified_on_few_examples_and_not_timed(
    stand_in: None, run: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.run(verify.main, ["--run", str(run), "--only", "stand-in", "--format", "json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert {check["runner"] for check in checks} == {"stand-in"}
    assert all(f"{FEW} examples: SwiftShader stands in for a GPU" in check["notes"] for check in checks)
    assert all(
        len(check["differing"]) <= FEW and max(index for index, _, _ in check["differing"]) < FEW for check in checks
    )
    assert (
        targets.left_out(run, "auto")["stand-in"] == "SwiftShader stands in for a GPU on the CPU: verified, not timed"
    )
    assert "stand-in" not in {target.runner.name for target in targets.find_targets(run, "auto")}


@pytest.mark.parametrize(("names", "code"), [(["webgpu"], 0), (["nonsense"], 2)])
def test_some_runtimes_only(
    names: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    installed: list[str] = []
    monkeypatch.setattr(environments.Runtime, "install", lambda runtime: installed.append(runtime.name) or "stub")
    monkeypatch.setattr(runtimes, "asked_for", in_folder)
    assert cli.run(runtimes.main, ["--into", str(tmp_path / "made"), "--only", *names]) == code
    assert installed == (names if not code else [])
    assert code == 0 or "nonsense" in capsys.readouterr().err


needs_webgpu = pytest.mark.skipif(bool(SPEC.unavailable()), reason=f"WebGPU {SPEC.unavailable()} (--runtimes)")


@pytest.mark.slow
@needs_webgpu
@pytest.mark.parametrize("file", ["folded-fp32", "matmul-fp32", "folded-fp32-uint8-nhwc", "default-fp32"])
def test_files_are_equal_on_webgpu_and_run_where_predicted(file: str, trained_run: Path):
    directory = NetworkDirectory(trained_run / "stn")
    [row] = webgpu_table.rows_of(directory, (file,))
    assert row.verdict == webgpu_table.EQUAL, row
    assert row.differ == ()
    assert row.gpu > len(row.cpu) > 0
    assert ("GridSample" in row.cpu) is (file == "default-fp32")


@pytest.mark.slow
@needs_webgpu
@pytest.mark.parametrize("name", webgpu_table.FOREIGN)
def test_foreign_networks_are_equal_on_webgpu_or_wrong_as_audit_says(name: str, tmp_path: Path):
    [row] = webgpu_table.foreign(tmp_path, name, webgpu_table.FOREIGN[name])
    assert row.fine, row
    assert row.verdict == (webgpu_table.wrong_by("STN017") if name == "TextRectifier" else webgpu_table.EQUAL)


@pytest.mark.slow
@needs_webgpu
def test_a_session_that_webgpu_does_not_serve_fails_instead_of_running_on_the_cpu(tmp_path: Path):
    """ONNX Runtime by itself says so in its log and runs on the CPU."""
    runtime = by_name("webgpu")
    script = f"import sys; sys.path.insert(0, {str(Path(serve.__file__).parent)!r}); import serve, pathlib; "
    script += "serve.vulkan = lambda: None; serve.webgpu(pathlib.Path(sys.argv[1]), {}, ['y'], 1)"
    file = tmp_path / "m.onnx"
    file.write_bytes(onnx.parser.parse_model(SAMPLER.format(opset=16, mode="bilinear")).SerializeToString())
    without = os.environ | {"VK_ICD_FILENAMES": str(tmp_path / "none.json"), "LD_LIBRARY_PATH": ""}
    done = subprocess.run([runtime.interpreter, "-c", script, file], env=without, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"adapter" in done.stderr
