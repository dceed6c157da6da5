"""Time networks of the size that people ship, as generated C beside ONNX Runtime and OpenVINO, and the C by layer.

Contenders take turns in blocks of random order, over several loads of each; ``--layers`` compiles the C with a clock
around every step and shows what share of the processor's measured multiply-add peak each layer reaches.
"""

import argparse
import ctypes
import json
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby, product
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from benchmarks.tools.peak import measured_peak
from stn_export import cli
from stn_export.export.onnx import to_onnx
from stn_export.native.build import build
from stn_export.native.source import write_source
from stn_export.program.program import Program
from stn_export.results.text import counted
from stn_export.run.environment import cpu_name, git_commit, instruction_sets
from stn_export.runners.base import Runner
from stn_export.runners.native import Native
from stn_export.runners.onnx_runtime import OnnxRuntime
from stn_export.runners.openvino import OpenVino
from tests.captured_modules import program_of
from tests.larger_results import COLUMNS, KEPT, LARGE, Contest, Layer
from tests.zoo import ZOO

SEED = 0
BLOCK_SECONDS = 0.02  # that the calls of one contender in one block take at least
CLOCK = """
#include <time.h>
__attribute__((visibility("default"))) double step_seconds[{count}];
static double step_begun;
static int step_now = -1;
static inline void step(int index) {{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    const double now = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    if (step_now >= 0) step_seconds[step_now] += now - step_begun;
    step_now = index, step_begun = now;
}}
// own memory of the first thread
#define STEP(index) if (own == (float *)meeting + 16) step(index);
"""


class Behind(nn.Module):
    """A backbone behind a spatial transformer."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.localisation = nn.Sequential(
            nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 6)
        )
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Classify N×3×96×96 pictures."""
        theta = torch.eye(2, 3) + 0.1 * torch.tanh(self.localisation(images)).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return self.backbone(F.grid_sample(images, grid, align_corners=False))


class UNet(nn.Module):
    """Three resolutions, joined on the way up. Source: O. Ronneberger et al., "U-Net", MICCAI 2015."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        sizes = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(map(double, [3, *sizes[:2]], sizes))
        self.up = nn.ModuleList(map(double, [6 * width, 3 * width], sizes[1::-1]))
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Give two scores a pixel."""
        seen = [self.down[0](images)]
        for block in list(self.down)[1:]:
            seen.append(block(F.max_pool2d(seen[-1], 2)))
        x = seen.pop()
        for block in self.up:
            larger = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = block(torch.cat([larger, seen.pop()], 1))
        return self.head(x)


def double(channels: int, out_channels: int) -> nn.Sequential:
    """Make two convolutions, each with a batch norm and a ReLU."""
    layers: list[nn.Module] = []
    for size in (channels, out_channels):
        layers += [nn.Conv2d(size, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers)


def behind(backbone: Callable[[], nn.Module]) -> Program:
    """Capture a backbone behind a transformer, with random weights and running statistics of random pictures."""
    torch.manual_seed(SEED)
    module = Behind(backbone())
    images = torch.rand(8, 3, 96, 96)
    with torch.no_grad():
        for _ in range(3):
            module.train()(images)
    return program_of(module, {"images": ("N", 3, 96, 96)}, ["result"], images=images[:2])


NETWORKS: dict[str, Callable[[], Program]] = {
    "mobilenet_v2": partial(behind, torchvision.models.mobilenet_v2),
    "resnet18": partial(behind, torchvision.models.resnet18),
    "unet": partial(behind, UNet),
    "text rectifier": lambda: ZOO["TextRectifier"].program(),
    "pyramid": lambda: ZOO["Pyramid"].program(),
}


@dataclass(frozen=True)
class Files:
    """A network as ONNX and as C."""

    program: Program
    onnx: Path
    c: Path

    @classmethod
    def write(cls, name: str, folder: Path) -> "Files":
        """Write both into a folder."""
        program = NETWORKS[name]()
        files = cls(program, folder / "net.onnx", folder / "net.c")
        onnx.save(to_onnx(program, "plain"), files.onnx)
        write_source(program, "net").write(files.c)
        return files

    def load(self, runner: type[Runner], threads: int) -> Runner:
        """Load the file that a runner takes."""
        torch.set_num_threads(threads)
        return runner(self.c if runner is Native else self.onnx, "cpu", self.program.contract)


CONTENDERS: dict[str, type[Runner]] = {"native": Native, "onnxruntime": OnnxRuntime, "openvino": OpenVino}


def contest(name: str, files: Files, batch: int, threads: int, blocks: int, loads: int) -> Contest:
    """Time all contenders in turns."""
    loaders = {contender: partial(files.load, runner, threads) for contender, runner in CONTENDERS.items()}
    times = in_turns(loaders, files.program, batch, blocks, loads)
    return Contest(name, batch, threads, loads, times)


def in_turns(
    loaders: Mapping[str, Callable[[], Runner]], program: Program, batch: int, blocks: int, loads: int
) -> dict[str, list[float]]:
    """Return the seconds of a call by contender, a value a block; loads contenders that many times."""
    feeds = program.contract.arrays(program.contract.random(batch))
    order = random.Random(SEED)
    times: dict[str, list[float]] = {contender: [] for contender in loaders}
    for _ in range(loads):
        steps = {contender: load().bind(feeds) for contender, load in loaders.items()}
        calls = {contender: max(3, int(BLOCK_SECONDS / seconds(step, 3))) for contender, step in steps.items()}
        for _ in range(blocks // loads):
            for contender in order.sample(list(steps), len(steps)):
                times[contender].append(float(f"{seconds(steps[contender], calls[contender]):.5g}"))
    return times


def seconds(call: Callable[[], object], count: int) -> float:
    """Return the mean seconds of a call."""
    call()
    begun = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begun) / count


STEP = re.compile(r"// (\S+) at ([^\n]*?)(?:, ([\d,]+) multiply-adds)?\n +STEP\((\d+)\)")


def layers(name: str, files: Files, batch: int, threads: int, calls: int) -> list[Layer]:
    """Time each layer of the C."""
    source = files.c.read_text(encoding="utf-8")
    count = len(re.findall(r"^ +STEP\(", source, re.MULTILINE))
    (files.c.parent / "clock.h").write_text(CLOCK.format(count=count), encoding="utf-8")
    library = files.c.with_name("clocked.so")
    build(files.c, library, ("-shared", "-fPIC", "-include", str(files.c.parent / "clock.h")))
    runner = files.load(Native, threads)
    loaded = ctypes.CDLL(str(library))
    runner.function = loaded.net_run_part
    taken = (ctypes.c_double * count).in_dll(loaded, "step_seconds")
    step = runner.bind(files.program.contract.arrays(files.program.contract.random(batch)))
    samples = []
    for _ in range(calls):
        before = list(taken)
        step()
        samples.append([(after - first) / batch for after, first in zip(taken, before, strict=True)])
    medians = [float(f"{statistics.median(values):.4g}") for values in zip(*samples, strict=True)]
    peak = measured_peak(threads)["flops"].get("fp32")
    return [
        Layer(name, batch, threads, operator, line, int(products.replace(",", "") or 0), medians[int(index)], peak)
        for operator, line, products, index in STEP.findall(source)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Show the contests, or the layers."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.larger")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, help="networks to time")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="examples of a call")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="threads of a call")
    parser.add_argument("--blocks", type=int, default=60, help="blocks of a contest")
    parser.add_argument("--loads", type=int, default=5, help="loads of each file in a contest")
    parser.add_argument("--layers", action="store_true", help="show every layer of the C, and no contests")
    parser.add_argument("--keep", action="store_true", help=f"write contests and large layers into {KEPT.name}")
    options = parser.parse_args(arguments)
    cli.say(f"on {', '.join(instruction_sets())}")
    contests: list[Contest] = []
    timed: list[Layer] = []
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            files = Files.write(name, Path(folder))
            for batch, threads in product(options.batches, options.threads):
                if not options.layers:
                    contests.append(contest(name, files, batch, threads, options.blocks, options.loads))
                    cli.say("  ".join(contests[-1].cells()))
                if options.layers or (options.keep and threads == 1):
                    timed += layers(name, files, batch, threads, options.blocks)
    if contests:
        cli.table("Generated C beside other runtimes", COLUMNS, [made.cells() for made in contests])
    if options.layers:
        for (name, batch, threads), group in groupby(timed, lambda layer: (layer.network, layer.batch, layer.threads)):
            title = f"{name}, batch {batch}, {counted(threads, 'thread')}: an example"
            cli.table(title, ("operator", "at", "multiply-adds", "µs", "of peak"), [layer.cells() for layer in group])
    if options.keep:
        environment = {"cpu": cpu_name(), "instruction_sets": instruction_sets(), "git_commit": git_commit()}
        large = [asdict(layer) for layer in timed if layer.multiply_adds >= LARGE]
        content = {"environment": environment, "contests": list(map(asdict, contests)), "layers": large}
        KEPT.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(cli.run(main))
