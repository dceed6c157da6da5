"""Progress of long work: a bar on a terminal, a plain line every ten seconds in a pipe."""

from collections.abc import Callable, Sequence
from threading import Event, Thread
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from stn_export.cli.tables import visible

EACH = 10.0  # seconds between two lines


def duration(seconds: float) -> str:
    """Format a time for people: ``40 s``, ``3 min 20 s``, ``2 h 5 min``."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (0 if hours else rest, "s"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count)


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
        self.before = 0.0  # how much was completed at the start
        self.duplicate: IO[str] | None = None  # a stream opened for this bar alone
        self._ended, self._thread = Event(), None if shown else Thread(target=self._say_lines, daemon=True)

    def start(self) -> None:
        """Start showing progress."""
        super().start()
        if self._thread:
            self._thread.start()

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
        left = self.left()
        return counted if left is None else f"{counted}, about {duration(left)} left"

    def left(self) -> float | None:
        """Estimate the seconds left from the pace so far, at most ``most()``; before any progress return ``most()``."""
        task = self.tasks[0]
        done = task.completed - self.before
        if not done or task.elapsed is None or task.total is None:
            return self.most()
        by_pace = task.elapsed / done * (task.total - task.completed)
        most = self.most()
        return by_pace if most is None else min(by_pace, most)

    def _say_lines(self) -> None:
        while not self._ended.wait(self.each):
            if self.tasks:
                self.console.print(Text(visible(self.line())))
