"""What the work itself costs: FLOPs, bytes and kernel launches of a network."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from stn_export.artifacts.records import Timing
from stn_export.bench.targets import Network
from stn_export.native.source import multiply_adds_saved
from stn_export.program.program import Program


class _Traffic(TorchDispatchMode):
    """Counts operators that compute, and the bytes that they read and write; views and empty tensors move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
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


def all_work(networks: Mapping[str, Network], rows: Iterable[Timing]) -> dict[str, dict[str, dict[str, int]]]:
    """Count the ``work`` of every network at every batch that a row is of, a string, as JSON has no other keys.

    ``native_flops`` is what the C code that was timed really does of ``flops``.
    """
    found: dict[str, dict] = {}
    listed = list(rows)
    written = {row.network for row in listed if row.format == "native"}
    saved = {name: 2 * multiply_adds_saved(networks[name].program) for name in sorted(written)}
    for name, batch in sorted({(row.network, row.batch) for row in listed}):
        network = networks[name]
        counted = work(network.program, network.shapes(batch))
        if name in saved:
            counted["native_flops"] = counted["flops"] - batch * saved[name]
        found.setdefault(name, {})[str(batch)] = counted
    return found
