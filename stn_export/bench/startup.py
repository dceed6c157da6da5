"""Time how long a fresh process takes until its first answer.

Python's start and the imports are separated from loading and the first inference, which are the runner's part.
``torch.compile`` compiles in the first inference, with an empty cache.
"""

import json
import statistics
import tempfile
from pathlib import Path

import numpy as np

from stn_export.bench.startup_worker import TIMES
from stn_export.bench.targets import Target
from stn_export.cli import children
from stn_export.program.specs import Arrays


def start(target: Target, feeds: Arrays, threads: int) -> dict:
    """Start a process that loads the target and runs ``feeds``; return what ``startup_worker.main`` reports.

    Raises:
        RuntimeError: if the process fails.
    """
    contract = target.artifact.contract
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inputs.npz"
        np.savez(file, *(feeds[spec.name] for spec in contract.inputs))
        request = {
            "path": str(target.path.resolve()),
            "runner": target.runner.name,
            "inputs": str(file),
            "contract": contract.as_dict(),
            "threads": threads,
        }
        caches = {"TORCHINDUCTOR_CACHE_DIR": folder, "OMP_NUM_THREADS": str(threads)}
        command = children.module("stn_export.bench.startup_worker", json.dumps(request))
        done = children.run(command, env=children.environment(caches))
    if done.returncode:
        raise RuntimeError(f"a fresh process with {target} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(starts: list[dict]) -> dict:
    """Return the last start's facts with the medians of all starts' times, and their number ``n``."""
    return (
        starts[-1] | {name: statistics.median(start[name] for start in starts) for name in TIMES} | {"n": len(starts)}
    )
