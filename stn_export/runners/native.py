"""The runner of networks that were written as C: compiled by the system's compiler and called through ctypes."""

import ctypes
import itertools
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from stn_export.native.build import built
from stn_export.program.specs import Arrays, TensorSpec
from stn_export.runners.base import Runner, Step

SMALLEST = 8  # examples for which another thread is worth waking


class Native(Runner):
    """One function of a shared library; a batch is shared out among the threads."""

    def load(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(built(path)))
        name = re.search(r"^int (\w+)_run_in\(", path.read_text(), re.MULTILINE)[1]
        self.function = getattr(self.library, f"{name}_run_in")
        size = getattr(self.library, f"{name}_memory")
        size.restype = ctypes.c_size_t
        self.bytes = size()
        self.own = threading.local()
        self.pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None

    def infer_impl(self, feeds: Arrays) -> Arrays:
        return self.bind_one(feeds).run()

    def bind_one(self, feeds: Arrays) -> Step:
        feeds = {spec.name: np.ascontiguousarray(feeds[spec.name]) for spec in self.contract.inputs}
        count = next(len(feeds[spec.name]) for spec in self.contract.inputs if spec.batched)
        results = {spec.name: np.empty(_shape(spec, count), spec.dtype) for spec in self.contract.outputs}
        parts = max(1, min(self.threads, count // SMALLEST))
        edges = [count * part // parts for part in range(parts + 1)]
        calls = [self._call(feeds, results, begin, end) for begin, end in itertools.pairwise(edges)]

        def run() -> Arrays:
            codes = [calls[0]()] if parts == 1 else list(self.pool.map(lambda call: call(), calls))
            if any(codes):
                raise RuntimeError(f"the network's function returned {max(codes)}")
            return results

        return self.step(run)

    def _call(self, feeds: Arrays, results: Arrays, begin: int, end: int) -> Callable[[], int]:
        """The function on some examples; it keeps alive what it points to."""
        specs = [*self.contract.inputs, *self.contract.outputs]
        arrays = [feeds.get(spec.name, results.get(spec.name)) for spec in specs]
        parts = [each[begin:end] if spec.batched else each for spec, each in zip(specs, arrays, strict=True)]
        arguments = [ctypes.c_void_p(part.ctypes.data) for part in parts]
        arguments.insert(len(self.contract.inputs), ctypes.c_size_t(end - begin))
        function, size = self.function, ctypes.c_size_t(self.bytes)
        return lambda keep=arrays: function(*arguments, self._memory(), size)

    def _memory(self) -> ctypes.c_void_p:
        """This thread's scratch memory."""
        if not hasattr(self.own, "memory"):
            self.own.memory = np.empty(self.bytes, np.uint8)
            self.own.pointer = ctypes.c_void_p(self.own.memory.ctypes.data)
        return self.own.pointer

    def read(self, result: Arrays) -> Arrays:
        return {name: array.copy() for name, array in result.items()}


def _shape(spec: TensorSpec, count: int) -> tuple[int, ...]:
    return (count, *spec.shape[1:]) if spec.batched else spec.shape
