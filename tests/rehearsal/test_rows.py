"""Every row of a GPU, from training to what is kept, on the CPU behind CUDA's rules; what breaks one turns it red."""

import importlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.tools import gpu_results
from stn_export import cli
from stn_export.bench import startup_worker, timing
from stn_export.bench.cases import Case, cases
from stn_export.bench.machine import Memory, Watch
from stn_export.bench.plan import GRIDS, Pick
from stn_export.bench.targets import Target, find_targets
from stn_export.results import laws
from stn_export.run.manifest import PROGRAM, NetworkDirectory, network_directories
from stn_export.run.schemas import read_bench
from stn_export.runners import RUNNERS, RunnerSpec, onnx_runtime
from stn_export.runners import pytorch as pytorch_runners
from stn_export.runners.base import EventClock
from stn_export.runners.onnx_runtime import OnnxRuntimeGraph, TensorRt
from stn_export.train import optimizers
from stn_export.train.cuda_graph import CapturedSteps
from stn_export.train.data import Dataset
from stn_export.train.recipes import RECIPES
from stn_export.train.trainer import Settings, Trainer, advance
from stn_export.verify import __main__ as verify
from stn_export.verify.checks import check_artifact
from stn_export.verify.oracle import Reference, reference_of
from tests.contenders import Benchmark
from tests.rehearsal.clocks import BrokenRuleError, Stream
from tests.rehearsal.device import Device
from tests.runs import enter_networks
from tests.sweeps import swept
from tests.test_captured import run as losses_of
from tests.test_captured import trainers_for, without_noise

CUDA = torch.device("cuda")
SPECS = {spec.name: spec for spec in RUNNERS if spec.device == "cuda"}
TWINS = {name for name in SPECS if name.endswith("-tf32") and name.removesuffix("-tf32") in SPECS}
QUICK = [name for name in SPECS if name not in TWINS - {"cudagraph-cuda-tf32"}]  # the twins run the same code
TINY = replace(GRIDS["gpu"], row_seconds=1e-3, warmup_seconds=1e-3, blocks=10, block_seconds=1e-4)


@pytest.fixture(scope="module")
def targets(trained_run: Path) -> list[Target]:
    """All that a GPU would time."""
    return find_targets(trained_run, "cuda", lambda _: True)


def target_of(targets: Sequence[Target], network: str, spec: RunnerSpec) -> Target:
    """What a runner is timed with: the best float32 file that it takes."""
    found = [
        each
        for each in targets
        if (each.network.name, each.artifact.precision, each.input) == (network, "fp32", "float")
        and each.artifact.format == ("pt2" if spec.format == "aotinductor-cuda" else spec.format)  # not compiled here
        and each.artifact.lowering in ((spec.lowering,) if spec.lowering else (None, "folded", "plain"))
        and (spec.lowering or each.artifact.contract.batch is None)
    ]
    return replace(found[0], runner=spec)


@pytest.fixture(scope="module")
def reference(trained_run: Path) -> Reference:
    """What the transformer is held against."""
    directory = NetworkDirectory(trained_run / "stn")
    all_ = directory.examples()
    few = replace(all_, inputs={name: each[:16] for name, each in all_.inputs.items()}, labels=all_.labels[:16])
    return reference_of(directory.program(), few)


@pytest.mark.parametrize("name", swept(SPECS, *QUICK))
def test_a_row_runs_in_order_and_gives_what_eager_gives(name: str, targets: list[Target], device: Device):
    """Its bound steps and its requests, timed as they are, and its memory and settings told."""
    target = target_of(targets, "stn", SPECS[name])
    for regime in ("device", "request"):
        benchmark = Benchmark()
        timing.time_case(benchmark, Case(target, target.artifact.contract.batch or 2), TINY, regime=regime)
        row = benchmark.extra_info
        assert row["p50"] > 0
        assert row["clock"] == ("events on the stream" if regime == "device" and SPECS[name].on_events else "wall")
        assert row["device_bytes"] is not None
        assert row["machine"]["gpu"]["sm_clock_mhz"] == 1980
        assert row["disturbed"] in (True, False)


@pytest.mark.parametrize("name", swept(SPECS, *QUICK))
def test_a_row_is_verified(name: str, targets: list[Target], reference: Reference, device: Device):
    target = target_of(targets, "stn", SPECS[name])
    check = check_artifact(target.artifact, target.path, SPECS[name], reference)
    assert not check.failure


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-stream-cuda", "onnxruntime-graph-cuda"])
def test_half_precision_is_run_on_the_tensor_cores(name: str, targets: list[Target], device: Device):
    pinned = {
        target.artifact.precision: replace(target, runner=SPECS[name]).open().options["use_tf32"]
        for target in targets
        if (target.artifact.format, target.artifact.lowering) == ("onnx", "folded")
    }
    assert pinned == {"fp32": "0", "fp16": "1"}


def test_tensorrt_is_told_precisions_and_timed_with_an_engine_of_the_batch(
    targets: list[Target], tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
):
    opened: list[dict[str, str]] = []

    class Watched(TensorRt):
        def open_session(self, model: object, provider_options: dict[str, str]) -> object:
            opened.append(provider_options)
            return super().open_session(model, provider_options)

    spec = replace(SPECS["onnxruntime-tensorrt-cuda-tf32"], load=Watched)
    for target in targets:
        if (target.network.name, target.artifact.lowering) == ("stn", "folded"):
            opened.clear()
            timed = replace(target, runner=spec)
            timed.step(3)
            half = str(int(target.artifact.precision == "fp16"))
            assert {(each["trt_fp16_enable"], each["trt_int8_enable"]) for each in opened} == {(half, "0")}
            name = target.artifact.contract.inputs[0].name
            first, bound = opened[0], opened[-1]
            assert first["trt_profile_max_shapes"].startswith(f"{name}:8192x")
            assert {bound[f"trt_profile_{each}_shapes"] for each in ("min", "opt", "max")} == {
                first["trt_profile_max_shapes"].replace("8192", "3")
            }
    assert opened


def test_tensorrt_from_pip_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "tensorrt_libs"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for name in ("libnvonnxparser.so.10", "libnvinfer.so.10", "libnvinfer_plugin.so.10"):
        (folder / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    loaded = []
    monkeypatch.setattr(onnx_runtime.ctypes, "CDLL", lambda path, mode: loaded.append(Path(path).name))
    onnx_runtime.preload_tensorrt()
    assert loaded == ["libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10"]


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-graph-cuda"])
def test_contests_are_held_on_one_clock(name: str, targets: list[Target], device: Device):
    """Against the plain network in the same runner, against eager, and against what people get by default."""
    spec = SPECS[name]
    ours = target_of(targets, "stn", spec)
    others = [
        target_of(targets, "cnn", spec),
        target_of(targets, "stn", SPECS["eager-cuda"]),
        target_of(targets, "stn", SPECS["onnxruntime-default-cuda"]),
    ]
    for other in others:
        benchmark = Benchmark()
        timing.contest("any", benchmark, Case(ours, 1, other), TINY)
        row, events = benchmark.extra_info, spec.on_events and other.runner.on_events
        assert row["clock"] == ("events on the stream" if events else "wall")
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]


def test_the_gpu_grid_has_rows_of_every_runner(targets: list[Target], device: Device):
    targets = [each for each in targets if not each.runner.unavailable()]
    kinds = [(suite, getattr(GRIDS["gpu"], suite)) for suite in ("latency", "throughput", "overhead")]
    timed = {case.target.runner.name for suite, picks in kinds for case in cases(suite, targets, picks)}
    assert timed == set(SPECS) - {"aotinductor-cuda"}


def test_a_fresh_process_makes_the_context_before_it_loads(targets: list[Target], tmp_path: Path, device: Device):
    target = target_of(targets, "stn", SPECS["cudagraph-cuda"])
    [feeds] = target.feeds(1)
    np.savez(tmp_path / "feeds.npz", *feeds.values())
    contract, path = target.artifact.contract.as_dict(), str(tmp_path / "feeds.npz")
    found = startup_worker.main(str(target.path), "cudagraph-cuda", contract, path, 1)
    assert found["device_bytes"] > 4 * target.network.program.parameters


def test_memory_is_what_lies_on_the_gpu(device: Device):
    with Memory("cuda") as memory:
        kept = torch.ones(1000, device="cuda")
    assert memory.device_bytes == 4 * len(kept)


def test_the_watch_asks_the_gpu(device: Device):
    with Watch("cuda") as watch:
        pass
    assert watch.disturbed == [False]
    assert watch.facts()["gpu"]["power_watts"] == 350.5


@pytest.mark.parametrize(
    ("recipe", "seeds"), [("reference", 2), ("quick", 1), ("short", 1), ("affine", 1), ("tuned", 2)]
)
def test_captured_training_is_the_plain_loops(
    recipe: str, seeds: int, settings: Settings, small: Dataset, device: Device
):
    """Bit for bit, momenta and learning rates in tensors: a number that a graph froze would show at the second step."""
    settings = replace(settings, recipe=without_noise(RECIPES[recipe]))
    plain, together = (trainers_for(settings, small.to(CUDA), CUDA, seeds) for _ in range(2))
    expected = losses_of(plain, advance, epochs=1)
    assert torch.equal(losses_of(together, CapturedSteps(together), epochs=1)[0], expected[0])


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_lower_precisions_are_captured(precision: str, settings: Settings, small: Dataset, device: Device):
    trainers = trainers_for(replace(settings, recipe=RECIPES["tuned"], precision=precision), small.to(CUDA), CUDA)
    assert losses_of(trainers, CapturedSteps(trainers), epochs=1)[0].isfinite().all()


def test_a_grid_is_trained_from_the_command_line(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: Device, capsys: pytest.CaptureFixture[str]
):
    """Two models and two seeds in one graph each, time left told by captured steps; what is written lies on the CPU."""
    from stn_export.train import __main__ as train

    monkeypatch.setattr(train, "load_dataset", lambda *_: small)
    command = ["--device", "cuda", "--epochs", "1", "--seeds", "2", "--run", str(tmp_path / "run")]
    assert cli.run(train.main, command) == 0, capsys.readouterr().err
    assert {each.name for each in (tmp_path / "run").iterdir()} >= {"stn", "cnn", "training.json"}
    assert NetworkDirectory(tmp_path / "run" / "stn").listed(PROGRAM)


def without_waiting(monkeypatch: pytest.MonkeyPatch) -> str:
    """The end of a step is read before it is there."""
    monkeypatch.setattr("tests.rehearsal.clocks.Event.synchronize", lambda _: None)
    return "cudagraph-cuda"


def without_its_module(monkeypatch: pytest.MonkeyPatch) -> str:
    """A graph that holds none of the weights that it reads."""
    made = pytorch_runners.Graph
    monkeypatch.setattr(pytorch_runners, "Graph", lambda graph, inputs, output, module: made(graph, inputs, output, 0))
    return "cudagraph-cuda"


def without_waiting_for_the_side_stream(monkeypatch: pytest.MonkeyPatch) -> str:
    """What the warm-up on the side reads may not be there yet."""
    monkeypatch.setattr("tests.rehearsal.clocks.Stream.wait_stream", lambda *_: None)
    return "cudagraph-cuda"


def on_the_wrong_clock(monkeypatch: pytest.MonkeyPatch) -> str:
    """Events on a stream that nothing is launched on."""
    monkeypatch.setattr(EventClock, "__init__", _elsewhere(EventClock.__init__))
    return "eager-cuda"


def _elsewhere(init: Callable) -> Callable:
    return lambda clock, _: init(clock, torch.cuda.Stream())


def without_reading_after_its_stream(monkeypatch: pytest.MonkeyPatch) -> str:
    """A graph's answers are read while it runs."""
    monkeypatch.setattr("tests.rehearsal.clocks.Stream.synchronize", lambda _: None)
    return "onnxruntime-graph-cuda"


def with_an_option_of_another_version(monkeypatch: pytest.MonkeyPatch) -> str:
    """Which the installed ONNX Runtime does not list."""
    given = {"use_tf32": "0", "cudnn_conv_algo_search_exhaustively": "1"}
    monkeypatch.setattr(OnnxRuntimeGraph, "provider_options", lambda _: given)
    return "onnxruntime-graph-cuda"


@pytest.mark.parametrize(
    "plant",
    [
        without_waiting,
        without_its_module,
        without_waiting_for_the_side_stream,
        on_the_wrong_clock,
        without_reading_after_its_stream,
        with_an_option_of_another_version,
    ],
)
def test_an_error_in_a_runner_turns_its_row_red(
    plant: Callable, targets: list[Target], monkeypatch: pytest.MonkeyPatch, device: Device
):
    target = target_of(targets, "stn", SPECS[plant(monkeypatch)])

    def timed() -> None:
        replace(target, regime="device").step(1)()

    with pytest.raises(BrokenRuleError):
        timed()


def with_a_number_as_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which a graph would keep for ever."""
    monkeypatch.setattr(optimizers, "torch", SimpleNamespace(tensor=lambda rate, **_: rate, optim=torch.optim))


def with_a_loss_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a step."""
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda trainer, chosen: (loss := step(trainer, chosen)) * (loss.item() > 0))


def with_an_order_that_stays_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every step copies its indices."""
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda trainer, chosen: step(trainer, torch.zeros(64, dtype=torch.int64)))


def with_streams_that_never_join(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds side by side, each on its own."""
    monkeypatch.setattr("tests.rehearsal.clocks.Stream.wait_stream", _once(Stream.wait_stream))


def _once(wait: Callable) -> Callable:
    return lambda stream, other: wait(stream, other) if stream.streams.current is not stream else None


@pytest.mark.parametrize(
    "plant",
    [
        with_a_number_as_learning_rate,
        with_a_loss_that_is_read,
        with_an_order_that_stays_on_the_host,
        with_streams_that_never_join,
    ],
)
def test_an_error_in_training_turns_it_red(
    plant: Callable, settings: Settings, small: Dataset, monkeypatch: pytest.MonkeyPatch, device: Device
):
    plant(monkeypatch)
    trainers = trainers_for(settings, small.to(CUDA), CUDA, seeds=2)
    with pytest.raises(BrokenRuleError):
        CapturedSteps(trainers)


def in_this_process(command: Sequence[str], limit: float) -> int:
    """What ``python -m`` would do, where the GPU is."""
    module, *arguments = command[command.index("-m") + 1 :]
    return cli.run(importlib.import_module(resolved(module)).main, arguments)


def resolved(module: str) -> str:
    """A package's own main module."""
    return f"{module}.__main__" if hasattr(importlib.import_module(module), "__path__") else module


def test_gpu_results_are_kept_and_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: Device,
    capsys: pytest.CaptureFixture[str],
):
    """Verification first, then contests and latencies, then the small files; a second call does nothing again."""
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:  # of the session that this one lies in
        monkeypatch.delenv(name)
    run, out = enter_networks(tmp_path / "run", count=32), tmp_path / "out"
    for directory in network_directories(run):
        directory.plan(("program",), {})
    pick = Pick(runners=("cudagraph-cuda",))
    nothing = dict.fromkeys(("cold", "lowering", "eager", "default"), ())
    monkeypatch.setitem(GRIDS, "gpu", replace(TINY, latency=(pick,), overhead=(pick,), **nothing))
    few = tuple(spec for spec in RUNNERS if spec.name in ("eager-cpu", "cudagraph-cuda"))
    monkeypatch.setattr(verify, "RUNNERS", few)
    steps = [step for step in gpu_results.STEPS if step.name in ("verify", "overhead", "latency")]
    monkeypatch.setattr(gpu_results, "STEPS", steps)
    monkeypatch.setattr(gpu_results, "bounded", in_this_process)
    monkeypatch.setattr(laws, "require", lambda content, path: None)  # times of a busy machine may break them
    arguments = ["--run", str(run), "--out", str(out)]
    assert cli.run(gpu_results.main, arguments) == 0, capsys.readouterr().err
    verified = json.loads((run / "verify.json").read_text(encoding="utf-8"))
    assert {check["runner"] for check in verified["checks"]} == {spec.name for spec in few}
    assert verified["passed"]
    timed = [row["extra_info"] for row in read_bench(run / "bench.json")["benchmarks"]]
    assert sorted((row["network"], row["runner"], row.get("contest", "latency")) for row in timed) == [
        ("cnn", "cudagraph-cuda", "latency"),
        ("stn", "cudagraph-cuda", "latency"),
        ("stn", "cudagraph-cuda", "overhead"),
    ]
    assert {path.name.split("-")[0] for path in out.iterdir()} == {"RESULTS.md", "steps", "verify", "nvidia"}
    assert "H100" in (out / "RESULTS.md").read_text(encoding="utf-8")
    assert cli.run(gpu_results.main, arguments) == 0
    assert re.search("latency +kept", capsys.readouterr().out)


def to_tf32(values: torch.Tensor) -> torch.Tensor:
    """With ten bits of mantissa, rounded to the nearest."""
    return ((values.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_tf32_in_silence_is_no_fp32_row(targets: list[Target], monkeypatch: pytest.MonkeyPatch, device: Device):
    """Products of rounded numbers, as tensor cores take them, are not timed as float32's."""

    def load(runner: pytorch_runners.Eager, path: Path) -> None:
        pytorch_runners.OfProgram.load(runner, path)
        if runner.device == "cuda":
            for part in runner.module.modules():
                if isinstance(part, torch.nn.Conv2d | torch.nn.Linear):
                    part.weight.data.copy_(to_tf32(part.weight.data))
                    part.register_forward_pre_hook(lambda _, given: (to_tf32(given[0]),))

    monkeypatch.setattr(pytorch_runners.Eager, "load", load)
    with pytest.raises(AssertionError, match="does not give what eager does"):
        target_of(targets, "stn", SPECS["eager-cuda"]).step(16)
    target_of(targets, "stn", SPECS["eager-cuda-tf32"]).step(16)
