"""The peak of a processor, and the share of it that a network's arithmetic reached, which nothing beats."""

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.tools import kept, peak
from benchmarks.tools.peak import Probe
from benchmarks.tools.peak_share import PeakShare, known_rate, peak_share
from benchmarks.tools.results_page import peak_line, peak_words
from stn_export.bench import profiling
from stn_export.native.build import compiler
from stn_export.native.source import multiply_adds_saved
from stn_export.results.choice import Marks
from tests import made_records
from tests.made_records import MadeTiming
from tests.runs import built_in

NEEDS_COMPILER = pytest.mark.skipif(not compiler(), reason="no C compiler here")
PEAK = {
    "flops": {"fp32": 8e11, "fp16": 3e12},
    "widths": {"128": 4e11, "256": 8e11},
    "bytes": 5e10,
    "source": "measured: a loop",
}
WORK = {"flops": 4e8, "native_flops": 3e8, "bytes_fused": 2**20, "bytes_unfused": 3 * 2**20, "launches": 35}


def row(**more: object) -> MadeTiming:
    said = {"network": "stn", "label": "the network", "batch": 8, "p50": 1e-3, "runner": "fast-cpu", "artifact": "file"}
    known = said | {"format": "native", "tf32": False, "p50_low": 1e-3, "p50_high": 1e-3}
    return made_records.timing(known | more)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, PeakShare(4e11, 3e8, 0.375)),  # 3e8 done in a millisecond, of 8e11 a second
        ({"format": "onnx"}, PeakShare(4e11, None, 0.5)),  # how many were done is not known
        ({"format": "onnx", "p50": 4e-4}, PeakShare(1e12, None, None)),  # beyond the peak: not as many as stated
        ({"format": "onnx", "precision": "fp16"}, PeakShare(4e11, None, 4e11 / 3e12)),
        ({"format": "onnx", "precision": "int8"}, PeakShare(4e11, None, None)),
    ],
)
def test_a_share_is_of_what_was_done_and_never_beyond_the_peak(more: dict, expected: PeakShare):
    found = peak_share(WORK, PEAK, row(**more))
    assert (found.rate, found.done) == (pytest.approx(expected.rate), expected.done)
    assert found.share == (expected.share and pytest.approx(expected.share))


def test_a_share_in_tf32_is_of_its_own_peak():
    card = {"flops": {"fp32": 67e12, "tf32": 400e12}, "bytes": 1, "source": "NVIDIA"}
    work = {"flops": 4e10}
    for more, rate in (({"tf32": True}, 400e12), ({"tf32": False}, 67e12), ({"tf32": True, "precision": "fp16"}, None)):
        found = peak_share(work, card, row(format="onnx", **more)).share
        assert found == (rate and pytest.approx(4e13 / rate))


def test_the_line_of_a_network_names_what_was_stated_and_what_was_done():
    line = peak_line(WORK, PEAK, row(), Marks([]))
    first = ("the network", "8", "400.0 M", "300.0 M", "1.00 / 3.00 MiB", "35", "1 ms", "fast-cpu file")
    assert line == (*first, "400.0", "37.5%")
    assert peak_line(WORK, PEAK, row(format="onnx", disturbed=True), Marks([]))[-2:] == (
        "400.0†",
        "50.0% of those stated†",
    )
    assert peak_line(WORK, PEAK, row(format="onnx", p50=1e-5), Marks([]))[-1] == "–"


def test_what_a_product_of_matrices_reached_is_no_peak():
    old = {"flops": {"fp32": 97e9}, "bytes": 28e9, "source": "measured: float32 product of 1024 by 1024"}
    assert known_rate(old, "fp32") is None
    assert peak_line(WORK, old, row(), Marks([]))[-1] == "unknown"
    assert peak_words({"peak": old}).startswith("Peak: 28.0 GB/s, of the arithmetic unknown (measured: float32 product")
    assert known_rate({"flops": {"fp32": 67e12}, "bytes": 1, "source": "NVIDIA"}, "fp32") == 67e12
    assert peak_words({"peak": PEAK}) == (
        "Peak: 800 GFLOP/s in float32 (400 at 128 bits, 800 at 256 bits), 50.0 GB/s (measured: a loop)."
    )


@pytest.mark.parametrize(
    ("sets", "widths"),
    [
        (["AVX"], [128]),
        (["AVX", "AVX2", "FMA"], [128, 256]),
        (["AVX2", "FMA", "AVX-512"], [128, 256, 512]),
        ([], [128]),
    ],
)
def test_the_widths_are_those_of_the_processor(sets: list[str], widths: list[int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peak, "instruction_sets", lambda: sets)
    assert peak.widths_here() == widths


def test_a_rate_counts_every_multiply_add_of_every_thread_at_the_best_try(monkeypatch: pytest.MonkeyPatch):
    tries = iter([[2.0, 4.0], [1.0, 2.0], [3.0, 3.0]])
    monkeypatch.setattr(peak, "PROBE", Probe(rounds=1000, copy_bytes=1024, tries=3))
    monkeypatch.setattr(peak, "compiled", lambda width, library: True)
    monkeypatch.setattr(peak, "functions", lambda library: (None, 12))
    monkeypatch.setattr(peak, "at_once", lambda run, threads: next(tries))
    assert peak.flop_rate(256, 2) == pytest.approx(2 * 1000 * 12 * 8 * (1 / 1.0 + 1 / 2.0))


def test_the_peak_is_the_fastest_width_and_unknown_without_a_compiler(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peak, "widths_here", lambda: [128, 256, 512])
    monkeypatch.setattr(peak, "copy_rate", lambda: 7e9)
    rates = {128: 3e9, 256: 9e9, 512: 8e9}
    asked = []
    monkeypatch.setattr(peak, "flop_rate", lambda width, threads: asked.append(threads) or rates[width])
    found = kept.peak({"threads": 3, "gpu": None}, "cpu")
    assert (found["flops"], found["widths"]) == ({"fp32": 9e9}, {"128": 3e9, "256": 9e9, "512": 8e9})
    assert (found["bytes"], asked) == (7e9, [3, 3, 3])
    assert found["source"].endswith("at 128, 256, 512 bits; copy of 256 MiB; 3 threads")
    monkeypatch.setattr(peak, "flop_rate", lambda width, threads: None)
    none = peak.measured_peak(1)
    assert (none["flops"], none["widths"], known_rate(none, "fp32")) == ({}, {}, None)
    assert "no C compiler" in none["source"]


def test_nothing_is_compiled_where_there_is_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CC", "none-of-that-name")
    assert not peak.compiled(128, tmp_path / "peak.so")
    assert peak.flop_rate(128, 1) is None


@NEEDS_COMPILER
def test_the_loop_does_what_is_counted(tmp_path: Path):
    """Twice the rounds take twice the time, and no product of matrices is faster than the loop."""
    assert peak.compiled(256, tmp_path / "peak.so")
    run, chains = peak.functions(tmp_path / "peak.so")
    assert chains == 12
    short, long = (min(run(rounds) for _ in range(9)) for rounds in (400_000, 800_000))
    assert long / short == pytest.approx(2, rel=0.25)
    assert ctypes.sizeof(ctypes.c_long) >= 4


@NEEDS_COMPILER
def test_no_product_of_matrices_beats_the_peak(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peak, "PROBE", Probe(rounds=500_000, copy_bytes=1 << 20, tries=7))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        left, right = torch.rand(512, 512), torch.rand(512, 512)
        product = 2 * 512**3 / peak.cpu_seconds(lambda: torch.mm(left, right))
        assert product < 1.02 * peak.measured_peak(1)["flops"]["fp32"]
    finally:
        torch.set_num_threads(threads)


def test_a_copy_reads_and_writes_all_its_bytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peak, "PROBE", Probe(rounds=1, copy_bytes=1 << 20, tries=1))
    monkeypatch.setattr(peak, "cpu_seconds", lambda call: call() is None or 0.5)
    assert peak.copy_rate() == 2 * (1 << 20) / 0.5


@pytest.mark.parametrize("threads", [1, 4])
def test_processor_time_is_the_shortest_try_per_thread(threads: int, monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0])
    monkeypatch.setattr(peak, "PROBE", Probe(tries=3))
    monkeypatch.setattr(peak, "time", SimpleNamespace(process_time=clock.__next__))
    monkeypatch.setattr(peak.torch, "get_num_threads", lambda: threads)
    assert peak.cpu_seconds(lambda: None) == 2.0 / threads


def test_what_the_native_convolutions_save():
    """Each by hand: of a row's products, three of half the columns instead of all; pooling drops no row here."""

    def saved(channels: int, outputs: int, rows: int, columns: int, kernel: int) -> int:
        half, longer, shorter = columns // 2, (kernel + 1) // 2, kernel // 2
        done = (half + 1) * longer + half * shorter + half * longer
        return outputs * rows * channels * kernel * (columns * kernel - done)

    assert multiply_adds_saved(built_in("cnn")) == saved(3, 10, 28, 28, 5) + saved(10, 20, 10, 10, 5)


def test_work_counts_what_is_done_by_the_c_that_was_timed(monkeypatch: pytest.MonkeyPatch):
    program = built_in("cnn")
    networks = {"cnn": SimpleNamespace(program=program, shapes=lambda batch: (torch.empty(batch, 3, 32, 32),))}
    facts = ({"network": "cnn", "batch": 3, "format": "native"}, {"network": "cnn", "batch": 1, "format": "onnx"})
    timed = made_records.timings(facts)
    found = profiling.all_work(networks, timed)["cnn"]
    stated = 2 * program.multiply_adds()
    assert found["1"]["native_flops"] == stated - 2 * multiply_adds_saved(program)
    assert found["3"]["native_flops"] == 3 * found["1"]["native_flops"]
    assert 0.75 < found["1"]["native_flops"] / stated < 1
    assert "native_flops" not in profiling.all_work(networks, timed[1:])["cnn"]["1"]
