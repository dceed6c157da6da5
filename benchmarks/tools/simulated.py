"""Simulate machines whose true times are known: a clock of their own, and files whose calls advance it.

All noise is of the logarithms of times: of the machine by the millisecond (its weather), of single calls, and of loads.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from stn_export.runners import Step

CALL = 1e-3  # seconds of an undisturbed call
TICKS = 6000  # milliseconds of weather

Noise = Callable[[np.random.Generator, int], np.ndarray]


def _bursts(ticks: int, share: float, much: float) -> Noise:
    return lambda random, count: much * np.repeat(random.random(count // ticks + 1) < share, ticks)[:count]


def _wandering(ticks: float, much: float) -> Noise:
    """Return a first-order process with a correlation time of ``ticks`` and a standard deviation of ``much``."""
    keeps = math.exp(-1 / ticks)

    def draw(random: np.random.Generator, count: int) -> np.ndarray:
        pushes = random.normal(0, much * math.sqrt(1 - keeps**2), count)
        pushes[0] = random.normal(0, much)
        return np.fromiter(itertools.accumulate(pushes, lambda old, push: keeps * old + push), float, count)

    return draw


def _quiet(random: np.random.Generator, count: int) -> np.ndarray:
    return np.zeros(count)


def _calls(random: np.random.Generator, count: int) -> np.ndarray:
    return random.normal(0, 0.03, count)


def _interrupted(random: np.random.Generator, count: int) -> np.ndarray:
    return np.minimum(np.abs(0.03 * random.standard_t(1.2, count)), 3.0)


def _loads(random: np.random.Generator, spread: float) -> float:
    return random.normal(0, spread)


def _few_loads(random: np.random.Generator, spread: float) -> float:
    return spread * (random.random() < 0.2)


@dataclass(frozen=True)
class Condition:
    """A kind of machine; ``claimed`` says whether intervals are expected to reach their nominal coverage there."""

    name: str
    weather: Noise = _quiet
    calls: Noise = _calls
    spread: float = 0.0
    loads: Callable[[np.random.Generator, float], float] = _loads
    load_seconds: float = 0.0
    claimed: bool = True


CONTESTS = (
    Condition("independent noise, 3 % a call"),
    Condition("drift: twice as slow every second", lambda random, count: np.linspace(0, count * 0.69e-3, count)),
    Condition("bursts: a fifth of the time 65 % slower, 30 ms each", _bursts(30, 0.2, 0.5)),
    Condition("short bursts: a tenth of the time 65 % slower, 3 ms each", _bursts(3, 0.1, 0.5)),
    Condition("correlated noise: 9 %, forgotten in 100 ms", _wandering(100, 0.09)),
    Condition("correlated noise: 9 %, forgotten in 10 ms", _wandering(10, 0.09)),
    Condition("calls with heavy tails", calls=_interrupted),
    Condition("loads that differ by 1.5 %", spread=0.015),
    Condition("loads by 1 %, correlated noise 9 %, forgotten in 30 ms", _wandering(30, 0.09), spread=0.01),
    Condition("one load only, of 1.2 %", spread=0.012, load_seconds=3.0, claimed=False),
    Condition("one load in five is 3.5 % slower", spread=0.035, loads=_few_loads, claimed=False),
)
MEDIANS = (
    CONTESTS[0],
    CONTESTS[3],
    CONTESTS[6],
    Condition("correlated noise: 9 %, forgotten in 3 ms", _wandering(3, 0.09)),
    Condition("correlated noise: 9 %, forgotten in 10 ms", _wandering(10, 0.09), claimed=False),
    Condition("correlated noise: 9 %, forgotten in 100 ms", _wandering(100, 0.09), claimed=False),
)


class Machine:
    """A simulated clock, and files whose calls advance it."""

    def __init__(self, condition: Condition, random: np.random.Generator) -> None:
        self.condition, self.random, self.seconds = condition, random, 0.0
        self.weather = np.exp(condition.weather(random, TICKS)).tolist()
        self.noise = self._noise()

    def _noise(self) -> Iterator[float]:
        while True:
            yield from np.exp(self.condition.calls(self.random, TICKS)).tolist()

    def now(self) -> float:
        """Return the simulated time in seconds."""
        return self.seconds

    def load(self, slowdown: float = 0.0) -> Step:
        """Return a call of a file that takes ``1 + slowdown`` times as long as another's."""
        own = CALL * (1 + slowdown) * math.exp(self.condition.loads(self.random, self.condition.spread))
        self.seconds += self.condition.load_seconds

        def run() -> None:
            tick = min(int(1e3 * self.seconds), TICKS - 1)
            self.seconds += own * self.weather[tick] * next(self.noise)

        return Step(run, self.now)
