"""How long a fresh process takes until its first answer.

Python's start and its imports are told apart from loading and the first inference, which are what a runner does.
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
    """What ``fresh`` gives for one process that loads the target and runs ``feeds``, as its contract asks.

    Raises:
        RuntimeError: where the process fails.
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
    """The last start's facts with the medians of all starts' times."""
    return starts[-1] | {name: statistics.median(each[name] for each in starts) for name in TIMES} | {"n": len(starts)}
