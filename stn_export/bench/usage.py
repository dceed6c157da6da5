"""What this process and its children took of the processor, and how long their threads had to wait for it."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROCESSES = Path("/proc")
NANOSECONDS = 1e-9


def descendants(process: int) -> Iterator[int]:
    """Yield the ids of a process's children and of their children; of none where the system does not list them."""
    for listed in (PROCESSES / str(process) / "task").glob("*/children"):
        try:
            children = [int(word) for word in listed.read_text(encoding="utf-8").split()]
        except OSError:  # the thread has ended meanwhile
            continue
        for child in children:
            yield child
            yield from descendants(child)


def cpu_seconds(process: int) -> float:
    """Return the processor time of another process, all its threads together; 0 where it has ended."""
    clock = (~process << 3) | 2  # CPUCLOCK_SCHED of a process: clock_getcpuclockid(3), Linux
    try:
        return time.clock_gettime(clock)
    except OSError:
        return 0.0


def waits(process: int) -> dict[int, float]:
    """Return how long each thread of a process has waited for a core since it began, in seconds, by its id."""
    found = {}
    for path in (PROCESSES / str(process) / "task").glob("*/schedstat"):
        try:
            found[int(path.parent.name)] = int(path.read_text(encoding="utf-8").split()[1]) * NANOSECONDS
        except (OSError, IndexError):  # the thread has ended meanwhile, or the system keeps no such statistics
            continue
    return found


@dataclass(frozen=True)
class Usage:
    """Processor time of this process and of its children by process id, and each thread's waiting, in seconds."""

    wall: float
    cpu: dict[int, float]
    waited: dict[int, float]

    @classmethod
    def now(cls) -> "Usage":
        """Read all of it."""
        own, children = os.getpid(), list(descendants(os.getpid()))
        cpu = {child: cpu_seconds(child) for child in children}
        waited = {thread: seconds for process in (own, *children) for thread, seconds in waits(process).items()}
        return cls(time.perf_counter(), cpu | {own: time.process_time()}, waited)

    def disturbed_since(self, before: "Usage", share: float) -> bool:
        """Say whether others took the processor: we had less than ``share`` of one core, or a thread waited for one.

        The first alone would miss a call on several threads, which have more than one core's time even so.
        """
        wall = self.wall - before.wall
        cpu = sum(_grown(before.cpu, self.cpu))
        return cpu < share * wall or max(_grown(before.waited, self.waited), default=0.0) > (1 - share) * wall


def _grown(before: dict[int, float], after: dict[int, float]) -> Iterator[float]:
    """Yield how much each figure has grown; of what was not there before, all of it."""
    return (value - before.get(key, 0.0) for key, value in after.items() if value >= before.get(key, 0.0))
