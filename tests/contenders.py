"""Contenders on made-up machines, for the functions of the suites that time real ones."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from benchmarks.tools.simulated import Condition, Machine
from stn_export.runners import Step

EXACT = Condition("nothing disturbs it", calls=lambda random, count: np.zeros(count))


class Benchmark:
    """As much of pytest-benchmark's fixture as the suites use."""

    def __init__(self) -> None:
        self.extra_info: dict = {}

    def pedantic(self, step: Callable[[], object], rounds: int) -> None:
        data = []
        for _ in range(rounds):
            start = self._timer()
            step()
            data.append(self._timer() - start)
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=data))


@dataclass(frozen=True)
class Contender:
    """A target of the suites on a made-up machine."""

    name: str
    machine: Machine
    slowdown: float
    regime: str = "contest"
    said: dict = field(default_factory=dict)  # more that its rows say
    batches: list[int] = field(default_factory=list)

    @property
    def runner(self) -> SimpleNamespace:
        return SimpleNamespace(name=f"{self.name}-cpu", device="cpu", on_events=False, foreign=False)

    @property
    def by_host(self) -> bool:
        return False

    @property
    def network(self) -> SimpleNamespace:
        return SimpleNamespace(facts=SimpleNamespace(label=self.name))

    @property
    def artifact(self) -> SimpleNamespace:
        return SimpleNamespace(name=f"{self.name}-file", sha256=f"of {self.name}")

    def __str__(self) -> str:
        return self.name  # what the order of the turns is drawn from

    def step(self, batch: int) -> Step:
        self.batches.append(batch)
        return self.machine.load(self.slowdown)

    def facts(self, batch: int) -> dict:
        return self.said | {"batch": batch, "regime": self.regime, "options": {"of": batch}, "threads": 1}


def contenders(condition: Condition, *slowdowns: float) -> list[Contender]:
    machine = Machine(condition, np.random.default_rng(0))
    return [Contender(name, machine, share) for name, share in zip(("ours", "theirs"), slowdowns, strict=False)]
