"""All stages in turn on the digits for a while, in one process: ``make soak``.

After each round the process's memory, open files, threads and children and the run's files are counted; the slope of
each over the second half is told with its standard error. ``docs/survival.md`` keeps the figures.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from stn_export import cli
from tests.faults import STAGES, exit_code, states

ORDER = ("export", "triton", "verify", "report", "predict")
ROOM = {
    "resident MiB": 1.0,
    "open files": 0.02,
    "threads": 0.02,
    "children": 0.02,
    "files": 0.02,
}  # a round, that is flat


def counts(run: Path) -> dict[str, float]:
    """What could grow, now."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8").split()
    return {
        "resident MiB": int(status["VmRSS"].split()[0]) / 1024,
        "open files": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "threads": sum(1 for _ in Path("/proc/self/task").iterdir()),
        "children": len(children),
        "files": sum(1 for path in run.rglob("*") if path.is_file()),
    }


def one_round(run: Path, number: int) -> None:
    """Every stage once; one file is taken away first, so that there is something to export."""
    (run / "stn" / "folded-fp32.onnx").unlink(missing_ok=True)
    for stage in [stage for name in ORDER for stage in STAGES if stage.name == name]:
        arguments = [each.replace("{run}", str(run)) for each in stage.arguments]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            code = exit_code(import_module(f"stn_export.{cli.COMMANDS[stage.command][0]}").main, arguments)
        if code:
            raise RuntimeError(f"round {number}: {stage.name} gives {code}: {said.getvalue()}")


def slope(values: list[float]) -> tuple[float, float]:
    """The least-squares slope a round, and its standard error."""
    rounds = np.arange(len(values), dtype=float)
    found, covariance = np.polyfit(rounds, values, 1, cov="unscaled")
    left = np.asarray(values) - np.polyval(found, rounds)
    variance = np.square(left).sum() / max(1, len(values) - 2)
    return float(found[0]), float(np.sqrt(covariance[0, 0] * variance))


def main() -> None:
    """Go on for so many minutes, print the table, say what grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--keep", type=Path, help="write the figures there as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seen: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = states(Path(folder))["exported"]
        end = time.monotonic() + 60 * options.minutes
        while time.monotonic() < end or len(seen) < 8:
            one_round(run, len(seen))
            seen.append(counts(run))
            print(len(seen), {name: round(value, 1) for name, value in seen[-1].items()}, flush=True)
    half = seen[len(seen) // 2 :]
    rows, grown = [], []
    for name, room in ROOM.items():
        grows, error = slope([each[name] for each in half])
        flat = grows <= max(room, 2 * error)
        rows.append({"what": name, "first": seen[0][name], "last": seen[-1][name], "slope": grows, "error": error})
        print(
            f"{name:14}{seen[0][name]:9.1f}{seen[-1][name]:9.1f}{grows:+9.3f} ± {error:.3f}{'' if flat else ' GROWS'}"
        )
        grown += [] if flat else [name]
    print(f"{len(seen)} rounds of {len(ORDER)} stages")
    if options.keep:
        options.keep.write_text(
            json.dumps({"rounds": len(seen), "minutes": options.minutes, "rows": rows}, indent=1), encoding="utf-8"
        )
    sys.exit(bool(grown))


if __name__ == "__main__":
    main()
