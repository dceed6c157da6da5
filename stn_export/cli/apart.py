"""Run a function on untrusted data in a process of its own, within limits of time and memory.

A server, started once and ended with this process, imports the function's module and forks for every call: a crash,
a hang or an excess of memory ends that fork and nothing else. ``forked`` does the same from inside such a fork, for
single steps of a longer task. macOS does not enforce the memory limit: its kernel does not support it.
"""

import atexit
import importlib
import math
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from stn_export.cli import children, launch
from stn_export.errors import UserError
from stn_export.limits import LIMITS

Result = TypeVar("Result")
HEADER = 8  # bytes of a message's length


class BeyondLimitError(UserError):
    """Work on untrusted data exceeded its limits or crashed."""


class CrashedError(BeyondLimitError):
    """Work on untrusted data crashed."""


class _Server:
    """A process that forks for every call, one call at a time."""

    def __init__(self) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = children.module("stn_export.cli.apart")
        self.process = children.start(command, group=True, env=children.environment(), **pipes)
        self.lock = threading.Lock()

    def call(self, place: str, arguments: tuple[Any, ...], seconds: float) -> Any:
        surroundings = str(Path.cwd()), dict(os.environ)  # of this call, as the server may be older
        with self.lock:
            try:
                assert self.process.stdin
                assert self.process.stdout
                _write(self.process.stdin, pickle.dumps((place, arguments, seconds, surroundings)))
                return pickle.loads(_read(self.process.stdout))  # what this package's own fork wrote
            except BaseException:  # interrupts too: the server is still at work
                self.end()
                raise

    def end(self) -> None:
        with self.process:  # closes its pipes
            self.process.kill()


_servers: dict[int, _Server] = {}  # by the process id of the owner: a fork needs its own


def apart(place: str, *arguments: Any, seconds: float) -> Any:
    """Call ``module:function`` in a process of its own, and return its result.

    Args:
        place: ``module:function``; its arguments and result must be picklable.
        arguments: of the function.
        seconds: time limit.

    Raises:
        BeyondLimitError: where it exceeds the limit of time or memory, or crashes.
    """
    server = _servers.get(os.getpid())
    if server is None or server.process.poll() is not None:
        server = _servers[os.getpid()] = _Server()
        atexit.register(server.end)
    try:
        raised, result = server.call(place, arguments, seconds)
    except EOFError as error:
        raise BeyondLimitError("the process that looks at foreign files ended", "try it again") from error
    if raised:
        raise result
    return result


def forked(function: Callable[[], Result], seconds: float) -> Result:
    """Call a function in a fork of this process and return its result; no other threads may be running.

    Raises:
        BeyondLimitError: where it takes longer than ``seconds``, or crashes.
    """
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_tell, args=(sending, function))
    process.start()
    sending.close()
    try:
        if not receiving.poll(seconds):
            raise BeyondLimitError(f"it takes more than {math.ceil(seconds)} seconds", "try a smaller one")
        raised, result = pickle.loads(receiving.recv_bytes())  # what this package's own fork wrote
    except EOFError as error:
        process.join()
        raise CrashedError(f"it crashes ({_ending(process.exitcode)})", "the file may be damaged") from error
    finally:
        process.kill()
        process.join()
    if raised:
        raise result
    return result


def _ending(code: int | None) -> str:
    return signal.Signals(-code).name if code and code < 0 else f"exit code {code}"


def _tell(pipe: Any, function: Callable[[], Any]) -> None:
    launch.end_with_parent(signal.SIGKILL)
    pipe.send_bytes(_outcome(function))


def _outcome(function: Callable[[], Any]) -> bytes:
    """Pickle whether the function raised, and its result or exception."""
    try:
        return pickle.dumps((False, function()))
    except MemoryError:
        limit = LIMITS["memory"]
        return pickle.dumps((True, BeyondLimitError(f"it takes more than {limit.value} {limit.unit}", "a smaller one")))
    except Exception as error:
        return _error(error)


def _error(error: Exception) -> bytes:
    try:
        content = pickle.dumps((True, error))
        pickle.loads(content)  # some exceptions can be pickled but not unpickled
    except Exception:
        content = pickle.dumps((True, RuntimeError(f"{type(error).__name__}: {error}")))
    return content


def limit_memory() -> None:
    """Limit the memory that this process and its forks may write to; memory-mapped files do not count."""
    most = LIMITS["memory"].value
    held = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if held == resource.RLIM_INFINITY or held > most:
        resource.setrlimit(resource.RLIMIT_DATA, (most, held))


def _called(place: str, arguments: tuple[Any, ...], surroundings: tuple[str, dict[str, str]]) -> Any:
    limit_memory()
    os.chdir(surroundings[0])
    os.environ.clear()
    os.environ.update(surroundings[1])
    module, _, name = place.partition(":")
    return getattr(sys.modules[module], name)(*arguments)


def _write(stream: IO[Any], content: bytes) -> None:
    stream.write(len(content).to_bytes(HEADER, "little") + content)
    stream.flush()


def _read(stream: IO[Any]) -> bytes:
    size = int.from_bytes(_whole(stream, HEADER), "little")
    return _whole(stream, size)


def _whole(stream: IO[Any], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content


def serve() -> None:
    """Answer every call on standard input in a fork of its own, until the stream ends."""
    asked, answered = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with answers
    while True:
        try:
            place, arguments, seconds, surroundings = pickle.loads(_read(asked))  # from the process that started it
        except EOFError:
            return
        _write(answered, _answer(place, seconds, partial(_called, place, arguments, surroundings)))


def _answer(place: str, seconds: float, call: Callable[[], Any]) -> bytes:
    try:
        importlib.import_module(place.partition(":")[0])
        return pickle.dumps((False, forked(call, seconds)))
    except Exception as error:
        return _error(error)


if __name__ == "__main__":
    from stn_export.cli import apart as imported  # not __main__, so that pickled classes are the other side's

    imported.serve()
