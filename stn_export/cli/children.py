"""Start other processes; none of them outlives the process that started it. Nothing else in this package does so."""

import errno
import os
import shutil
import signal
import site
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from stn_export.cli import launch
from stn_export.errors import ROOT

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Word = str | Path
Handler = Callable[[int, FrameType | None], None]


def module(name: str, *arguments: Word) -> list[Word]:
    """Build the command that runs a Python module; ``-P`` keeps the current directory off the import path."""
    return [sys.executable, "-P", "-m", name, *arguments]


def environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Copy this process's environment, updated by ``variables``, with this same package importable."""
    copy = os.environ | dict(variables or {})
    installed = [*site.getsitepackages(), site.getusersitepackages()]
    if ROOT not in [Path(folder).resolve() for folder in installed]:  # a clone that is not installed
        copy["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), copy.get("PYTHONPATH", "")]))
    return copy


def start(
    command: Sequence[Word],
    *,
    end: signal.Signals = signal.SIGKILL,
    group: bool = False,
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> subprocess.Popen:
    """Start a command that is ended with this process.

    Args:
        command: program and arguments; the program is looked up in PATH.
        end: the signal sent to it when the calling thread ends.
        group: whether it runs in a session of its own, which the terminal's signals do not reach.
        env: its complete environment; by default this process's.
        options: further options of ``subprocess.Popen``.

    Raises:
        OSError: where there is no such command.
    """
    path = (env or os.environ).get("PATH")
    if shutil.which(command[0], path=path) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(command[0]))
    launched: list[Word] = [sys.executable, "-I", "-S", launch.__file__, str(int(end)), str(os.getpid())]
    return subprocess.Popen([*launched, str(int(group)), *command], env=env, start_new_session=group, **options)


def run(
    command: Sequence[Word], *, check: bool = False, timeout: float | None = None, **options: Any
) -> subprocess.CompletedProcess:
    """Run a command to its end and return its output, decoded as UTF-8.

    Raises:
        OSError: where there is no such command.
        subprocess.CalledProcessError: with ``check`` where its exit code is not 0.
        subprocess.TimeoutExpired: after ``timeout`` seconds; the command is killed.
    """
    piped: dict[str, Any] = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "encoding": "utf-8",
        "errors": "replace",
    }
    with start(command, **(piped | options)) as process:
        try:
            out, warned = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL) if options.get("group") else process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, out, warned)
    if check:
        done.check_returncode()
    return done


def follow(command: Sequence[Word], env: Mapping[str, str] | None = None) -> int:
    """Run a stage, and forward to it the signals that would end or stop this process.

    Returns:
        Its exit code; 128 plus the number of the signal that ended it.
    """
    process = start(command, end=signal.SIGTERM, group=True, env=env)
    try:
        with _handed_on(process):
            code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def _handed_on(process: subprocess.Popen) -> Iterator[None]:
    def hand_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    def stop(number: int, frame: FrameType | None) -> None:
        process.send_signal(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        process.send_signal(signal.SIGCONT)  # after SIGCONT

    with handled(dict.fromkeys(ENDING, hand_on) | {signal.SIGTSTP: stop}):
        yield


@contextmanager
def handled(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """Handle signals in this block, except those that this process was started to ignore, as under nohup.

    Does nothing outside the main thread, where Python allows no handlers.
    """
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in handlers if main}
    heeded = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, handlers[number])
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt: a signal handler."""
    raise KeyboardInterrupt


@contextmanager
def heeding() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this block as Ctrl-C does, so that files are kept or removed in an orderly way."""
    with handled({signal.SIGTERM: interrupt, signal.SIGHUP: interrupt}):
        yield
