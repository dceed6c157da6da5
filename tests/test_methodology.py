"""How the benchmarks measure: intervals that hold the truth as often as they say, turns, warming up, disturbance."""

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from stn_export.bench import machine, methodology
from stn_export.bench.grids import GRIDS
from stn_export.bench.intervals import median_interval, ratio_interval, stretch, summarise, verdict
from stn_export.bench.machine import Watch, gpu_disturbed, reasons
from stn_export.bench.method import METHOD
from stn_export.bench.methodology import Interleaved, calls_for, interleave, load_pairs, warm_up
from stn_export.runners import Step

BLOCKS = GRIDS["quick"].blocks
TRIALS = 200
QUIET = {"sm_clock_mhz": 1980, "held_back_by": []}

Noise = Callable[[np.random.Generator, int], np.ndarray]


def autoregressive(random: np.random.Generator, count: int) -> np.ndarray:
    """A machine that wanders: each moment is nine tenths of the one before."""
    values = random.normal(0, 0.04, count)
    for index in range(1, count):
        values[index] += 0.9 * values[index - 1]
    return values


# Logarithms of slowness, slot after slot: two slots make a block.
MACHINES: dict[str, Noise] = {
    "quiet": lambda random, count: np.zeros(count),
    "drift": lambda random, count: np.linspace(0, 0.5, count),
    "wandering": autoregressive,
    "bursts": lambda random, count: 0.5 * np.repeat(random.random(count) < 0.2, 6)[:count],
    "heavy tails": lambda random, count: 0.02 * random.standard_t(1.5, count),
    "second is slower": lambda random, count: np.tile([0, 0.03], count // 2),
}


def contest_of(random: np.random.Generator, noise: Noise, truth: float, load_spread: float) -> tuple[float, float]:
    """The interval of a simulated contest, its order and its loads drawn as ours are."""
    slots = (noise(random, 2 * BLOCKS) + random.normal(0, 0.01, 2 * BLOCKS)).reshape(BLOCKS, 2)
    first = random.permutation(np.arange(BLOCKS) % 2)
    loads = np.arange(BLOCKS) % METHOD.loads
    logs = slots[range(BLOCKS), first] - slots[range(BLOCKS), 1 - first]
    logs += random.normal(0, load_spread, METHOD.loads)[loads]
    return ratio_interval(truth * np.exp(logs), loads)


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("load_spread", [0.0, 0.015])
def test_intervals_hold_the_truth_as_often_as_they_say(name: str, load_spread: float):
    random = np.random.default_rng(1)
    intervals = [contest_of(random, MACHINES[name], 1.3, load_spread) for _ in range(TRIALS)]
    held = sum(low <= 1.3 <= high for low, high in intervals)
    assert held >= 0.92 * TRIALS  # 0.95 less two standard errors of this count


def test_blocks_alone_do_not_see_that_loads_differ():
    """Why each side is loaded several times: without, the interval misses the truth most of the time."""
    random, held = np.random.default_rng(2), 0
    for _ in range(TRIALS):
        ratios = np.exp(random.normal(0, 0.015) + random.normal(0, 0.01, BLOCKS))
        low, high = ratio_interval(ratios, np.zeros(BLOCKS))
        assert low < np.exp(-METHOD.load_spread) * np.median(ratios)
        held += low * np.exp(METHOD.load_spread) <= 1 <= high / np.exp(METHOD.load_spread)
    assert held < 0.6 * TRIALS


@pytest.mark.parametrize("name", MACHINES)
def test_a_slowdown_of_15_percent_is_found(name: str):
    random = np.random.default_rng(3)
    verdicts = [verdict(*contest_of(random, MACHINES[name], 1.15, 0.005)) for _ in range(50)]
    assert verdicts.count("slower") >= 49


def test_a_drift_that_hits_both_leaves_the_ratio():
    drift = np.linspace(1, 5, 40)
    assert ratio_interval(3 * drift / drift, np.arange(40) % 5) == pytest.approx((3.0, 3.0))


def test_the_median_of_a_wandering_machine():
    """Single calls resampled would hold the truth half of the time here."""
    random, held = np.random.default_rng(4), 0
    for _ in range(60):
        low, high = median_interval(np.exp(autoregressive(random, 1000)))
        held += low <= 1 <= high
    assert held >= 52


def test_percentiles():
    samples = np.random.default_rng(0).permutation(np.arange(1, 1001)) / 1000
    found = summarise(samples)
    assert found["n"] == 1000
    assert found["p50"] == pytest.approx(0.5005)
    assert found["p90"] == pytest.approx(0.9001)
    assert found["p99"] == pytest.approx(0.99001)
    assert found["iqr"] == pytest.approx(0.4995)
    assert found["p50_low"] < found["p50"] < found["p50_high"]


@pytest.mark.parametrize(("count", "there"), [(661, False), (662, True)])
def test_a_p99_needs_662_samples(count: int, there: bool):
    assert (summarise(np.random.default_rng(0).random(count))["p99"] is not None) == there


def test_few_equal_samples():
    assert median_interval(np.full(5, 0.25)) == (0.25, 0.25)
    assert median_interval(np.array([0.25])) == (0.25, 0.25)


def test_correlation_stretches():
    random = np.random.default_rng(0)
    assert stretch(random.random(1000)) < 1.1
    assert stretch(autoregressive(random, 1000)) > 3
    assert stretch(np.array([1.0, 2.0])) == 1


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.98, 1.02, "same"),
        (0.975, 0.99, "same"),
        (0.90, 0.99, "faster"),
        (1.01, 1.10, "slower"),
        (0.96, 1.01, "cannot tell"),
        (0.99, 1.04, "cannot tell"),
    ],
)
def test_verdicts(low: float, high: float, said: str):
    assert verdict(low, high) == said


def contenders(seconds: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Interleaved]:
    """Two contenders whose every call takes so long by a clock of our own; who was called is written down."""
    called, clock = [], SimpleNamespace(now=0.0)
    monkeypatch.setattr(methodology.time, "perf_counter", lambda: clock.now)

    def load(name: str, took: float) -> Callable[[], Step]:
        def step() -> None:
            called.append(name)
            clock.now += took

        return lambda: Step(step, lambda: clock.now)

    turns = interleave(load("a", seconds[0]), load("b", seconds[1]), "cpu", GRIDS["quick"], seed=0)
    called.clear()
    return called, turns


def test_the_contenders_take_turns_in_random_order(monkeypatch: pytest.MonkeyPatch):
    called, turns = contenders((1.1e-3, 2.2e-3), monkeypatch)
    for _ in range(turns.blocks):
        turns.block()
    assert (turns.blocks, turns.calls) == (BLOCKS, (9, 5))
    block = sum(turns.calls)
    blocks = ["".join(called[start : start + block]) for start in range(0, len(called), block)]
    firsts = [text[0] for text in blocks]
    assert {"a" * 9 + "b" * 5, "b" * 5 + "a" * 9} == set(blocks)
    assert abs(firsts.count("a") - firsts.count("b")) <= 1
    assert any(one == two for one, two in pairwise(firsts))  # it does not merely alternate


def test_what_a_contest_says(monkeypatch: pytest.MonkeyPatch):
    _, turns = contenders((1e-3, 2e-3), monkeypatch)
    turns.medians = [(1e-3, 2e-3)] * BLOCKS
    turns.watch.disturbed = [False, True] + [False] * (BLOCKS - 2)
    found = turns.summary()
    assert (found["ratio"], found["ratio_low"], found["ratio_high"]) == pytest.approx((0.5, 0.5, 0.5))
    assert (found["verdict"], found["blocks"], found["disturbed_blocks"]) == ("faster", BLOCKS, 1)


def test_slow_calls_get_fewer_blocks(monkeypatch: pytest.MonkeyPatch):
    _, turns = contenders((0.1, 0.2), monkeypatch)
    assert (turns.blocks, turns.calls) == (METHOD.fewest_blocks, (5, 5))


def test_a_wide_interval_gets_more_blocks(monkeypatch: pytest.MonkeyPatch):
    _, turns = contenders((1e-3, 1e-3), monkeypatch)
    turns.medians = [(1.0, 1.0 + 0.5 * (index % 2)) for index in range(turns.blocks)]
    turns.go_on()
    assert BLOCKS < len(turns.medians) <= METHOD.patience * BLOCKS + METHOD.loads
    _, turns = contenders((1e-3, 1e-3), monkeypatch)
    turns.medians = [(1.0, 1.0)] * turns.blocks
    turns.go_on()
    assert len(turns.medians) == BLOCKS


def test_either_is_loaded_several_times_and_first_in_turn(monkeypatch: pytest.MonkeyPatch):
    order = []
    pairs = load_pairs(lambda: order.append("a"), lambda: order.append("b"))
    assert len(pairs) == METHOD.loads
    assert "".join(order) == "ab" + "ba" + "ab" + "ba" + "ab"
    clock = iter([0.0, METHOD.load_seconds])
    monkeypatch.setattr(methodology.time, "perf_counter", lambda: next(clock))
    assert len(load_pairs(lambda: None, lambda: None)) == 1


def test_calls_stay_in_bounds():
    assert calls_for(1e-9, 1.0) == 5000
    assert calls_for(100.0, 1.0) == 5
    assert calls_for(0.01, 1.0) == 100


def test_warming_up_ends_when_windows_agree(monkeypatch: pytest.MonkeyPatch):
    medians = iter([5.0, 4.0, 3.0, 2.99, 1.0])
    monkeypatch.setattr(methodology, "_window", lambda step, seconds: next(medians))
    warm = warm_up(lambda: None, 0.1)
    assert (warm.call_seconds, warm.stable) == (2.99, True)


def test_warming_up_is_capped(monkeypatch: pytest.MonkeyPatch):
    medians = iter(2.0**power for power in range(1000))
    monkeypatch.setattr(methodology, "_window", lambda step, seconds: next(medians))
    warm = warm_up(lambda: None, 0.1)
    assert (warm.call_seconds, warm.stable) == (2.0 ** (METHOD.warm_windows - 1), False)


def test_a_cpu_that_was_shared_is_disturbed(monkeypatch: pytest.MonkeyPatch):
    times = {"perf_counter": [0.0, 1.0, 1.0, 2.0], "process_time": [0.0, 0.99, 1.0, 1.5]}
    for name, values in times.items():
        monkeypatch.setattr(machine.time, name, iter(values).__next__)
    watch = Watch("cpu")
    for _ in range(2):
        with watch:
            pass
    assert watch.disturbed == [False, True]
    assert watch.facts()["gpu"] is None
    assert watch.facts()["load_average"] >= 0


@pytest.mark.parametrize(
    ("after", "disturbed"),
    [
        ({}, False),
        ({"sm_clock_mhz": 1900}, False),
        ({"sm_clock_mhz": 1700}, True),
        ({"held_back_by": ["SwPowerCap"]}, True),
    ],
)
def test_a_gpu_that_was_held_back_is_disturbed(after: dict, disturbed: bool):
    assert gpu_disturbed(QUIET, QUIET | after) == disturbed
    assert not gpu_disturbed(None, QUIET)


def test_reasons_by_name():
    library = SimpleNamespace(
        nvmlClocksThrottleReasonGpuIdle=1,
        nvmlClocksThrottleReasonSwPowerCap=4,
        nvmlClocksEventReasonSwThermalSlowdown=32,
        nvmlClocksThrottleReasonAll=37,
        nvmlDeviceGetHandleByIndex=None,
    )
    assert reasons(library, 1) == []
    assert reasons(library, 1 | 4 | 32) == ["SwPowerCap", "SwThermalSlowdown"]


def test_what_a_gpu_says_of_itself():
    library = SimpleNamespace(
        NVML_CLOCK_SM="sm",
        NVML_CLOCK_MEM="memory",
        NVML_TEMPERATURE_GPU="gpu",
        nvmlClocksThrottleReasonSwPowerCap=4,
        nvmlDeviceGetClockInfo=lambda gpu, clock: {"sm": 1980, "memory": 2619}[clock],
        nvmlDeviceGetPowerUsage=lambda gpu: 350_500,
        nvmlDeviceGetTemperature=lambda gpu, sensor: 41,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda gpu: 4,
    )
    assert machine.read_gpu(library, object()) == {
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 2619,
        "power_watts": 350.5,
        "temperature_c": 41,
        "held_back_by": ["SwPowerCap"],
    }
