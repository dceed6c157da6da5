"""Run one file in one external runtime, in a process of its own, where it may crash, hang and print."""

import itertools
import json
import os
import re
import signal
import subprocess
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from select import select
from typing import BinaryIO

import numpy as np
import onnx

from stn_export.cli import children
from stn_export.run.store import private_folder
from stn_export.runners.external.environments import HERE, LIMIT, Runtime
from stn_export.runners.external.serve import Arrays, receive, send

CALM = {"PIP_NO_INDEX": "1", "PYTHONPATH": "", "RUST_BACKTRACE": "0"}  # keeps converters from installing packages
CAUSES = re.compile(r"error:|not exists|Unimplemented|Impossible")
FOLDERS = re.compile(r"/(?:[^\s/:]+/)+")  # folders in messages, which differ between machines


class RefusedError(Exception):
    """A runtime refuses a file or crashes on it; the message says why."""


class Child:
    """A child process that loads a file, and runs batches repeatedly.

    Args:
        runtime: an installed one.
        content: of the file.
        outputs: names, in the file's order.
        threads: CPU threads, where the runtime lets one choose.
        limit: seconds allowed for loading the file, and for a run.
    """

    def __init__(
        self, runtime: Runtime, content: bytes, outputs: Sequence[str], threads: int, limit: float = LIMIT
    ) -> None:
        self.limit, self.numbers = limit, itertools.count(1)
        self.folder = tempfile.TemporaryDirectory(dir=private_folder())
        file, self.said = (Path(self.folder.name) / name for name in (f"model.{runtime.format}", "said.txt"))
        file.write_bytes(content)
        (read, replies), (requests, write) = os.pipe(), os.pipe()
        job = {"runtime": runtime.name, "file": str(file), "outputs": list(outputs), "threads": threads}
        # not on standard streams, which libraries print to
        command = [*runtime.command, json.dumps(job | {"read": requests, "write": replies})]
        with self.said.open("wb") as log:
            self.process = children.start(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(requests, replies),
                env=os.environ | CALM,
                cwd=self.folder.name,
                group=True,  # so that its converters end with it
            )
        os.close(requests)
        os.close(replies)
        self.requests, self.replies = os.fdopen(write, "wb"), os.fdopen(read, "rb")
        self.close = weakref.finalize(self, _close, self.process, (self.requests, self.replies), self.folder)

    def place(self, feeds: Arrays, batch: int | None = None) -> int:
        """Send a batch, and load the file for its sizes if it is the first.

        Args:
            feeds: by name, in the file's order.
            batch: the number of a batch to replace, or 0; by default the next free number.

        Returns:
            The batch's number.

        Raises:
            RefusedError: as ``run`` does.
        """
        batch = next(self.numbers) if batch is None else batch
        self._ask({"batch": batch, "place": True}, feeds)
        return batch

    def run(self, batch: int, hot: bool = False) -> tuple[float, Arrays]:
        """Run a batch; return the seconds that took, from arrays to arrays, and the outputs by name.

        A call right after a message finds cold caches: one of 0.1 ms took a fifth longer. ``hot`` calls follow an
        untimed one, if they are short.

        Raises:
            RefusedError: where the runtime fails, crashes or exceeds the time limit.
        """
        head, arrays = self._ask({"batch": batch, "place": False, "hot": hot}, {})
        return head["seconds"], arrays

    def _ask(self, head: dict, arrays: Arrays) -> tuple[dict, Arrays]:
        try:
            send(self.requests, head, arrays)
            if not select([self.replies], [], [], self.limit)[0]:
                _kill(self.process)
                raise RefusedError(f"takes more than {self.limit:g} s")
            reply, received = receive(self.replies)
        except (EOFError, OSError) as gone:
            raise RefusedError(self._why()) from gone
        if "failed" in reply:
            raise RefusedError(reason(reply["failed"]))
        return reply, received

    def _why(self) -> str:
        return _ended(self.process.wait(), self.said.read_text(errors="replace", encoding="utf-8"))


def _kill(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _close(process: subprocess.Popen, streams: Iterable[BinaryIO], folder: tempfile.TemporaryDirectory) -> None:
    _kill(process)
    process.wait()
    for stream in streams:
        with suppress(OSError):  # the rest of the buffer has no reader
            stream.close()
    folder.cleanup()


def converted(runtime: Runtime, program: Path, inputs: Arrays) -> bytes:
    """Convert a captured program to a runtime's own format, and return the file's content.

    Args:
        runtime: an installed one.
        program: a ``.pt2`` file.
        inputs: of the sizes that the file is to accept, in the program's order.

    Raises:
        RefusedError: where the conversion fails.
    """
    with tempfile.TemporaryDirectory(dir=private_folder()) as folder:
        fed, out = Path(folder) / "inputs.npz", Path(folder) / "out"
        np.savez(fed, *inputs.values())
        script: list[str | Path] = [HERE / "convert.py", runtime.format, program.absolute(), fed, out]
        try:
            done = children.run(
                [runtime.interpreter, *script], timeout=LIMIT, env=os.environ | CALM, cwd=folder, group=True
            )
        except subprocess.TimeoutExpired:
            raise RefusedError(f"takes more than {LIMIT} s") from None
        if done.returncode:
            raise RefusedError(_ended(done.returncode, done.stderr))
        return out.read_bytes()


def _ended(code: int, log: str) -> str:
    return f"ended by signal {-code}" if code < 0 else reason(log)


def reason(text: str) -> str:
    """Shorten an error output to the exception and the line that names its cause, without this machine's folders."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    raised = [index for index, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)]
    shown = lines[raised[-1] :] if raised else lines[-1:]
    caused = [line for line in shown if CAUSES.search(line)]
    return FOLDERS.sub("", " … ".join(dict.fromkeys([*shown[:1], *caused[:1]]))) or "no reason given"


def sized(content: bytes, feeds: Arrays) -> bytes:
    """Return an ONNX file with its dynamic sizes made static, from the arrays: most runtimes need that."""
    copy = onnx.load_from_string(content)
    limits: dict[str, int] = {}
    for value in copy.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True):
            if dim.dim_param:
                limits[dim.dim_param] = size
    for value in (*copy.graph.input, *copy.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in limits:
                dim.dim_value = limits[dim.dim_param]
    return copy.SerializeToString()
