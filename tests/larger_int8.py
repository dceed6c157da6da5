"""Time C that computes in int8 beside the same networks' C in float32, and beside int8 ONNX files in other runtimes.

Contenders take turns as in ``tests.larger``. Weights and pictures are random: nothing is said of accuracy.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path

import onnx

from stn_export import cli
from stn_export.export.onnx import to_onnx
from stn_export.export.precision import floats_of_c, int8_layers, quantise
from stn_export.native.build import TARGETS
from stn_export.native.source import write_source
from stn_export.run.environment import cpu_name, git_commit, instruction_sets
from stn_export.runners.base import Runner
from stn_export.runners.native import Native
from stn_export.runners.onnx_runtime import OnnxRuntime
from stn_export.runners.openvino import OpenVino
from tests.larger import NETWORKS, Files, in_turns
from tests.larger_results import COLUMNS_INT8, KEPT_INT8, Contest

CHOSEN = ("mobilenet_v2", "resnet18", "unet", "pyramid")  # the text rectifier has nothing that C computes in int8


def write(name: str, folder: Path, target: str) -> tuple[Files, Files]:
    """Write a network's C in float32, and its C and ONNX file in int8."""
    program = NETWORKS[name]()
    model = to_onnx(program, "plain")
    batches = [program.contract.arrays(program.contract.random(8))]
    files = [Files(program, folder / f"{kind}.onnx", folder / f"{kind}.c") for kind in ("fp32", "int8")]
    onnx.save(quantise(model, batches), files[1].onnx)
    write_source(program, "net", target).write(files[0].c)
    layers = int8_layers(quantise(model, batches, floats_of_c(model)))
    write_source(program, "net", target, int8=layers).write(files[1].c)
    return files[0], files[1]


def contest(name: str, files: tuple[Files, Files], batch: int, threads: int, blocks: int, loads: int) -> Contest:
    """Time all contenders in turns."""
    fp32, int8 = files
    loaders: dict[str, Callable[[], Runner]] = {
        "native": partial(int8.load, Native, threads),
        "fp32": partial(fp32.load, Native, threads),
        "onnxruntime": partial(int8.load, OnnxRuntime, threads),
        "openvino": partial(int8.load, OpenVino, threads),
    }
    return Contest(name, batch, threads, loads, in_turns(loaders, int8.program, batch, blocks, loads))


def main(arguments: Sequence[str] | None = None) -> None:
    """Show the contests."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.larger_int8")
    parser.add_argument("--networks", nargs="+", default=list(CHOSEN), choices=NETWORKS, help="networks to time")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="examples of a call")
    parser.add_argument("--threads", nargs="+", type=int, default=[1], help="threads of a call")
    parser.add_argument("--blocks", type=int, default=40, help="blocks of a contest")
    parser.add_argument("--loads", type=int, default=5, help="loads of each file in a contest")
    parser.add_argument("--target", default="native", choices=TARGETS, help="processors that the C is compiled for")
    parser.add_argument("--keep", action="store_true", help=f"write the contests into {KEPT_INT8.name}")
    options = parser.parse_args(arguments)
    cli.say(f"on {', '.join(instruction_sets())}, C for {options.target}")
    contests: list[Contest] = []
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            files = write(name, Path(folder), options.target)
            for batch, threads in product(options.batches, options.threads):
                contests.append(contest(name, files, batch, threads, options.blocks, options.loads))
                cli.say("  ".join(contests[-1].cells()))
    cli.table("C in int8", COLUMNS_INT8, [made.cells() for made in contests])
    if options.keep:
        environment = {
            "cpu": cpu_name(),
            "instruction_sets": instruction_sets(),
            "git_commit": git_commit(),
            "busy": round(os.getloadavg()[2], 1),  # programs that wanted the processor, the mean of 15 minutes
            "processors": os.cpu_count(),
        }
        content = {"environment": environment, "target": options.target, "contests": list(map(asdict, contests))}
        KEPT_INT8.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(cli.run(main))
