"""Load an artifact in a fresh process and compute its first answer; started by ``startup``.

Only the standard library is imported before the clock starts.
"""

import json
import sys
import time
from pathlib import Path

TIMES = ("import_seconds", "load_seconds", "first_seconds")


def main(path: str, runner: str, contract: dict, inputs: str, threads: int) -> dict:
    """Load ``path`` in ``runner``, run the inputs in an ``.npz`` file once, and return the seconds of each step."""
    times = [time.perf_counter()]
    import numpy as np
    import torch

    from stn_export.bench.machine import Memory
    from stn_export.program.specs import Contract
    from stn_export.runners import RUNNERS

    torch.set_num_threads(threads)
    spec, fed = next(spec for spec in RUNNERS if spec.name == runner), Contract.from_dict(contract)
    with np.load(inputs) as arrays:  # by number, since names may be arbitrary
        feeds = {spec.name: arrays[f"arr_{index}"] for index, spec in enumerate(fed.inputs)}
    if spec.device == "cuda":
        torch.zeros(1, device="cuda")  # creates the CUDA context, which is not part of loading
    times.append(time.perf_counter())
    with Memory(spec.device) as memory:
        opened = spec.open(Path(path), fed)
        times.append(time.perf_counter())
        opened.infer(feeds)
        times.append(time.perf_counter())
    seconds = {name: end - start for name, start, end in zip(TIMES, times, times[1:], strict=False)}
    return seconds | memory.of(opened) | {"threads": opened.threads, "options": opened.options}


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
