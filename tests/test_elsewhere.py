"""A file in a process of its own: what comes back, whose time counts, and that a crash or a refusal costs a row.

ONNX Runtime of this very environment stands in for other runtimes, and so do functions that are put beside it.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from stn_export import cli
from stn_export.bench import targets
from stn_export.bench.targets import find_targets, left_out
from stn_export.errors import UserError
from stn_export.export import __main__ as export
from stn_export.export import writing
from stn_export.export.rows import EXPORTS, ExportSpec, Source
from stn_export.run.manifest import CHECKPOINT, PROGRAM, NetworkDirectory
from stn_export.runners import RUNNERS, RunnerSpec
from stn_export.runners.external import RUNTIMES, Child, RefusedError, Runtime, convert
from stn_export.runners.external.environments import HERE, VARIABLE, asked_for, in_folder, runtimes_here
from stn_export.runners.external.process import converted, reason, sized
from stn_export.runners.external.runner import Elsewhere
from stn_export.verify import __main__ as verify
from tests.zoo import enter_zoo

BESIDE = f"""import itertools, json, os, signal, sys
sys.path.insert(0, {str(HERE)!r})
import serve

def crashes(file, feeds, outputs, threads):
    os.abort()

def refuses(file, feeds, outputs, threads):
    raise ValueError("no such operator\\nand more")

def hangs(file, feeds, outputs, threads):
    return lambda given: signal.pause()

def off(file, feeds, outputs, threads):
    call = serve.onnxruntime(file, feeds, outputs, threads)
    return lambda given: [1.01 * each for each in call(given)]

def prints(file, feeds, outputs, threads):
    os.write(1, b"{{}}\\n" * 100000)
    return serve.onnxruntime(file, feeds, outputs, threads)

def waits(file, feeds, outputs, threads):
    serve.time = Clock(0.125)
    return serve.onnxruntime(file, feeds, outputs, threads)

def counts(file, feeds, outputs, threads):  # the calls, which are short where the first input is 0
    serve.time = Clock(1 / 1024 if not feeds["x"].any() else 0.125)
    made = itertools.count(1)
    return lambda given: [next(made)]

class Clock:  # whose every look is some seconds after the last
    def __init__(self, step):
        self.step, self.seconds = step, 0
    def perf_counter(self):
        self.seconds += self.step
        return self.seconds

for each in (crashes, refuses, hangs, off, prints, waits, counts):
    setattr(serve, each.__name__, each)
serve.main(json.loads(sys.argv[-1]))
"""


@dataclass(frozen=True)
class Beside(Runtime):
    """One that this interpreter runs."""

    packages: tuple[str, ...] = ("numpy",)
    module: str = "numpy"
    script: Path = HERE / "serve.py"

    @property
    def command(self) -> list[str | Path]:
        return [sys.executable, self.script]

    @property
    def version(self) -> str:
        return "1.2.3"


@pytest.fixture
def runtime(tmp_path: Path) -> Callable[[str], Runtime]:
    (tmp_path / "beside.py").write_text(BESIDE, encoding="utf-8")
    return lambda name: Beside(name, script=tmp_path / "beside.py")


def spec_of(runtime: Runtime) -> RunnerSpec:
    load = partial(Elsewhere, runtime=runtime)
    return RunnerSpec(f"{runtime.name}-cpu", "onnx", "cpu", load, foreign=True, verify_batch=1)


EAGER = next(spec for spec in RUNNERS if spec.name == "eager-cpu")
ORT = next(spec for spec in RUNNERS if spec.name == "onnxruntime-cpu")
DOUBLE = """<ir_version: 9, opset_import: ["" : 18]>
g (float[batch, 4] x) => (float[batch, 4] y) { two = Constant <value_float = 2.0> () y = Mul (x, two) }"""


def child_of(runtime: Runtime, **options: float) -> Child:
    return Child(runtime, onnx.parser.parse_model(DOUBLE).SerializeToString(), ["y"], threads=1, **options)


def test_what_a_child_gives_is_what_the_file_gives_here(stn: NetworkDirectory):
    artifact = stn.artifacts["matmul-fp32"]
    feeds = artifact.contract.arrays(stn.examples().take(5))
    there = spec_of(Beside("onnxruntime")).open(stn.open(artifact), artifact.contract)
    expected = ORT.open(stn.open(artifact), artifact.contract).infer(feeds)
    assert (there.infer(feeds)["log_probs"] == expected["log_probs"]).all()
    fewer = artifact.contract.arrays(stn.examples().take(2))  # other sizes: another child
    step = there.bind(fewer, {"images": fewer["images"][::-1].copy()})
    first, second = (there.read(step())["log_probs"] for _ in range(2))
    assert first == pytest.approx(expected["log_probs"][:2], rel=1e-4)
    assert second == pytest.approx(first[::-1], rel=1e-4)
    with pytest.raises(UserError, match="not finite"):
        there.infer({"images": feeds["images"] * np.nan})


def test_a_child_is_run_again_on_what_was_placed(runtime: Callable[[str], Runtime]):
    child = child_of(runtime("prints"))
    ones = child.place({"x": np.ones((1, 4), np.float32)})
    twos = child.place({"x": np.full((3, 4), 2, np.float32)})
    assert [child.run(each)[1]["y"].sum() for each in (twos, ones, twos)] == [48, 8, 48]
    assert child.place({"x": np.zeros((1, 4), np.float32)}, ones) == ones
    assert child.run(ones)[1]["y"].sum() == 0


def test_only_the_runtime_s_own_call_is_timed(stn: NetworkDirectory, runtime: Callable[[str], Runtime]):
    artifact = stn.artifacts["matmul-fp32"]
    feeds = artifact.contract.arrays(stn.examples().take(1))
    runner = spec_of(runtime("waits")).open(stn.open(artifact), artifact.contract)
    step = runner.bind(feeds)
    before = step.clock()
    for _ in range(3):
        step()
    assert step.clock() - before == 3 * 0.125
    assert runner.request(feeds).clock() == step.clock()


@pytest.mark.parametrize(("value", "calls"), [(0, [1, 3, 5, 6]), (1, [1, 2, 3, 4])])
def test_a_short_call_that_is_timed_follows_another(value: int, calls: list[int], runtime: Callable[[str], Runtime]):
    child = child_of(runtime("counts"))
    batch = child.place({"x": np.full((1, 4), value, np.float32)})
    made = [child.run(batch, hot) for hot in (False, True, True, False)]
    assert [int(found["y"]) for _, found in made] == calls
    assert {seconds for seconds, _ in made} == {0.125 if value else 1 / 1024}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("crashes", "ended by signal 6"),
        ("refuses", "ValueError: no such operator"),
        ("unknown", "KeyError: 'unknown'"),
    ],
)
def test_why_a_runtime_refuses(name: str, said: str, runtime: Callable[[str], Runtime]):
    with pytest.raises(RefusedError, match=f"^{said}$"):
        child_of(runtime(name)).place({"x": np.ones((1, 4), np.float32)})


def test_a_hang_costs_the_limit(runtime: Callable[[str], Runtime]):
    child = child_of(runtime("hangs"))
    batch = child.place({"x": np.ones((1, 4), np.float32)})
    child.limit = 0.5
    with pytest.raises(RefusedError, match=r"^takes more than 0\.5 s$"):
        child.run(batch)
    with pytest.raises(RefusedError):  # it is gone
        child.run(batch)
    assert child.process.wait() == -signal.SIGKILL


def test_a_child_goes_with_its_runner(stn: NetworkDirectory):
    artifact = stn.artifacts["matmul-fp32"]
    runner = spec_of(Beside("onnxruntime")).open(stn.open(artifact), artifact.contract)
    step = runner.bind(artifact.contract.arrays(stn.examples().take(1)))
    process, folder = runner.child.process, Path(runner.child.folder.name)
    del runner
    step()  # a bound step keeps alive what it needs
    del step
    assert process.poll() is not None
    assert not folder.exists()


def test_a_reason_names_the_cause_and_no_folder_of_this_machine():
    text = "Traceback\n  File\nRuntimeError: Error code: 1\nnoise\n/tmp/a/b/model.mlir:4: error: no GridSample\n"
    assert reason(text) == "RuntimeError: Error code: 1 … model.mlir:4: error: no GridSample"
    assert reason("") == "no reason given"


def test_open_sizes_become_those_of_the_inputs():
    content = onnx.parser.parse_model(DOUBLE).SerializeToString()
    found = onnx.load_from_string(sized(content, {"x": np.ones((3, 4), np.float32)}))
    values = (*found.graph.input, *found.graph.output)
    assert [value.type.tensor_type.shape.dim[0].dim_value for value in values] == [3, 3]


def with_runners(monkeypatch: pytest.MonkeyPatch, *specs: RunnerSpec) -> None:
    """Those that formats require, and these."""
    found = (*(spec for spec in RUNNERS if spec.name in verify.REQUIRED_RUNNERS.values()), *specs)
    monkeypatch.setattr(verify, "RUNNERS", found)
    monkeypatch.setattr(targets, "RUNNERS", found)


@pytest.fixture
def small(run: Path) -> Path:
    """A run of one network with one export."""
    shutil.rmtree(run / "cnn")
    directory, kept = NetworkDirectory(run / "stn"), ("program", "matmul-fp32")
    directory.plan(kept, {})
    for name in set(directory.artifacts) - {*kept, CHECKPOINT}:
        directory.forget(name)
    return run


def checks_of(run: Path) -> dict[str, bool]:
    """What the one export came to, by runner."""
    content = json.loads((run / "verify.json").read_text(encoding="utf-8"))
    return {each["runner"]: each["passed"] for each in content["checks"] if each["artifact"] == "matmul-fp32"}


def test_another_runtime_is_verified_and_timed_and_a_refusal_is_listed(
    small: Path, monkeypatch: pytest.MonkeyPatch, runtime: Callable[[str], Runtime], capsys: pytest.CaptureFixture[str]
):
    with_runners(monkeypatch, spec_of(runtime("onnxruntime")), spec_of(runtime("refuses")))
    assert cli.run(verify.main, ["--run", str(small)]) == 0
    assert "left out: stn/matmul-fp32 in refuses-cpu: ValueError: no such operator" in capsys.readouterr().out
    assert checks_of(small) == {"onnxruntime-cpu": True}
    refused = json.loads((small / "verify.json").read_text(encoding="utf-8"))["refused"]
    assert refused == {"stn/matmul-fp32 in refuses-cpu": "ValueError: no such operator"}


def test_another_runtime_that_is_wrong_turns_the_result_red_and_is_not_timed(
    small: Path, monkeypatch: pytest.MonkeyPatch, runtime: Callable[[str], Runtime], capsys: pytest.CaptureFixture[str]
):
    equal = replace(spec_of(Beside("onnxruntime")), name="equal-cpu")
    with_runners(monkeypatch, equal, spec_of(runtime("off")))
    assert cli.run(verify.main, ["--run", str(small)]) == 1
    assert "stn/matmul-fp32 on off-cpu: examples" in capsys.readouterr().err
    assert checks_of(small) == {"onnxruntime-cpu": True, "equal-cpu": True, "off-cpu": False}
    timed = {each.runner.name: each for each in find_targets(small, "cpu") if each.artifact.name == "matmul-fp32"}
    assert set(timed) == {"onnxruntime-cpu", "equal-cpu"}
    told = "not verified in this runtime (run 'stn-export verify --runtimes DIR')"
    assert {key: why for key, why in left_out(small, "cpu").items() if " in " in key} == {
        "stn/matmul-fp32 in off-cpu": told
    }
    target = replace(timed["equal-cpu"], regime="device")
    target.step(2)()
    assert target.found["clock"] == "wall, in its own process"
    assert target.found["host_bytes"] is None
    assert target.found["options"] == {"numpy": "1.2.3"}


def test_a_wrong_answer_at_another_batch_is_not_timed(
    small: Path, monkeypatch: pytest.MonkeyPatch, runtime: Callable[[str], Runtime]
):
    with_runners(monkeypatch, spec_of(runtime("off")))
    monkeypatch.setattr(targets, "proved_of", lambda run: {("stn", "matmul-fp32", "off-cpu"): None})
    [target] = [each for each in find_targets(small, "cpu") if each.runner.foreign]
    with pytest.raises(AssertionError, match="does not give what eager does"):
        target.step(3)
    assert replace(target, runner=replace(target.runner, approximate=True)).step(3)()  # 1 % off


def test_float32_in_an_approximate_runtime_is_held_to_bounds_of_its_own():
    spec = spec_of(Beside("onnxruntime", approximate=True))
    assert replace(spec, approximate=True).tolerance_of("fp32") == "approximate"
    assert (spec.tolerance_of("fp32"), replace(spec, approximate=True).tolerance_of("fp16")) == ("fp32", "fp16")
    assert {spec.name for spec in RUNNERS if spec.approximate} == {"mnn-cpu", "ncnn-cpu"}
    assert {spec.tolerance_of("fp32") for spec in RUNNERS if spec.name == "openvino-cpu"} == {"openvino"}
    assert {spec.tolerance_of("int8") for spec in RUNNERS if spec.name == "openvino-cpu"} == {"int8"}


def installed(folder: Path, name: str, version: str, package: str = "", tried: bool = True) -> Path:
    """An environment that has one package, which was imported there."""
    package = package or name
    made = folder / name / "lib" / "python3.0" / "site-packages" / f"{package}-{version}.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n", encoding="utf-8")
    if tried:
        (folder / name / "imported").touch()
    return folder


def test_what_was_never_imported_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As pip leaves it where it was killed, and as an empty dist-info is."""
    with in_folder(installed(tmp_path, "tract", "0.1", tried=False)):
        assert runtimes_here() == {}
        runtime = Runtime("tract", ("tract",), "no_module_of_this_name")
        importing = Runtime.installing
        monkeypatch.setattr(Runtime, "installing", lambda each: list(importing(each))[-1:])
        monkeypatch.setattr(Runtime, "interpreter", sys.executable)
        assert runtime.install() == "not installed: ModuleNotFoundError: No module named 'no_module_of_this_name'"
        assert runtime.version == ""
        assert Runtime("tract", ("tract",), "json").install() == ""
        assert runtime.version == "0.1"


def test_runtimes_are_there_where_they_were_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    spec = next(spec for spec in RUNNERS if spec.name == "tract-cpu")
    assert (runtimes_here(), spec.unavailable()) == ({}, "needs --runtimes DIR (see 'stn-export runtimes')")
    with asked_for(installed(tmp_path, "tract", "0.1")):
        assert (runtimes_here(), spec.unavailable()) == ({"tract": "0.1"}, "")
        other = next(spec for spec in RUNNERS if spec.name == "tvm-cpu")
        assert other.unavailable() == "not installed in the folder that --runtimes names"
    assert VARIABLE not in os.environ
    with asked_for(None):
        assert runtimes_here() == {}
    monkeypatch.setenv(VARIABLE, "before")
    with asked_for(tmp_path):
        assert os.environ[VARIABLE] == str(tmp_path)
    assert os.environ[VARIABLE] == "before"


@pytest.mark.parametrize("stage", ["verify", "bench"])
def test_a_folder_without_runtimes_is_refused(
    stage: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "empty").mkdir()
    assert cli.start([stage, "--run", str(run), "--runtimes", str(tmp_path / "empty")]) == 2
    assert "stn-export runtimes --into" in capsys.readouterr().err


def test_what_cannot_be_installed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(Runtime, "install", lambda runtime: "not installed: no such package")
    installed(tmp_path, "tract", "0.1")
    assert cli.start(["runtimes", "--into", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "1 of" in said
    assert said.count("no such package") == len(RUNTIMES) - 1
    assert cli.start(["runtimes", "--into", str(tmp_path / "none")]) == 2


def test_a_command_that_fails_is_why_nothing_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setattr(Runtime, "installing", lambda runtime: iter([["false"]]))
    assert Runtime("mine", ("mine",), "mine").install().startswith("not installed: ")
    monkeypatch.setattr(Runtime, "installing", lambda runtime: iter([["true"]]))
    assert Runtime("mine", ("mine",), "mine").install() == ""


def sums(module: nn.Module, inputs: tuple[torch.Tensor, ...], out: Path) -> None:
    """A converter that keeps what the network gives for the inputs that it was handed."""
    assert not module.eval().training
    np.savez(out, *(each.numpy() for each in module(*inputs)))


def test_a_converter_is_given_the_captured_program_and_inputs_of_its_sizes(
    stn: NetworkDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program, feeds = stn.listed(PROGRAM), stn.listed(PROGRAM).contract.arrays(stn.examples().take(3))
    monkeypatch.setattr(convert, "sums", sums, raising=False)
    np.savez(tmp_path / "inputs.npz", *feeds.values())
    convert.main("sums", str(stn.open(program)), str(tmp_path / "inputs.npz"), str(tmp_path / "out.npz"))
    [found] = np.load(tmp_path / "out.npz").values()
    assert found == pytest.approx(EAGER.open(stn.open(program), program.contract).infer(feeds)["log_probs"], abs=1e-4)


def test_why_a_program_cannot_be_converted(stn: NetworkDirectory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Beside, "interpreter", Path(sys.executable))
    feeds = stn.listed(PROGRAM).contract.arrays(stn.examples().take(1))
    with pytest.raises(RefusedError, match=r"^KeyError: 'mine'$"):
        converted(Beside("mine", format="mine"), stn.open(stn.listed(PROGRAM)), feeds)


def test_a_format_of_another_runtime_is_a_row_where_it_was_asked_for(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    there = ["--runtimes", str(installed(tmp_path, "litert", "0.1", "ai_edge_litert"))]
    monkeypatch.setattr(writing, "converted", lambda runtime, program, inputs: runtime.name.encode())
    assert cli.run(export.main, ["--run", str(small), "--only", "litert-fp32"]) == 2
    assert "litert-fp32 cannot be written: needs --runtimes DIR (see 'stn-export runtimes')" in capsys.readouterr().err
    assert cli.run(export.main, ["--run", str(small), "--only", "litert-fp32", *there]) == 0
    artifact = NetworkDirectory(small / "stn").artifacts["litert-fp32"]
    assert (artifact.file, artifact.contract.batch) == ("litert-fp32.tflite", 1)
    assert (small / "stn" / artifact.file).read_bytes() == b"litert"
    assert ExportSpec.of(artifact) == next(spec for spec in EXPORTS if spec.format == "litert")
    assert cli.run(verify.main, ["--run", str(small), "--only", "litert-fp32"]) == 2  # no runner of it is here


def test_a_format_of_another_runtime_fixes_every_size(tmp_path: Path):
    source = Source(enter_zoo(tmp_path / "run", "FlowWarp"))
    [spec] = [spec for spec in EXPORTS if spec.format == "litert"]
    assert source.parent.contract.open_sizes
    assert not source.contract(spec).open_sizes
    assert source.contract(spec).batch == 1
    assert spec.name == "litert-fp32"
