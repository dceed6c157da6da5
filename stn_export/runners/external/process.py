"""One file in one external runtime, in a process of its own: it crashes, hangs and prints there."""

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

CALM = {"PIP_NO_INDEX": "1", "PYTHONPATH": "", "RUST_BACKTRACE": "0"}  # a converter may want to install things
CAUSES = re.compile(r"error:|not exists|Unimplemented|Impossible")
FOLDERS = re.compile(r"/(?:[^\s/:]+/)+")  # of the machine that tried it


class RefusedError(Exception):
    """A runtime does not take a file, or ends over it; the message says why."""


class Child:
    """A file that is loaded, and batches that it can be run on again and again.

    Args:
        runtime: an installed one.
        content: of the file.
        outputs: names, in the file's order.
        threads: of the CPU's, where the runtime lets one say.
        limit: seconds that it may take to load the file, and for a run.
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
        # a library may print what it likes: the pipes are no standard streams
        command = [*runtime.command, json.dumps(job | {"read": requests, "write": replies})]
        with self.said.open("wb") as said:
            self.process = children.start(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                pass_fds=(requests, replies),
                env=os.environ | CALM,
                cwd=self.folder.name,
                group=True,  # to end its converters with it
            )
        os.close(requests)
        os.close(replies)
        self.requests, self.replies = os.fdopen(write, "wb"), os.fdopen(read, "rb")
        self.close = weakref.finalize(self, _close, self.process, (self.requests, self.replies), self.folder)

    def place(self, feeds: Arrays, batch: int | None = None) -> int:
        """Hand a batch over, and load the file for its sizes if it is the first.

        Args:
            feeds: by name, in the file's order.
            batch: the number of one that it takes the place of, or 0; by default the next that is free.

        Returns:
            Its number.

        Raises:
            RefusedError: as ``run`` does.
        """
        batch = next(self.numbers) if batch is None else batch
        self._ask({"batch": batch, "place": True}, feeds)
        return batch

    def run(self, batch: int, hot: bool = False) -> tuple[float, Arrays]:
        """Seconds that a run on a batch took, from arrays to arrays, and the outputs by name.

        A call that follows a message finds the caches cold: one of 0.1 ms took a fifth longer. ``hot`` ones follow
        another call, if they are short.

        Raises:
            RefusedError: where the runtime fails, crashes or takes longer than the limit.
        """
        head, found = self._ask({"batch": batch, "place": False, "hot": hot}, {})
        return head["seconds"], found

    def _ask(self, head: dict, arrays: Arrays) -> tuple[dict, Arrays]:
        try:
            send(self.requests, head, arrays)
            if not select([self.replies], [], [], self.limit)[0]:
                _kill(self.process)
                raise RefusedError(f"takes more than {self.limit:g} s")
            reply, found = receive(self.replies)
        except (EOFError, OSError) as gone:
            raise RefusedError(self._why()) from gone
        if "failed" in reply:
            raise RefusedError(reason(reply["failed"]))
        return reply, found

    def _why(self) -> str:
        return _ended(self.process.wait(), self.said.read_text(errors="replace", encoding="utf-8"))


def _kill(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _close(process: subprocess.Popen, streams: Iterable[BinaryIO], folder: tempfile.TemporaryDirectory) -> None:
    _kill(process)
    process.wait()
    for stream in streams:
        with suppress(OSError):  # what was left in the buffer has no reader
            stream.close()
    folder.cleanup()


def converted(runtime: Runtime, program: Path, inputs: Arrays) -> bytes:
    """A captured program as a file of a runtime's own format.

    Args:
        runtime: an installed one.
        program: a ``.pt2`` file.
        inputs: of the sizes that it is to take, in the program's order.

    Raises:
        RefusedError: where the program cannot be had so.
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


def _ended(code: int, said: str) -> str:
    return f"ended by signal {-code}" if code < 0 else reason(said)


def reason(text: str) -> str:
    """What an exception says in a line, and the line below that names its cause, without this machine's folders."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    raised = [index for index, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)]
    told = lines[raised[-1] :] if raised else lines[-1:]
    caused = [line for line in told if CAUSES.search(line)]
    return FOLDERS.sub("", " … ".join(dict.fromkeys([*told[:1], *caused[:1]]))) or "no reason given"


def sized(content: bytes, feeds: Arrays) -> bytes:
    """An ONNX file whose open sizes are those of the arrays: most runtimes want sizes that are known."""
    copy = onnx.load_from_string(content)
    known: dict[str, int] = {}
    for value in copy.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True):
            if dim.dim_param:
                known[dim.dim_param] = size
    for value in (*copy.graph.input, *copy.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in known:
                dim.dim_value = known[dim.dim_param]
    return copy.SerializeToString()
