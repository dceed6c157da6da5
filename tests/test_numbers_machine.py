"""Figures of time and work on machines whose truth is known: made-up clocks, counts by hand, sizes that are written."""

import math
import sys
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.tools.calibration import contest as simulated_contest
from benchmarks.tools.peak_share import published_peak
from benchmarks.tools.results_page import contest_line, headlines, seconds
from benchmarks.tools.simulated import CONTESTS
from stn_export import runners
from stn_export.bench import machine, profiling, startup, startup_worker, timing
from stn_export.bench.cases import Case
from stn_export.bench.machine import Watch, time_reported
from stn_export.bench.plan import GRIDS
from stn_export.bench.profiling import Profile, Timed, work
from stn_export.bench.timing import WarmUp, contest, time_case
from stn_export.program.capture import capture
from stn_export.program.program import Program, contract_of
from stn_export.results.choice import Marks
from stn_export.results.statistics import METHOD
from stn_export.runners import Step
from stn_export.verify.oracle import predictions, share_of
from tests import made_records
from tests.contenders import EXACT, Benchmark, Contender, contenders
from tests.made_records import MadeTiming
from tests.runs import built_in
from tests.zoo import ZOO

QUICK = GRIDS["quick"]


@pytest.mark.parametrize(
    ("slowdowns", "ratio", "said"), [((0.5, 0.0), 1.5, "slower"), ((0.0, 0.5), 1 / 1.5, "faster"), ((0, 0), 1, "same")]
)
def test_a_contest_of_two_whose_true_ratio_is_known(
    slowdowns: tuple[float, ...], ratio: float, said: str, monkeypatch: pytest.MonkeyPatch
):
    ours, theirs = contenders(CONTESTS[0], *slowdowns)
    benchmark = Benchmark()
    given, real = [], timing.interleave
    monkeypatch.setattr(timing, "interleave", lambda *how: given.append(how[2:]) or real(*how))
    contest("overhead", benchmark, Case(ours, 7, theirs), QUICK)
    assert given == [("cpu", QUICK, METHOD.seed + zlib.crc32(b"ours theirs 7"))]
    found = benchmark.extra_info
    assert found["ratio"] == pytest.approx(ratio, rel=0.02)
    assert found["ratio_low"] / 1.02 < ratio < found["ratio_high"] * 1.02  # one in twenty intervals misses, not by much
    assert 1.0 < found["ratio_high"] / found["ratio_low"] < 1.06
    assert found["seconds"] == pytest.approx(1e-3 * (1 + slowdowns[0]), rel=0.02)
    assert found["baseline_seconds"] == pytest.approx(1e-3 * (1 + slowdowns[1]), rel=0.02)
    assert found["verdict"] == said
    named = tuple(found[name] for name in ("contest", "baseline_label", "baseline_artifact"))
    assert named == ("overhead", "theirs", "theirs-file")
    assert np.median(benchmark.stats.stats.data) == pytest.approx(found["seconds"])
    assert (ours.batches, theirs.batches) == ([7] * 5, [7] * 5)
    assert (found["loads"], found["batch"], found["blocks"]) == (5, 7, QUICK.blocks)
    assert (found["baseline"], found["options"], found["baseline_options"]) == ("theirs", {"of": 7}, {"of": 7})
    assert (benchmark.group, found["machine"]["gpu"]) == ("contest: overhead, batch 7, cpu", None)


def test_the_figures_of_a_machine_that_nothing_disturbs_are_exact():
    found = simulated_contest(EXACT, 0.5, 0)
    names = ("ratio", "ratio_low", "ratio_high", "seconds", "baseline_seconds")
    assert [found[name] for name in names] == pytest.approx([1.5, 1.5, 1.5, 1.5e-3, 1e-3])


def test_what_loads_slowly_is_loaded_once():
    assert simulated_contest(replace(EXACT, load_seconds=1.1), 0.0, 0)["loads"] == 1
    assert simulated_contest(replace(EXACT, load_seconds=0.9), 0.0, 0)["loads"] == 5


def test_a_row_of_calls_that_take_a_known_time():
    [target] = contenders(EXACT, 1.0)
    benchmark = Benchmark()
    time_case(benchmark, Case(target, 50), QUICK, regime="device")
    found = benchmark.extra_info
    assert found["n"] == pytest.approx(QUICK.row_seconds / 2e-3, abs=1)  # the clock adds up roundings
    assert [found[name] for name in ("p50", "p90", "p50_low", "p50_high")] == pytest.approx([2e-3] * 4)
    assert found["examples_per_second"] == pytest.approx(25_000)
    assert (found["regime"], found["warm_up"]["stable"], found["p99"]) == ("device", True, None)


def test_a_cold_row_is_of_a_cold_target_and_one_on_a_gpu_says_what_a_launch_takes():
    @dataclass(frozen=True)
    class Cooled(Contender):
        cold: bool = False

        def step(self, batch: int) -> Step:
            asked.append(self.cold)
            return replace(super().step(batch), events=SimpleNamespace(launch_seconds=3e-6, repeats=1, settle=id))

    asked, benchmark = [], Benchmark()
    [made] = contenders(EXACT, 1.0)
    for cold in (False, True):
        time_case(benchmark, Case(Cooled("ours", made.machine, 1.0), 50), QUICK, cold=cold)
    assert asked == [False, True]
    assert benchmark.extra_info["launch_seconds"] == 3e-6


@pytest.mark.parametrize(("busy", "stable"), [(True, True), (False, False), (False, True), (True, False)])
def test_a_row_is_disturbed_where_the_machine_was_busy_or_did_not_settle(
    busy: bool, stable: bool, monkeypatch: pytest.MonkeyPatch
):
    class Seen(Watch):
        def __exit__(self, *_: object) -> None:
            self.disturbed = [busy]

    watched = []
    monkeypatch.setattr(timing, "Watch", lambda device: watched.append(device) or Seen("cpu"))
    monkeypatch.setattr(timing, "warm_up", lambda step, seconds: WarmUp(3e-2, 3e-2, 9.0, stable))
    [target] = contenders(EXACT, 1.0)
    benchmark = Benchmark()
    time_case(benchmark, Case(target, 50), QUICK)
    found = benchmark.extra_info
    assert found["disturbed"] == (busy or not stable)
    assert found["warm_up"] == {"seconds": 9.0, "stable": stable}
    assert (found["n"], found["batch"], target.batches, watched) == (10, 50, [50], ["cpu"])
    assert found["machine"].keys() >= {"load_average", "gpu"}


def test_a_row_that_reports_its_own_seconds():
    benchmark = Benchmark()
    time_reported(benchmark, iter([3.0, 1.0, 0.5]).__next__, rounds=3)
    assert benchmark.stats.stats.data == [3.0, 1.0, 0.5]


def test_the_medians_of_several_starts():
    times = [(1.0, 0.2, 0.03), (3.0, 0.1, 0.01), (2.0, 0.4, 0.09)]
    starts = [
        dict(zip(startup_worker.TIMES, each, strict=True)) | {"host_bytes": size} for size, each in enumerate(times)
    ]
    expected = {"import_seconds": 2.0, "load_seconds": 0.2, "first_seconds": 0.03, "host_bytes": 2, "n": 3}
    assert startup.summary(starts) == expected


def test_where_a_fresh_process_spends_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = built_in("cnn")
    np.savez(tmp_path / "inputs.npz", np.ones((2, 3, 32, 32), np.float32))
    opened = SimpleNamespace(infer=lambda feeds: feeds["images"].sum(), threads=1, options={"a": 1}, in_process=True)
    spec = SimpleNamespace(name="made-up", device="cpu", open=lambda path, contract: opened)
    monkeypatch.setattr(runners, "RUNNERS", [spec])
    monkeypatch.setattr(startup_worker, "time", SimpleNamespace(perf_counter=iter([10.0, 11.5, 14.0, 14.25]).__next__))
    threads = torch.get_num_threads()
    found = startup_worker.main("x.onnx", "made-up", program.contract.as_dict(), str(tmp_path / "inputs.npz"), threads)
    assert [found[name] for name in startup_worker.TIMES] == [1.5, 2.5, 0.25]
    assert (found["threads"], found["options"]) == (1, {"a": 1})
    assert (found["host_bytes"] is None) == (sys.platform != "linux")
    taken = machine.Memory("cpu")
    taken.host_bytes = 5
    assert [taken.of(SimpleNamespace(in_process=here))["host_bytes"] for here in (True, False)] == [5, None]


def status(path: Path, resident: int, peak: int) -> None:
    (path / "status").write_text(
        f"Name:\tpython\nVmPeak:\t  9999 kB\nVmHWM:\t  {peak} kB\nVmRSS:\t  {resident} kB\n", encoding="utf-8"
    )


def test_memory_is_the_growth_to_the_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "PROCESS", tmp_path)
    status(tmp_path, 1000, 5000)
    with machine.Memory("cpu") as taken:
        assert (tmp_path / "clear_refs").read_text(encoding="utf-8") == "5"
        status(tmp_path, 2000, 4000)
    assert taken.host_bytes == 3000 * 1024
    assert taken.device_bytes is None
    with machine.Memory("cpu") as less:
        status(tmp_path, 10, 20)
    assert less.host_bytes == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_memory_of_what_is_really_taken():
    with machine.Memory("cpu") as taken:
        held = bytearray(b"1" * (64 << 20))
    assert 64 << 20 <= taken.host_bytes < 160 << 20
    del held


def test_the_largest_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "CACHES", tmp_path)
    assert machine.cache_bytes("cpu") == 64 << 20  # where nobody tells
    for index, size in enumerate(["32K", "2048K", "36M", "512K"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n", encoding="utf-8")
    assert machine.cache_bytes("cpu") == 36 << 20


def test_parts_add_up():
    nodes = [Timed("a", "Conv", "rest", 3e-3), Timed("b", "Conv", "rest", 1e-3), Timed("c", "Gemm", "grid", 5e-3)]
    found = Profile(nodes, sites_shown=1)
    assert found.seconds == pytest.approx(9e-3)
    assert found.facts()["breakdown"] == {
        "localisation": 0.0,
        "grid": 5e-3,
        "sampler": 0.0,
        "rest": pytest.approx(4e-3),
    }


# Multiply-adds of one image, layer by layer: output values times what each is a sum of.
LOCALISATION = 8 * 26 * 26 * (3 * 7 * 7) + 10 * 9 * 9 * (8 * 5 * 5) + 32 * 160 + 6 * 32
SAMPLER = 4 * 3 * 32 * 32
CLASSIFIER = 10 * 28 * 28 * (3 * 5 * 5) + 20 * 10 * 10 * (10 * 5 * 5) + 50 * 500 + 10 * 50
MATCHED = 15 * 28 * 28 * (3 * 5 * 5) + 30 * 10 * 10 * (15 * 5 * 5) + 75 * 750 + 10 * 75


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [("stn", LOCALISATION + SAMPLER + CLASSIFIER), ("cnn", CLASSIFIER), ("cnn-matched", MATCHED)],
)
def test_multiply_adds_of_our_networks(name: str, by_hand: int):
    program = built_in(name)
    assert by_hand == {"stn": 2_088_076, "cnn": 1_113_500, "cnn-matched": 2_064_000}[name]
    assert program.multiply_adds() == by_hand
    assert program.multiply_adds((torch.rand(5, 3, 32, 32),)) == 5 * by_hand
    assert work(program, (torch.empty(3, 3, 32, 32, device="meta"),))["flops"] == 3 * 2 * by_hand


def test_multiply_adds_of_a_foreign_network():
    localisation = 8 * 20 * 90 * (3 * 5 * 5) + 6 * (8 * 3 * 12)
    read = 12 * 24 * 94 * (3 * 3 * 3) + 20 * 1 * 31 * (12 * 8 * 13)
    assert ZOO["PlateRectifier"].program().multiply_adds() == localisation + 4 * 3 * 24 * 94 + read


def layer() -> Program:
    """One fully connected layer, 6 to 4."""
    captured = capture(nn.Linear(6, 4).eval(), (torch.rand(2, 6),), [("N", 6)])
    return Program(captured.exported, contract_of(captured.exported, captured.shapes))


def test_the_work_of_a_layer_by_hand():
    found = work(layer(), (torch.empty(5, 6, device="meta"),))
    once = 4 * (6 * 4 + 4 + 5 * 6 + 5 * 4)  # bytes of weight, bias, input, output
    assert found == {"flops": 2 * 5 * 6 * 4, "bytes_fused": once, "bytes_unfused": once, "launches": 1}


def counted(module: nn.Module, example: torch.Tensor) -> dict[str, int]:
    captured = capture(module.eval(), (example,), [tuple(example.shape)])
    return work(Program(captured.exported, contract_of(captured.exported)), (example,))


def test_of_pooling_the_values_count_and_not_their_indices():
    found = counted(nn.Sequential(nn.MaxPool2d(2), nn.ReLU()), torch.rand(1, 1, 4, 4))
    assert (found["launches"], found["bytes_unfused"]) == (2, (64 + 16) + (16 + 16))


def test_whole_numbers_take_their_own_bytes():
    found = counted(nn.Embedding(4, 3), torch.zeros(2, 5, dtype=torch.int64))
    assert found["bytes_fused"] == 4 * 12 + 8 * 10 + 4 * 30


def test_an_empty_tensor_moves_nothing():
    with profiling._Traffic() as traffic:
        torch.empty(3).reshape(3, 1)
        torch.ones(3, dtype=torch.float64)
    assert (traffic.launches, traffic.bytes) == (1, 24)


def test_work_is_counted_for_every_network_and_batch_that_was_timed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(profiling, "work", lambda program, inputs: {"flops": program * inputs})
    networks = {name: SimpleNamespace(program=size, shapes=lambda batch: batch) for name, size in (("a", 3), ("b", 5))}
    timed = (("b", 7), ("a", 1), ("a", 7))
    rows = made_records.timings({"network": network, "batch": batch} for network, batch in timed)
    found = profiling.all_work(networks, [*rows, rows[0]])
    assert found == {"a": {"1": {"flops": 3}, "7": {"flops": 21}}, "b": {"7": {"flops": 35}}}


@pytest.mark.parametrize(("gpu", "bits", "megahertz"), [("H100 80GB HBM3", 5120, 2619), ("H200", 6144, 3201)])
def test_published_peaks_are_those_of_the_chip(gpu: str, bits: int, megahertz: int):
    found = published_peak(f"NVIDIA {gpu}")
    cores, boost = 132 * 128, 1.98e9
    assert found["flops"]["fp32"] == pytest.approx(2 * cores * boost, rel=0.01)
    tensor = 132 * 4 * 512 * 2 * 1.83e9  # four tensor cores, 512 half-precision multiply-adds a clock each, dense
    assert found["flops"]["fp16"] == found["flops"]["bf16"] == pytest.approx(tensor, rel=0.01)
    assert found["flops"]["tf32"] == pytest.approx(tensor / 2, rel=0.01)
    assert found["flops"]["int8"] == pytest.approx(2 * tensor, rel=0.01)
    assert found["bytes"] == pytest.approx(2 * megahertz * 1e6 * bits / 8, rel=0.03)
    assert published_peak("NVIDIA GeForce") is None


@pytest.mark.parametrize(
    ("value", "said"),
    [(2.0, "2 s"), (1.0, "1 s"), (0.01234, "12.3 ms"), (1e-3, "1 ms"), (1.5e-6, "1.5 µs"), (2e-9, "2 ns")],
)
def test_times_in_words(value: float, said: str):
    assert seconds(value) == said


def timed(artifact: str, batch: int, p50: float, **more: object) -> MadeTiming:
    row = {"label": "the network", "artifact": artifact, "runner": "fast-cpu", "lowering": "some", "file_bytes": 1}
    row |= {"batch": batch, "p50": p50, "p50_low": 0.9 * p50, "p50_high": 1.1 * p50, "tf32": False}
    return made_records.timing(row | {"examples_per_second": batch / p50} | more)


def test_the_line_of_a_contest_reads_the_right_way_round():
    row = timed("file", 1, 1.0) | {"seconds": 3e-3, "baseline_seconds": 2e-3, "ratio": 1.5, "ratio_low": 1.4}
    row |= {"ratio_high": 1.6, "verdict": "slower", "disturbed_blocks": 2, "blocks": 25}
    own = timed("file", 1, 2.5e-3)
    rows = [timed("other", 1, 1e-3), timed("file", 8, 9e-3), own]
    row |= {"regime": "contest"}
    said = ("fast-cpu file", "1", "2.5 ms", "1.50 (1.40 to 1.60)†", "slower", "2 of 25")
    assert contest_line(row, rows, Marks([*rows, row])) == said


def test_headlines_name_the_fastest_that_is_proved():
    rows = [timed("slow", 1, 2e-3), timed("quick", 1, 1e-3), timed("quick", 64, 16e-3), timed("slow", 64, 8e-3)]
    rows += [timed("other", 1, 1e-6, role="plain"), timed("wrong", 1, 1e-5), timed("quick", 1, 1e-6, regime="request")]
    content = {"proved": [["stn", name, "fast-cpu"] for name in ("slow", "quick", "other")], "portability": {}}
    first, second = headlines(content, rows)[:2]
    assert first == "- For latency: fast-cpu quick, 1 µs (900 to 1,100 ns) for one example, host array to host array."
    assert second == "- For throughput: fast-cpu slow, 8,000 examples/s at batch 64, inputs in place."
    said = headlines(content | {"proved": []}, rows)
    assert said == ["- On cpu nothing is named the fastest: no row of one example was proved equal.", ""]


def test_shares_of_predictions():
    scores = np.array([[0.1, 0.9, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 5.0], [3.0, 2.0, 1.0]])
    assert predictions(scores).tolist() == [1, 0, 2, 0]
    assert share_of(predictions(scores), torch.tensor([1, 0, 0, 1])) == 0.5
    assert math.isnan(share_of(None, torch.tensor([1])))
