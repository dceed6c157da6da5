"""How long a fresh process takes until its first answer.

Python's start and its imports are told apart from loading and the first inference, which are what a runner does.
``torch.compile`` compiles in the first inference, with an empty cache.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from stn_export.bench.fresh import TIMES
from stn_export.bench.targets import Target

ROOT = Path(__file__).resolve().parent.parent.parent


def start(target: Target, images: np.ndarray, threads: int) -> dict:
    """What ``fresh`` gives for one process that loads the target and classifies ``images``, as its contract asks.

    Raises:
        RuntimeError: where the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npy"
        np.save(file, images)
        request = {"path": str(target.path.resolve()), "runner": target.runner.name, "images": str(file)}
        request |= {"contract": target.artifact.input_contract, "threads": threads}
        done = subprocess.run(
            [sys.executable, "-m", "stn_export.bench.fresh", json.dumps(request)],
            cwd=ROOT,
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": folder, "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"a fresh process with {target} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(starts: list[dict]) -> dict:
    """The last start's facts with the medians of all starts' times."""
    return starts[-1] | {name: statistics.median(each[name] for each in starts) for name in TIMES} | {"n": len(starts)}
