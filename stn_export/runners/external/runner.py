"""The runner of external runtimes, each in a process and an environment of its own."""

from pathlib import Path

from stn_export.program.specs import Arrays, Contract
from stn_export.runners.base import Runner, Step, shapes_of
from stn_export.runners.external import Child, Runtime
from stn_export.runners.external.process import sized


class Elsewhere(Runner[Arrays]):
    """One file in one external runtime, loaded again for other sizes unless it accepts dynamic ones.

    Seconds are measured in its process, around the runtime's own call from host arrays to host arrays.

    Raises:
        RefusedError: where the runtime refuses the file, crashes on it, or exceeds the time limit.
    """

    inputs_lie = "host arrays handed over in its own process"
    in_process = False
    sums_in_order = True

    def __init__(self, path: Path, device: str, contract: Contract, tf32: bool = False, *, runtime: Runtime) -> None:
        self.runtime, self.seconds = runtime, 0.0
        self.child: Child | None = None
        self.sizes: tuple[tuple[int, ...], ...] | None = None  # that the child was loaded for; None: any
        super().__init__(path, device, contract, tf32)

    def load(self, path: Path) -> None:
        """Read the file; the child loads it with the first batch."""
        self.content = path.read_bytes()
        self.options = {self.runtime.packages[0]: self.runtime.version}

    def _placed(self, feeds: Arrays, batch: int | None = None) -> tuple[Child, int]:
        """Send a batch to a child for its sizes, the current one if it fits; return child and batch number."""
        arrays = {spec.name: feeds[spec.name] for spec in self.contract.inputs}
        as_it_is = self.runtime.open_sizes or self.runtime.format != "onnx"
        sizes = None if as_it_is else shapes_of(arrays)
        child = self.child
        if child is None or self.sizes != sizes:
            content = self.content if as_it_is else sized(self.content, arrays)
            child = Child(self.runtime, content, self.outputs, self.threads)
        number = child.place(arrays, batch)
        self.child, self.sizes = child, sizes  # a bound step keeps its own child
        return child, number

    def infer_impl(self, feeds: Arrays) -> Arrays:
        """Run a batch once, in the slot that no bound step uses."""
        child, batch = self._placed(feeds, 0)  # slot 0, which no bound step uses
        return child.run(batch)[1]

    def bind_one(self, feeds: Arrays) -> Step[Arrays]:
        """Send a batch, and return the step that runs it, on the child's own clock."""
        child, batch = self._placed(feeds)

        def run() -> Arrays:
            seconds, outputs = child.run(batch, hot=True)
            self.seconds += seconds
            return outputs

        return Step(run, lambda: self.seconds)

    def request(self, *batches: Arrays) -> Step[Arrays]:
        """Return the bound steps, which run from host arrays to host arrays anyway."""
        return self.bind(*batches)

    def read(self, result: Arrays) -> Arrays:
        """Return the outputs as they are."""
        return result
