"""The runner of networks generated as C: compiled by the system's compiler and called through ctypes."""

import ctypes
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np

from stn_export.errors import UserError, command
from stn_export.native.build import built
from stn_export.program.specs import Arrays, whole
from stn_export.runners.base import Runner, Step

SHARED = 1 << 26  # least multiply-adds of a call that threads share: fewer take less time than a thread to wake
MEETING = 128  # bytes of memory in which threads meet


class Native(Runner[Arrays]):
    """One function of a shared library; threads share a call."""

    def load(self, path: Path) -> None:
        """Compile the source if needed, and load its function."""
        library = ctypes.CDLL(str(built(path)))
        source = path.read_text(encoding="utf-8")
        declaration = re.search(r"^int (\w+)_run_part\(", source, re.MULTILINE)
        stated = re.search(r"^// Multiply-adds of an example: ([\d,]+)$", source, re.MULTILINE)
        if declaration is None or stated is None:
            raise UserError(f"{path.name} has no function that runs a network", f"run {command('export')} again")
        name = declaration[1]
        self.function, self.memory = library[f"{name}_run_part"], library[f"{name}_memory"]
        self.memory.restype = ctypes.c_size_t
        self.multiply_adds = int(stated[1].replace(",", ""))
        self.pool = ThreadPoolExecutor(self.threads - 1) if self.threads > 1 else None
        self.one_at_a_time = Lock()  # threads of two calls would wait for each other

    def infer_impl(self, feeds: Arrays) -> Arrays:
        """Run a batch once."""
        return self.bind_one(feeds).run()

    def bind_one(self, feeds: Arrays) -> Step[Arrays]:
        """Bind a batch and output arrays; short calls run on one thread."""
        count = next(len(feeds[spec.name]) for spec in self.contract.inputs if spec.batched)
        arrays = [np.ascontiguousarray(feeds[spec.name]) for spec in self.contract.inputs]
        outputs = self.contract.outputs
        shapes = [(count, *whole(spec.shape[1:])) if spec.batched else whole(spec.shape) for spec in outputs]
        results = {spec.name: np.empty(shape, spec.dtype) for spec, shape in zip(outputs, shapes, strict=True)}
        pool = self.pool if count * self.multiply_adds >= SHARED else None
        parts = self.threads if pool else 1
        memory = np.empty(parts * self.memory(), np.uint8)
        memory[:MEETING] = 0
        inputs, written = map(_pointers, (arrays, results.values()))
        room = *_pointers([memory]), ctypes.c_size_t(memory.size)
        size = ctypes.c_size_t(count)
        calls = [partial(self.function, *inputs, size, *written, part, parts, *room) for part in range(parts)]

        call = calls[0] if pool is None else partial(self._at_once, pool, calls)

        def run() -> Arrays:
            if code := call():
                raise RuntimeError(f"the network's function returned {code}")
            return results

        return self.step(run)

    def _at_once(self, pool: ThreadPoolExecutor, calls: Sequence[Callable[[], int]]) -> int:
        """Make calls in as many threads, the first of them in this one; return the largest code."""
        with self.one_at_a_time:
            others = [pool.submit(call) for call in calls[1:]]
            return max(calls[0](), *(other.result() for other in others))

    def read(self, result: Arrays) -> Arrays:
        """Copy the outputs, which the next run overwrites."""
        return {name: array.copy() for name, array in result.items()}


def _pointers(arrays: Iterable[np.ndarray]) -> list[ctypes.c_void_p]:
    """Return a pointer to each array, which keeps it alive."""
    return [array.ctypes.data_as(ctypes.c_void_p) for array in arrays]
