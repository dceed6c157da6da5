"""The headline: a whole request, held against PyTorch at its fastest, with an interval over all that the run showed."""

import pytest
import torch

from benchmarks.tools.results_page import contest_tables, headlines, seconds_span
from stn_export.bench import targets
from stn_export.bench.cases import cases
from stn_export.bench.machine import on_threads
from stn_export.bench.plan import GRIDS
from stn_export.bench.targets import Target, find_targets
from stn_export.report.costs import single_table, tables
from stn_export.results.card import card, figures, speedup_words
from stn_export.results.choice import Marks, baselines_words, headline, over_moments, pytorch_contests, time_of
from stn_export.results.text import span
from stn_export.runners import Step
from tests import made_records
from tests.bench_rows import facts, timing
from tests.made_records import MadeTiming, in_contest, timed
from tests.test_answer import FOLDED, INT8, content

REQUEST = made_records.timing(facts(FOLDED, "onnxruntime-cpu", "cpu", 1, "request") | timing(1.3e-4, 1, 0.01))


def against(runner: str, threads: int, ratio: float, **more: object) -> MadeTiming:
    """A paired comparison of requests with a way to run it in PyTorch."""
    said = {"baseline": f"stn-{runner}-program-{threads}-threads", "baseline_runner": runner, "by_host": True}
    return in_contest(FOLDED, "pytorch", ratio, **said, baseline_threads=threads, **more)


WAYS = (
    against("eager-cpu", 1, 0.1),
    against("eager-channels-last-cpu", 1, 0.16),
    against("compiled-cpu", 2, 0.25),
    against("compiled-cpu", 1, 0.2),
)


def test_the_headline_is_a_request_against_pytorch_at_its_fastest():
    rows = [timed(FOLDED, 1e-4), REQUEST, in_contest(FOLDED, "eager", 0.05), *WAYS]
    said = dict(card(content(*rows)))["latency"]
    assert said == (
        "0.130 ms per example (0.129 to 0.131), host array to host array; speed-up over torch.compile on 2 threads "
        "4.00 × (3.88 to 4.12), the fastest of torch.compile on 1 and 2 threads, eager PyTorch in "
        "channels_last on 1 thread, eager PyTorch on 1 thread"
    )
    assert figures(content(*rows))["cpu"]["latency"]["p50"] == 1.3e-4
    assert figures(content(*rows))["cpu"]["latency"]["regime"] == "request"


def test_ways_on_the_same_threads_are_named_once():
    every = [against(way, threads, 0.2) for way in ("compiled-cpu", "eager-cpu") for threads in (2, 1)]
    assert baselines_words(every) == "torch.compile and eager PyTorch, each on 1 and 2 threads"
    assert baselines_words(every[1:]) == "torch.compile on 1 thread, eager PyTorch on 1 and 2 threads"


def test_only_requests_of_the_same_file_and_batch_are_quoted():
    many = made_records.timing(facts(FOLDED, "onnxruntime-cpu", "cpu", 16, "request") | timing(9e-4, 16))
    other = made_records.timing(facts(INT8, "onnxruntime-cpu", "cpu", 1, "request") | timing(2e-5, 1))
    own = timed(FOLDED, 1e-4)
    assert headline([many, other, own], own) is own
    assert headline([many, other, own, REQUEST], own) is REQUEST
    assert pytorch_contests([*WAYS, against("eager-cpu", 1, 0.9) | {"batch": 16}], own)[0] is WAYS[2]


def test_the_interval_covers_the_baselines_times_in_all_comparisons_of_the_run():
    """Eager took 0.573 ms beside one file and 0.609 beside another: 14.4 to 14.6 is too narrow."""
    ours = in_contest(FOLDED, "eager", 0.069, noise=0.005) | {"seconds": 0.0405e-3, "baseline_seconds": 0.587e-3}
    others = [
        in_contest(INT8, "eager", 0.2) | {"seconds": 0.1e-3, "baseline_seconds": seconds}
        for seconds in (0.573e-3, 0.609e-3)
    ]
    found = over_moments(ours, [ours, *others]).inverse
    assert found.middle == pytest.approx(1 / 0.069)
    assert found.low == pytest.approx(1 / 0.069 * 0.573 / 0.587)
    assert found.high == pytest.approx(1 / 0.069 * 0.609 / 0.587)
    alone = over_moments(ours, [ours]).inverse
    assert (alone.low, alone.high) == pytest.approx((1 / (0.069 * 1.005), 1 / (0.069 * 0.995)))
    elsewhere = [others[1] | {"batch": 64}, others[1] | {"baseline": "of another"}, others[1] | {"contest": "default"}]
    assert over_moments(ours, [ours, *elsewhere]).inverse == alone


def test_our_own_times_at_other_moments_count_too():
    fast, slow = (against("eager-cpu", 1, 0.1) | {"seconds": seconds} for seconds in (1e-4, 1.2e-4))
    assert over_moments(fast, [fast, slow | {"baseline": "another"}]).high == pytest.approx(0.12)
    assert speedup_words(
        [timed(FOLDED, 1e-4), fast, slow | {"baseline": "b"}], timed(FOLDED, 1e-4), Marks([])
    ).startswith("speed-up over eager PyTorch on 1 thread 10.0 × (8.33 to 10.3)")


def test_a_comparison_of_requests_shows_the_time_of_a_request():
    rows = [timed(FOLDED, 1e-4), REQUEST, *WAYS]
    assert time_of(WAYS[0], rows) == 1.3e-4
    assert time_of(WAYS[0] | {"seconds": 7e-4}, [timed(FOLDED, 1e-4), *WAYS]) == 7e-4
    text = "\n".join(contest_tables(rows))
    assert "### Requests against torch.compile on 2 threads" in text
    assert "| onnxruntime-cpu folded-fp32 | 1 | 130 µs | 0.250 (0.242 to 0.258) | faster | 0 of 25 |" in text


def test_results_name_the_request():
    kept = {"proved": [["stn", "folded-fp32", "onnxruntime-cpu"]], "portability": {}}
    first = headlines(kept, [timed(FOLDED, 1e-4), REQUEST])[0]
    assert first.endswith("folded-fp32, 130 µs (129 to 131 µs) for one example, host array to host array.")


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(40.47e-6, 40.51e-6, "40.47 to 40.51 µs"), (9e-4, 1.1e-3, "900 to 1,100 µs"), (2e-3, 2e-3, "±0 %")],
)
def test_the_ends_of_a_shown_time_differ(low: float, high: float, said: str):
    assert seconds_span(low, high) == said
    assert span(0.0687, 0.0696) == "0.0687 to 0.0696"


def test_memory_in_the_report_is_a_fresh_processes():
    started = facts(FOLDED, "onnxruntime-cpu", "cpu", 1, "start-up", load_seconds=0.25, first_seconds=6.1e-3)
    start = made_records.timing(started)
    cold = timed(FOLDED, 4e-5, inputs="cold: 3 buffers", p50_low=3.9e-5, p50_high=2.46e-4)
    rows = [timed(FOLDED, 1e-4, host_bytes=1.6 * 2**20), cold, REQUEST, start | {"host_bytes": 80 * 2**20}]
    table = single_table(tables(rows, {}).single, Marks([]))
    shown = dict(zip(table.columns, (getattr(cell, "text", cell) for cell in table.rows[0]), strict=True))
    assert (shown["host, MiB"], shown["load"], shown["first answer"]) == ("80.0", "250", "6.10")
    assert (shown["cold"], shown["request"]) == ("0.0400 (0.0390 to 0.246)", "0.130 (0.129 to 0.131)")
    alone = single_table(tables(rows[:1], {}).single, Marks([]))
    assert "host, MiB" not in alone.columns


@pytest.fixture
def found(run) -> list[Target]:
    return find_targets(run, "cpu")


def test_every_way_to_run_it_in_pytorch_is_a_baseline(found: list[Target], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(targets, "cores", lambda: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    listed = list(cases("pytorch", found, GRIDS["quick"].pytorch))
    native = [case for case in listed if case.target.runner.name == "native-cpu"]
    assert {(case.baseline.runner.name, case.baseline.threads) for case in native} == {
        (name, threads) for name in ("eager-cpu", "eager-channels-last-cpu", "compiled-cpu") for threads in (1, 3)
    }
    assert all(case.baseline.host and case.target.host and case.target.threads == 1 for case in listed)
    assert len({str(case) for case in listed}) == len(listed)
    assert {case.batch for case in listed} == {1}


def test_channels_last_computes_the_same_with_its_weights_and_inputs_laid_out(found: list[Target]):
    [eager] = [each for each in found if (each.network.name, each.runner.name) == ("stn", "eager-cpu")]
    target = Target(eager.network, eager.artifact, eager.path, targets.CHANNELS_LAST, host=True, threads=1)
    target.step(3)()  # which compares it with eager PyTorch
    runner = target.open()
    weight = next(value for value in runner.module.parameters() if value.dim() == 4)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    feeds = target.feeds(2)[0]
    assert runner.place(feeds)[0].is_contiguous(memory_format=torch.channels_last)
    assert target.found["options"]["memory_format"] == "channels_last"


def test_a_step_on_its_own_threads_takes_them_back():
    before, seen = torch.get_num_threads(), []
    try:
        steps = [on_threads(Step(lambda: seen.append(torch.get_num_threads())), count) for count in (1, 2)]
        for step in (*steps, *steps):
            step()
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2, 1, 2]
