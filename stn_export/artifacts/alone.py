"""One stage at a time changes a run directory."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from stn_export import cli
from stn_export.artifacts.files import sweep, write_atomically
from stn_export.errors import UserError

LOCK, HOLDER = ".run.lock", ".run.holder"
MANIFEST, STATE = "manifest.json", "training.pt"


@contextmanager
def alone(run: Path, wait: bool = True, make: bool = False) -> Iterator[None]:
    """Change a run directory while no other process does; the lock dies with its owner.

    What an interrupted write left there is cleaned up first.

    Args:
        run: the directory; one that is not there, or is no run, stays as it is, and the stage says so itself.
        wait: for another stage to end, after a line that says which.
        make: the directory, where it is not there.

    Raises:
        UserError: naming who holds it, where this is not to wait, or where nothing can be written there.
    """
    if make:
        run.mkdir(parents=True, exist_ok=True)
    if not make and not _is_run(run):
        yield
        return
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        said = f"{run} is being changed by {_holder(run)}"
        if not wait:
            raise UserError(said, "wait until it has ended, or leave out --no-wait") from None
        cli.say(f"{said}; waiting")
        lock.acquire()
    except OSError as error:
        raise UserError(f"nothing can be written into {run}: {error.strerror}", "make it writable") from error
    try:
        holder = f"process {os.getpid()}: {' '.join(sys.argv)[:200]}"
        write_atomically(run / HOLDER, holder.encode(errors="backslashreplace"))
        sweep(run)
        yield
    finally:
        (run / HOLDER).unlink(missing_ok=True)
        lock.release()


def _is_run(path: Path) -> bool:
    """Whether a directory holds a network, or trainings of one: nothing is written into any other."""
    patterns = (f"{depth}/{name}" for depth in ("*", "*/*") for name in (MANIFEST, STATE))
    return any(any(path.glob(pattern)) for pattern in patterns)


def _holder(run: Path) -> str:
    try:
        return (run / HOLDER).read_text(errors="replace", encoding="utf-8")
    except OSError:
        return "another process"
