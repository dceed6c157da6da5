"""The runner of runtimes that run in a process and an environment of their own."""

from pathlib import Path

from stn_export.program.specs import Arrays, Contract
from stn_export.runners.base import Runner, Step, shapes_of
from stn_export.runtimes import Child, Runtime
from stn_export.runtimes.child import sized


class Elsewhere(Runner):
    """One file in one runtime, loaded anew for other sizes unless it takes them open.

    Seconds are counted in its process, around the runtime's own call from host arrays to host arrays.

    Raises:
        RefusedError: where the runtime does not take the file, crashes over it, or is not done in time.
    """

    inputs_lie = "host arrays handed over in its own process"
    in_process = False
    sums_in_order = True

    def __init__(self, path: Path, device: str, contract: Contract, tf32: bool = False, *, runtime: Runtime) -> None:
        self.runtime, self.child, self.sizes, self.seconds = runtime, None, None, 0.0
        super().__init__(path, device, contract, tf32)

    def load(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.options = {self.runtime.packages[0]: self.runtime.version}

    def _child_for(self, feeds: Arrays) -> Child:
        """The one that is there, if these sizes are its; a bound step keeps its own."""
        known = self.runtime.open_sizes or self.runtime.format != "onnx"
        sizes = None if known else shapes_of(feeds)
        if self.child is None or self.sizes != sizes:
            content = self.content if known else sized(self.content, feeds)
            self.child, self.sizes = Child(self.runtime, content, self.outputs, self.threads), sizes
            self.batch = self.child.place(feeds)
        return self.child

    def infer_impl(self, feeds: Arrays) -> Arrays:
        child = self._child_for(feeds)
        child.place(feeds, self.batch)
        return child.run(self.batch)[1]

    def bind_one(self, feeds: Arrays) -> Step:
        child = self._child_for(feeds)
        batch = child.place(feeds)

        def run() -> Arrays:
            seconds, found = child.run(batch)
            self.seconds += seconds
            return found

        return Step(run, lambda: self.seconds)

    def request(self, *batches: Arrays) -> Step:
        return self.bind(*batches)

    def read(self, result: Arrays) -> Arrays:
        return result
