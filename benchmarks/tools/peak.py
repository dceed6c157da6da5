"""Measure the processor's peak rates: fused multiply-adds at each vector width, compiled here, and a large copy."""

import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier

import torch

from stn_export.cli import children
from stn_export.limits import LIMITS
from stn_export.native.build import HERE, compiler, flags_of
from stn_export.run.environment import instruction_sets


@dataclass(frozen=True)
class Probe:
    """How the peak rates of a processor are measured: ``rounds`` of a loop, and a copy of ``copy_bytes``."""

    rounds: int = 5_000_000
    copy_bytes: int = 256 * 2**20
    tries: int = 7


PROBE = Probe()

SOURCE = Path(__file__).with_name("peak.c")
WIDTHS = {128: (), 256: ("AVX2", "FMA"), 512: ("AVX-512",)}  # bits, and the instruction sets that have such vectors
FLOAT_BITS = 32


def widths_here() -> list[int]:
    """List the vector widths of this processor, in bits."""
    known = set(instruction_sets())
    return [width for width, needed in WIDTHS.items() if known.issuperset(needed)]


def measured_peak(threads: int) -> dict:
    """Measure this processor's rates on ``threads`` threads.

    Returns:
        ``flops``: float32's by precision, the fastest width's; empty if nothing can be compiled. ``widths``: FLOP/s by
        vector width in bits. ``bytes``: bytes per second that a large copy reads and writes. ``source``: in words.
    """
    widths = {str(width): rate for width in widths_here() if (rate := flop_rate(width, threads)) is not None}
    bits = ", ".join(widths)
    loop = f"a loop of float32 fused multiply-adds at {bits} bits" if widths else "no C compiler for the arithmetic"
    return {
        "flops": {"fp32": max(widths.values())} if widths else {},
        "widths": widths,
        "bytes": copy_rate(),
        "source": f"measured: {loop}; copy of {PROBE.copy_bytes >> 20} MiB; {threads} thread{'s' * (threads != 1)}",
    }


def flop_rate(width: int, threads: int) -> float | None:
    """Return the most FLOP/s of all threads together over several tries; None if the loop cannot be compiled."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / f"peak{width}.so"
        if not compiled(width, library):
            return None
        run, chains = functions(library)
        flops = 2 * PROBE.rounds * chains * width // FLOAT_BITS
        return max(flops * sum(1 / seconds for seconds in at_once(run, threads)) for _ in range(PROBE.tries))


def compiled(width: int, library: Path) -> bool:
    """Compile the loop for a vector width with the system's compiler, for this processor; return whether it worked."""
    if not compiler():
        return False
    flags = [*flags_of(HERE), f"-DBYTES={width // 8}", "-shared", "-fPIC"]
    command = [*compiler(), *flags, str(SOURCE), "-o", str(library)]
    try:
        return children.run(command, timeout=LIMITS["compiling"].value, stdin=subprocess.DEVNULL).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def functions(library: Path) -> tuple[Callable[[int], float], int]:
    """Load the compiled loop: a function from rounds to processor seconds, and the number of vectors per round."""
    loaded = ctypes.CDLL(str(library))
    loaded.run.argtypes, loaded.run.restype = [ctypes.c_long], ctypes.c_double
    return loaded.run, int(loaded.chains())


def at_once(run: Callable[[int], float], threads: int) -> list[float]:
    """Run the loop on all threads at the same time; return the processor seconds of each."""
    ready = Barrier(threads)

    def one(_: int) -> float:
        ready.wait()
        return float(run(PROBE.rounds))

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, range(threads)))


def copy_rate() -> float:
    """Return the bytes per second that a large PyTorch copy, on its current number of threads, reads and writes."""
    source = torch.rand(PROBE.copy_bytes // 4)
    target = torch.empty_like(source)
    return 2 * source.nbytes / cpu_seconds(lambda: target.copy_(source))


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the shortest of ``PROBE.tries`` calls in processor time per thread, free of other processes' influence."""
    seconds = []
    for _ in range(PROBE.tries):
        started = time.process_time()
        call()
        seconds.append((time.process_time() - started) / torch.get_num_threads())
    return min(seconds)
