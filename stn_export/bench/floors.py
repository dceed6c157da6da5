"""What the work itself costs: FLOPs, bytes and kernel launches of a network, and the device's peak rates.

A floor is the time that a device at its peak would need. Measured time is stated as a multiple of it, which says how
much there is still to win.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from stn_export.bench.method import PEAKS, PROBE
from stn_export.bench.targets import Network
from stn_export.program.program import Program

BYTES_PER_VALUE = {"fp16": 2, "bf16": 2, "int8": 1}  # of the precisions that are not float32


class _Traffic(TorchDispatchMode):
    """Counts operators that compute, and the bytes that they read and write; views and empty tensors move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = 0

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        result = func(*args, **(kwargs or {}))
        aliases = [value.alias_info for value in func._schema.returns]
        view = any(alias and not alias.is_write for alias in aliases)  # in place is no view
        first = result[0] if isinstance(result, tuple | list) else result  # max-pooling's indices are nobody's need
        if isinstance(first, Tensor) and not view and "empty" not in func.name():
            self.launches += 1
            self.bytes += sum(value.nbytes for value in (*args, first) if isinstance(value, Tensor))
        return result


def work(program: Program, inputs: Sequence[Tensor]) -> dict[str, int]:
    """Work of one call, counted on the captured network's own operators in its own precision; nothing is computed.

    Args:
        program: the network.
        inputs: of which shapes and types only matter.

    Returns:
        ``flops``: two a multiply-add, see ``Program.multiply_adds``; all else is not counted.
        ``bytes_fused``: weights, input and output once each: what no implementation can avoid.
        ``bytes_unfused``: what every operator reads and writes, intermediate activations included.
        ``launches``: operators that compute, each at least one kernel on a GPU.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        values = [torch.empty(value.shape, dtype=value.dtype) for value in inputs]
        with _Traffic() as traffic:
            outputs = program.module(*values)
        flops = 2 * program.multiply_adds(values=values)
    return {
        "flops": flops,
        "bytes_fused": sum(value.nbytes for value in (*program.state().values(), *values, *outputs)),
        "bytes_unfused": traffic.bytes,
        "launches": traffic.launches,
    }


def all_work(networks: Mapping[str, Network], rows: Iterable[dict]) -> dict[str, dict[str, dict[str, int]]]:
    """``work`` of every network at every batch that a row is of, a string, as JSON has no other keys."""
    found: dict[str, dict] = {}
    for name, batch in sorted({(row["network"], row["batch"]) for row in rows if "network" in row}):
        network = networks[name]
        found.setdefault(name, {})[str(batch)] = work(network.program, network.shapes(batch))
    return found


def published_peak(gpu: str) -> dict | None:
    """What the maker states for a GPU, by a word of its name; None for one that is not in ``PEAKS``."""
    return next((asdict(peak) for word, peak in PEAKS.items() if word in gpu), None)


def measured_peak() -> dict:
    """This processor's rates with PyTorch's present number of threads: a large float32 product and a large copy.

    The best of several tries each, since a peak is sought.
    """
    left, right = torch.rand(PROBE.matrix, PROBE.matrix), torch.rand(PROBE.matrix, PROBE.matrix)
    source = torch.rand(PROBE.copy_bytes // 4)
    target = torch.empty_like(source)
    product, copy = cpu_seconds(lambda: torch.mm(left, right)), cpu_seconds(lambda: target.copy_(source))
    return {
        "flops": {"fp32": 2 * PROBE.matrix**3 / product},
        "bytes": 2 * source.nbytes / copy,
        "source": f"measured: float32 product of {PROBE.matrix} by {PROBE.matrix}, copy of "
        f"{PROBE.copy_bytes >> 20} MiB, {torch.get_num_threads()} threads",
    }


def cpu_seconds(call: Callable[[], object]) -> float:
    """The shortest of ``PROBE.tries`` calls, in CPU time a thread: others on the machine take no part in a peak."""
    seconds = []
    for _ in range(PROBE.tries):
        started = time.process_time()
        call()
        seconds.append((time.process_time() - started) / torch.get_num_threads())
    return min(seconds)


def floors(work_of: dict, peak: dict, precision: str) -> dict[str, float]:
    """Seconds that the arithmetic and the memory traffic of one call need at the device's peak.

    A precision whose rate is not known is held against float32's.
    """
    rate = peak["flops"].get(precision, peak["flops"]["fp32"])
    width = BYTES_PER_VALUE.get(precision, 4) / 4
    return {
        "arithmetic": work_of["flops"] / rate,
        "memory": work_of["bytes_fused"] * width / peak["bytes"],
        "memory, unfused": work_of["bytes_unfused"] * width / peak["bytes"],
    }
