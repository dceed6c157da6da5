"""Progress of long work: a bar on a terminal, a plain line every ten seconds in a pipe; and how long it will take.

How long is estimated from the counted work and from what a unit of such work took this user on this machine before.
"""

import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from stn_export.cli.tables import OUTPUT, visible
from stn_export.config import state_directory

EACH = 10.0  # seconds between two lines
UNTIMED = "never timed on this machine so far"
EARLY = 0.2  # share of the work before which earlier commands tell more of the pace than this one


def duration(seconds: float) -> str:
    """Format a time for people: ``40 s``, ``3 min 20 s``, ``2 h 5 min``."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (0 if hours else rest, "s"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count)


@dataclass
class Paces:
    """Seconds that a unit of work took, by stage and size of network, as measured by earlier commands on this machine.

    Sizes are decades of multiply-adds; where a size was never measured, the nearest one counts.
    """

    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls) -> "Paces":
        """Read what was measured so far; nothing where there is no file of it, or a damaged one."""
        try:
            content = json.loads(_paces_file().read_text(encoding="utf-8"))
            return cls({str(name): float(value) for name, value in content.items()})
        except (OSError, ValueError, TypeError, AttributeError):
            return cls()

    def keep(self, stage: str, size: float, units: float, seconds: float) -> None:
        """Note what a number of units took; only an estimate is lost where it cannot be written."""
        if units <= 0:
            return
        self.seconds = Paces.read().seconds | {_pace_name(stage, size): seconds / units}
        path = _paces_file()
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            made = path.with_name(f".{path.name}.{os.getpid()}")
            made.write_text(json.dumps(self.seconds), encoding="utf-8")
            made.replace(path)

    def of(self, stage: str, size: float = 1) -> float | None:
        """Return the seconds of a unit; None where no such stage was measured."""
        decades = [name.rpartition("/")[2] for name in self.seconds if name.rpartition("/")[0] == stage]
        near = min(filter(str.isdecimal, decades), key=lambda decade: abs(int(decade) - _decade(size)), default=None)
        return None if near is None else self.seconds[f"{stage}/{near}"]

    def expected(self, stage: str, work: Iterable[tuple[float, float]]) -> float | None:
        """Return the seconds that work will take, given as sizes with their units; None where no pace is known."""
        paces = [(count, self.of(stage, size)) for size, count in work if count]
        estimates = [count * pace for count, pace in paces if pace is not None]
        return sum(estimates) if len(estimates) == len(paces) else None


def _paces_file() -> Path:
    """Return the file of paces in the user's state directory, one for each machine that shares it."""
    return state_directory() / f"paces-{re.sub(r'[^A-Za-z0-9.-]', '_', platform.node()) or 'here'}.json"


def _decade(size: float) -> int:
    return round(math.log10(max(size, 1)))


def _pace_name(stage: str, size: float) -> str:
    return f"{stage}/{_decade(size)}"


@contextmanager
def measured(stage: str, size: float, units: float) -> Iterator[None]:
    """Keep the pace of the work in this block, if it runs to its end."""
    started = time.monotonic()
    yield
    Paces.read().keep(stage, size, units, time.monotonic() - started)


def forecast(work: str, seconds: float | None) -> str:
    """Say how much there is to do, and about how long it takes: ``22 files, about 40 s``."""
    return f"{work}, {UNTIMED if seconds is None else f'about {duration(seconds)}'}"


class Progress(Bar):
    """A progress bar on a terminal; elsewhere a plain line every ``EACH`` seconds.

    The plain lines come from a thread that sleeps in between: it wakes once in ten seconds, too rarely to shift the
    median of timed calls. With ``still`` a terminal's bar is redrawn only when progress is reported, by no thread.

    Args:
        console: where to print.
        columns: rich formats shown behind the bar.
        word: first word of a plain line, by default the first task's description.
        unit: what is counted.
        still: whether nothing may run beside the work.
    """

    def __init__(
        self, console: Console, columns: Sequence[str] = (), word: str = "", unit: str = "", still: bool = False
    ) -> None:
        words = [TextColumn(column, markup=False) for column in ("{task.description}", *columns)]
        layout = [words[0], BarColumn(), MofNCompleteColumn(), *words[1:], TimeRemainingColumn()]
        shown = console.is_terminal
        super().__init__(
            *layout,
            console=console,
            auto_refresh=not still,
            transient=True,
            redirect_stdout=not still,
            redirect_stderr=not still,
            disable=not shown,
        )
        self.word, self.unit, self.still, self.each = word, unit, still, EACH
        self.most: Callable[[], float | None] = lambda: None  # upper bound on the seconds left
        self.expected: float | None = None  # seconds of the whole work, from earlier commands
        self.before = 0.0  # how much was completed at the start
        self.duplicate: IO[str] | None = None  # a stream opened for this bar alone
        self._ended, self._thread = Event(), None if shown else Thread(target=self._say_lines, daemon=True)

    def start(self) -> None:
        """Start showing progress."""
        super().start()
        if self._thread:
            self._thread.start()

    def announce(self, total: float, expected: float | None) -> None:
        """Say before the work starts how much there is, and about how long it takes."""
        self.expected = expected
        if total > 0 and not OUTPUT.brief:
            words = forecast(f"{total:,.0f} {self.unit}", expected)
            self.console.print(Text(visible(f"{self.word}: {words}")))

    def add_task(self, *arguments: Any, **options: Any) -> TaskID:
        """Add a task; what is already ``completed`` does not count for the pace."""
        self.before = options.get("completed", 0)
        return super().add_task(*arguments, **options)

    def stop(self) -> None:
        """Stop showing progress, and end the thread."""
        super().stop()
        self._ended.set()
        if self._thread and self._thread.is_alive():
            self._thread.join()
        if self.duplicate:
            self.duplicate.close()

    def line(self) -> str:
        """Format progress and an estimate of the rest: ``bench: 6 of 14 rows, about 2 min left``."""
        task = self.tasks[0]
        word, unit = self.word or task.description, f" {self.unit}" if self.unit else ""
        counted = f"{word}: {task.completed:,.0f} of {task.total:,.0f}{unit}"
        seconds = self.left()
        return counted if seconds is None else f"{counted}, about {duration(seconds)} left"

    def left(self) -> float | None:
        """Estimate the seconds left from the pace so far, early on from earlier commands; at most ``most()``."""
        paces = [estimate for estimate in (self._by_pace(), self.most()) if estimate is not None]
        return min(paces, default=None)

    def _by_pace(self) -> float | None:
        task = self.tasks[0]
        done, total = task.completed - self.before, (task.total or 0) - self.before
        if self.expected is not None and done < EARLY * total:
            return self.expected * (1 - done / total)
        if not done or task.elapsed is None:
            return None
        return task.elapsed / done * (total - done)

    def _say_lines(self) -> None:
        while not self._ended.wait(self.each):
            if self.tasks:
                self.console.print(Text(visible(self.line())))
