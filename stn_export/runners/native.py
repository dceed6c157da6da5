"""The runner of networks generated as C: compiled by the system's compiler and called through ctypes."""

import ctypes
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from stn_export.errors import UserError, command
from stn_export.native.build import built
from stn_export.program.specs import Arrays, whole
from stn_export.runners.base import Runner, Step

SMALLEST = 8  # least examples per thread


class Native(Runner[Arrays]):
    """One function of a shared library; a batch is divided among the threads."""

    def load(self, path: Path) -> None:
        """Compile the source if needed, and load its function."""
        library = ctypes.CDLL(str(built(path)))
        declaration = re.search(r"^int (\w+)_run_in\(", path.read_text(encoding="utf-8"), re.MULTILINE)
        if declaration is None:
            raise UserError(f"{path.name} has no function that runs a network", f"run {command('export')} again")
        name = declaration[1]
        self.function, self.memory = library[f"{name}_run_in"], library[f"{name}_memory"]
        self.memory.restype = ctypes.c_size_t
        self.pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None

    def infer_impl(self, feeds: Arrays) -> Arrays:
        """Run a batch once."""
        return self.bind_one(feeds).run()

    def bind_one(self, feeds: Arrays) -> Step[Arrays]:
        """Bind a batch and output arrays; small batches run on fewer threads."""
        count = next(len(feeds[spec.name]) for spec in self.contract.inputs if spec.batched)
        arrays = [np.ascontiguousarray(feeds[spec.name]) for spec in self.contract.inputs]
        outputs = self.contract.outputs
        shapes = [(count, *whole(spec.shape[1:])) if spec.batched else whole(spec.shape) for spec in outputs]
        results = {spec.name: np.empty(shape, spec.dtype) for spec, shape in zip(outputs, shapes, strict=True)}
        parts = max(1, min(self.threads, count // SMALLEST))
        edges = [count * part // parts for part in range(parts + 1)]
        calls = [self._call([*arrays, *results.values()], begin, end) for begin, end in pairwise(edges)]

        pool = self.pool

        def run() -> Arrays:
            if code := calls[0]() if pool is None or parts == 1 else max(pool.map(partial.__call__, calls)):
                raise RuntimeError(f"the network's function returned {code}")
            return results

        return self.step(run)

    def _call(self, arrays: list[np.ndarray], begin: int, end: int) -> partial:
        """Bind the function to a slice of the examples, with memory of its own."""
        specs = (*self.contract.inputs, *self.contract.outputs)
        parts = [array[begin:end] if spec.batched else array for spec, array in zip(specs, arrays, strict=True)]
        pointers = [part.ctypes.data_as(ctypes.c_void_p) for part in parts]  # these keep the arrays alive
        inputs, outputs = pointers[: len(self.contract.inputs)], pointers[len(self.contract.inputs) :]
        count, memory = ctypes.c_size_t(end - begin), np.empty(self.memory(), np.uint8)
        return partial(
            self.function,
            *inputs,
            count,
            *outputs,
            memory.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_size_t(memory.size),
        )

    def read(self, result: Arrays) -> Arrays:
        """Copy the outputs, which the next run overwrites."""
        return {name: array.copy() for name, array in result.items()}
