"""How the benchmarks measure: turns, loads, warming up, disturbance. The intervals: ``test_numbers``."""

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import pytest

from stn_export.bench import machine
from stn_export.bench.machine import Watch, gpu_disturbed, reasons
from stn_export.bench.plan import GRIDS
from stn_export.bench.timing import Interleaved, WarmUp, interleave, load_pairs, samples_for, warm_up
from stn_export.results.statistics import METHOD
from stn_export.runners import Step

BLOCKS = GRIDS["quick"].blocks
QUIET = {"sm_clock_mhz": 1980, "held_back_by": [], "idle": False}


def contenders(seconds: tuple[float, float]) -> tuple[list[str], Interleaved]:
    """Two contenders whose every call takes so long by a clock of our own; who was called is written down."""
    called, clock = [], SimpleNamespace(now=0.0)

    def load(name: str, took: float) -> Callable[[], Step]:
        def step() -> None:
            called.append(name)
            clock.now += took

        return lambda: Step(step, lambda: clock.now)

    ours, theirs = load("a", seconds[0]), load("b", seconds[1])
    turns = interleave(ours, theirs, "cpu", GRIDS["quick"], seed=0, now=lambda: clock.now)
    called.clear()
    return called, turns


def test_the_contenders_take_turns_in_random_order():
    called, turns = contenders((1.1e-3, 2.2e-3))
    for _ in range(turns.blocks):
        turns.block()
    assert (turns.blocks, turns.samples, turns.watch.device) == (BLOCKS, (9, 5), "cpu")
    block = sum(turns.samples)
    blocks = ["".join(called[start : start + block]) for start in range(0, len(called), block)]
    firsts = [text[0] for text in blocks]
    assert {"a" * 9 + "b" * 5, "b" * 5 + "a" * 9} == set(blocks)
    assert abs(firsts.count("a") - firsts.count("b")) <= 1
    assert any(one == two for one, two in pairwise(firsts))  # it does not merely alternate


@pytest.mark.parametrize("seconds", [(1.1e-3, 2.2e-3), (2.2e-3, 1.1e-3)])
def test_a_block_is_as_long_for_either(seconds: tuple[float, float]):
    assert contenders(seconds)[1].samples == ((9, 5) if seconds[0] < seconds[1] else (5, 9))


def test_the_fastest_load_says_how_many_calls_fill_a_block():
    took = iter([2e-3, 1.1e-3, 4e-3, 4e-3, 4e-3])
    clock = SimpleNamespace(now=0.0)

    def load(seconds: float) -> Step:
        def step() -> None:
            clock.now += seconds

        return Step(step, lambda: clock.now)

    turns = interleave(lambda: load(next(took)), lambda: load(2e-3), "cpu", GRIDS["quick"], 0, lambda: clock.now)
    assert turns.samples == (9, 5)
    # ten loads are warmed up for a fifth of the time, in two windows that end with the call that runs into their end
    assert clock.now == pytest.approx(10 * 0.02, rel=0.5)


def test_the_order_is_drawn_from_the_seed_and_balanced_in_each_part():
    first, second = (contenders((1e-3, 1e-3))[1].order for _ in range(2))
    assert first == second
    assert len(first) == METHOD.patience * BLOCKS
    sums = [sum(first[start : start + BLOCKS]) for start in range(0, len(first), BLOCKS)]
    assert set(sums) == {BLOCKS // 2, BLOCKS // 2 + 1}


def test_what_a_contest_says():
    _, turns = contenders((1e-3, 2e-3))
    turns.medians = [(1e-3, 2e-3)] * BLOCKS
    turns.watch.disturbed = [False, True] + [False] * (BLOCKS - 2)
    found = turns.summary()
    assert (found["ratio"], found["ratio_low"], found["ratio_high"]) == pytest.approx((0.5, 0.5, 0.5))
    assert (found["verdict"], found["blocks"], found["disturbed_blocks"]) == ("faster", BLOCKS, 1)


def test_slow_calls_get_fewer_blocks():
    _, turns = contenders((0.1, 0.2))
    assert (turns.blocks, turns.samples) == (METHOD.fewest_blocks, (5, 5))
    assert contenders((0.02, 0.02))[1].blocks == 15  # 0.2 s a block, six times 25 blocks of 0.02 s


def test_noise_of_blocks_gets_more_of_them():
    _, turns = contenders((1e-3, 1e-3))
    turns.medians = [(1.0, 1.0 + 0.5 * (index % 2)) for index in range(turns.blocks)]
    turns.go_on()
    assert len(turns.medians) == METHOD.patience * BLOCKS
    assert all(median == pytest.approx((1e-3, 1e-3)) for median in turns.medians[BLOCKS:])


@pytest.mark.parametrize("of_loads", [(1.0, 1.0, 1.0, 1.0, 1.0), (1.0, 2.0, 1.0, 3.0, 1.0)])
def test_quiet_blocks_are_enough_however_loads_differ(of_loads: tuple[float, ...]):
    _, turns = contenders((1e-3, 1e-3))
    turns.medians = [(1.0, of_loads[index % 5]) for index in range(turns.blocks)]
    turns.go_on()
    assert len(turns.medians) == BLOCKS


def test_either_is_loaded_several_times_and_first_in_turn():
    order = []
    pairs = load_pairs(lambda: order.append("a"), lambda: order.append("b"))
    assert len(pairs) == METHOD.loads
    assert "".join(order) == "ab" + "ba" + "ab" + "ba" + "ab"
    clock = iter([0.0, METHOD.load_seconds])
    assert len(load_pairs(lambda: None, lambda: None, clock.__next__)) == 1


def test_calls_stay_in_bounds():
    assert samples_for(1e-9, 1.0) == 5000
    assert samples_for(100.0, 1.0) == 5
    assert samples_for(0.01, 1.0) == 100


def warming(took: Callable[[float], float], seconds: float) -> tuple[WarmUp, SimpleNamespace]:
    """Warm up what takes so many seconds by a clock of our own, by the time that it shows."""
    clock = SimpleNamespace(now=0.0)

    def step() -> None:
        clock.now += took(clock.now)

    return warm_up(Step(step, lambda: clock.now), seconds, lambda: clock.now + 5.0), clock


def test_warming_up_ends_when_windows_agree():
    warm, clock = warming(lambda now: 0.05 if now < 1.0 else 0.03 if now < 2.0 else 0.0299, seconds=2.0)
    assert (warm.call_seconds, warm.stable) == (pytest.approx(0.0299), True)  # 0.05, 0.03, 0.0299: the last two agree
    assert warm.seconds == pytest.approx(clock.now) == pytest.approx(3.1, abs=0.1)


def test_warming_up_takes_its_time_though_the_first_windows_agree():
    warm, _ = warming(lambda now: 0.01, seconds=2.0)
    assert (warm.call_seconds, warm.stable) == (pytest.approx(0.01), True)
    assert warm.seconds == pytest.approx(2.0, abs=0.05)
    assert warm.facts() == {"seconds": warm.seconds, "stable": True}


def test_warming_up_is_capped():
    warm, _ = warming(lambda now: 0.01 * 1.05**now, seconds=2.0)  # 5 % slower from window to window
    assert not warm.stable
    assert warm.seconds == pytest.approx(METHOD.warm_windows, abs=1)
    assert warm.call_seconds == pytest.approx(0.01 * 1.05 ** (warm.seconds - 0.5), rel=0.02)


def test_two_per_cent_apart_is_agreement():
    assert warming(lambda now: 0.01 if now < 1.0 else 0.01019, seconds=2.0)[0].seconds < 2.2
    assert warming(lambda now: 0.01 if now < 1.0 else 0.01021, seconds=2.0)[0].seconds > 2.9


def test_a_cpu_that_was_shared_is_disturbed(monkeypatch: pytest.MonkeyPatch):
    times = {"perf_counter": [0.0, 1.0, 1.0, 2.0], "process_time": [0.0, 0.99, 1.0, 1.5]}
    for name, values in times.items():
        monkeypatch.setattr(machine.time, name, iter(values).__next__)
    monkeypatch.setattr(machine, "waits", lambda process: {})
    watch = Watch("cpu")
    for _ in range(2):
        with watch:
            pass
    assert watch.disturbed == [False, True]
    assert watch.facts()["gpu"] is None
    assert watch.facts()["load_average"] >= 0


@pytest.mark.parametrize(
    ("before", "after", "disturbed"),
    [
        ({}, {}, False),
        ({}, {"sm_clock_mhz": 1900}, False),
        ({}, {"sm_clock_mhz": 1700}, True),
        ({"sm_clock_mhz": 1700}, {}, True),
        ({}, {"held_back_by": ["SwPowerCap"]}, True),
        ({"sm_clock_mhz": 345, "idle": True}, {}, False),  # it woke up
        ({"sm_clock_mhz": 345, "idle": True}, {"held_back_by": ["SwPowerCap"]}, True),
        ({"idle": True}, {"sm_clock_mhz": 1700}, True),
    ],
)
def test_a_gpu_that_was_held_back_is_disturbed(before: dict, after: dict, disturbed: bool):
    assert gpu_disturbed(QUIET | before, QUIET | after) == disturbed
    assert not gpu_disturbed(None, QUIET)


def test_reasons_by_name():
    library = SimpleNamespace(
        nvmlClocksThrottleReasonGpuIdle=1,
        nvmlClocksThrottleReasonSwPowerCap=4,
        nvmlClocksEventReasonSwThermalSlowdown=32,
        nvmlClocksThrottleReasonAll=37,
        nvmlDeviceGetHandleByIndex=None,
    )
    assert reasons(library, 1) == {"GpuIdle", "All"}
    assert reasons(library, 4 | 32) == {"SwPowerCap", "SwThermalSlowdown", "All"}


def test_what_a_gpu_says_of_itself():
    library = SimpleNamespace(
        NVML_CLOCK_SM="sm",
        NVML_CLOCK_MEM="memory",
        NVML_TEMPERATURE_GPU="gpu",
        nvmlClocksEventReasonGpuIdle=1,
        nvmlClocksThrottleReasonSwPowerCap=4,
        nvmlClocksThrottleReasonAll=5,
        nvmlDeviceGetClockInfo=lambda gpu, clock: {"sm": 1980, "memory": 2619}[clock],
        nvmlDeviceGetPowerUsage=lambda gpu: 350_500,
        nvmlDeviceGetTemperature=lambda gpu, sensor: 41,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda gpu: 5,
    )
    assert machine.read_gpu(library, object()) == {
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 2619,
        "power_watts": 350.5,
        "temperature_c": 41,
        "held_back_by": ["SwPowerCap"],
        "idle": True,
    }
