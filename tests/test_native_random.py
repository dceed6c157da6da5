"""Random networks over all operators that are written in C, against float64, with the compiler's sanitizers looking on.

``STN_EXPORT_FUZZ=200`` tries as many networks; by default a few.
"""

import os
import subprocess
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_export.native import convolution as convolution_in_c
from stn_export.native import operators, writer
from stn_export.native.build import build, no_compiler
from stn_export.native.source import Source, write_source
from stn_export.program.capture import capture
from stn_export.program.program import Program, contract_of

COUNT = int(os.environ.get("STN_EXPORT_FUZZ", "6"))
BATCH = 3
SANITIZED = ("-O1", "-g", "-fno-sanitize-recover=all", "-Wall", "-Wextra", "-Werror")
MAIN = """
#include "net.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {{ N = {batch}, PARTS = {parts} }};
static float *in, *out;
static void *memory;
static int codes[PARTS];

static void *run(void *part) {{
    int *code = part;
    *code = net_run_part(in, N, out, (int)(code - codes), PARTS, memory, PARTS * net_memory());
    return NULL;
}}

int main(void) {{
    in = malloc(N * {input} * sizeof(float)), out = malloc(N * {output} * sizeof(float));
    memory = malloc(PARTS * net_memory());
    memset(memory, 255, PARTS * net_memory());  // not a number, wherever it is read
    if (fread(in, sizeof(float), N * {input}, stdin) != N * {input}) return 9;
    int code = net_run_in(in, N, out, memory, net_memory());
    fwrite(out, sizeof(float), N * {output}, stdout);
    memset(memory, 255, PARTS * net_memory());
    memset(memory, 0, 128);
    for (int turn = 0; turn < 2; turn++) {{
        pthread_t threads[PARTS];
        for (int i = 0; i < PARTS; i++) pthread_create(&threads[i], NULL, run, &codes[i]);
        for (int i = 0; i < PARTS; i++) pthread_join(threads[i], NULL), code |= codes[i];
    }}
    fwrite(out, sizeof(float), N * {output}, stdout);
    free(in), free(out), free(memory);
    return code;
}}
"""
ACTIVATIONS = (
    nn.ReLU(), nn.ReLU6(), nn.ReLU(inplace=True), nn.Hardtanh(-0.5, 0.7), nn.LeakyReLU(0.1), nn.ELU(), nn.SELU(),
    nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid(), nn.Softplus(), nn.Mish(),
)  # fmt: skip
MODES, PADDINGS = ("bilinear", "bicubic"), ("zeros", "border", "reflection")


class Wrapped(nn.Module):
    """A function with constants as a module."""

    def __init__(self, function: object, *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.inner = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.inner)


def convolution(random: Random, shape: torch.Size) -> nn.Module:
    channels, height, width = shape[1:]
    groups = random.choice([g for g in (1, 1, 2, 3, channels) if channels % g == 0])
    kernel = random.randint(1, min(7, height)), random.randint(1, min(7, width))
    options = {
        "stride": (random.choice((1, 1, 2, 3)), random.choice((1, 1, 1, 2))),
        "padding": tuple(random.randint(0, size // 2) for size in kernel),
        "groups": groups,
        "bias": random.random() < 0.7,
    }
    if random.random() < 0.2:
        options["dilation"] = tuple(
            2 if 2 * size - 1 <= room else 1 for size, room in zip(kernel, (height, width), strict=False)
        )
    most = random.choice((24, 24, 70))
    layers: list[nn.Module] = [
        nn.Conv2d(channels, groups * random.randint(1, max(1, most // groups)), kernel, **options)
    ]
    if random.random() < 0.4:
        layers.append(batch_norm(random, layers[0].out_channels))
    if random.random() < 0.6:
        layers.append(random.choice(ACTIVATIONS[:4]))
    if random.random() < 0.5:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def batch_norm(random: Random, channels: int) -> nn.Module:
    norm = nn.BatchNorm2d(channels, affine=random.random() < 0.8)
    norm.running_mean.normal_(0, 0.3)
    norm.running_var.uniform_(0.5, 2)
    return norm


def pooling(random: Random, shape: torch.Size) -> nn.Module:
    height, width = shape[2:]
    kernel = random.randint(1, min(4, height)), random.randint(1, min(4, width))
    options = {
        "kernel_size": kernel,
        "stride": (random.randint(1, 3), random.randint(1, 3)),
        "padding": tuple(random.randint(0, size // 2) for size in kernel),
        "ceil_mode": random.random() < 0.3,
    }
    return random.choice(
        (
            nn.MaxPool2d(**options),
            nn.AvgPool2d(**options, count_include_pad=random.random() < 0.5),
            nn.AdaptiveAvgPool2d((random.randint(1, height), random.randint(1, width))),
        )
    )


def affine_sampler(random: Random, shape: torch.Size) -> nn.Module:
    """Near the identity, or far outside."""
    channels, spread = shape[1], random.choice((0.2, 0.2, 1.0, 30.0))
    size = [random.randint(1, 40), random.randint(1, 40)]
    options = {"mode": random.choice(MODES), "padding_mode": random.choice(PADDINGS)}
    aligned, corners = (random.random() < 0.5 for _ in range(2))

    def warp(x: Tensor, theta: nn.Module) -> Tensor:
        matrices = spread * torch.tanh(theta(x.mean((2, 3)))).view(-1, 2, 3) + torch.eye(2, 3)
        grid = F.affine_grid(matrices, [x.shape[0], channels, *size], align_corners=corners)
        return F.grid_sample(x, grid, align_corners=aligned, **options)

    return Wrapped(warp, nn.Linear(channels, 6))


def own_sampler(random: Random, shape: torch.Size) -> nn.Module:
    options = {"mode": random.choice(MODES), "padding_mode": random.choice(PADDINGS)}
    aligned = random.random() < 0.5

    def warp(x: Tensor, flow: nn.Module) -> Tensor:
        return F.grid_sample(x, 1.2 * torch.tanh(flow(x)).permute(0, 2, 3, 1), align_corners=aligned, **options)

    return Wrapped(warp, nn.Conv2d(shape[1], 2, 1))


def shaping(random: Random, shape: torch.Size) -> nn.Module:
    _n, c, h, w = shape
    weight = torch.randn(w, random.randint(1, 20)) / w**0.5
    constant = torch.randn(random.choice(((c, 1, 1), (h, w), (1, c, h, w), (1,))))
    scale = random.uniform(0.5, 2)
    return (
        Wrapped(
            random.choice(
                (
                    lambda x: x.permute(0, 1, 3, 2),
                    lambda x: x.permute(0, 3, 1, 2).contiguous() if w < 30 else x,
                    lambda x: torch.cat([x, x * scale], 1) if c < 20 else x,
                    lambda x: torch.cat(x.split(max(1, h // 2), 2)[::-1], 2),
                    lambda x: torch.stack(x.unbind(3)[:9], 3),
                    lambda x: F.pad(x, (1, 2, 0, 3), value=0.5),
                    lambda x: x[:, :, : max(1, h - 1), ::2],
                    lambda x: (x + constant) * scale - x.mean((2, 3), keepdim=True),
                    lambda x: torch.maximum(x, constant) / (1 + x.abs()),
                    lambda x: torch.where(x > constant, x, 0.3 * x).clamp(-2, 2),
                    lambda x: x @ weight,
                    lambda x: (x.flatten(2).transpose(1, 2) @ x.flatten(2) / h / w).unsqueeze(1),
                    lambda x: x.softmax(random_axis),
                    lambda x: x.reshape(x.shape[0] * c, 1, h, w).relu().view(-1, c, h, w),
                    lambda x: x.amax(1, keepdim=True) + x.sum(3, keepdim=True) / w,
                    lambda x: F.interpolate(x, (h + 3, max(1, w - 2)), mode="bilinear", align_corners=False),
                )
            )
        )
        if (random_axis := random.randint(1, 3))
        else nn.Identity()
    )


LAYERS = (convolution, convolution, convolution, pooling, affine_sampler, own_sampler, shaping, shaping)


def random_network(seed: int) -> tuple[nn.Module, Tensor]:
    """A module in evaluation mode and a batch for it."""
    random = Random(seed)
    torch.manual_seed(seed)
    images = torch.randn(BATCH, random.choice((1, 2, 3, 3, 5)), random.randint(4, 40), random.randint(4, 40))
    layers, x = [], images
    with torch.no_grad():
        for _ in range(random.randint(2, 6)):
            kinds = (*LAYERS, lambda random, _: random.choice(ACTIVATIONS), lambda r, s: batch_norm(r, s[1]))
            layer = random.choice(kinds)(random, x.shape).eval()
            try:
                result = layer(x.clone())
            except RuntimeError:  # a kernel that is larger than what is left
                continue
            if result.dim() == 4 and 0 < result[0].numel() < 40000:
                layers.append(layer)
                x = result
    if random.random() < 0.5:
        end = nn.LogSoftmax(1) if random.random() < 0.5 else nn.Identity()
        layers += [nn.Flatten(), nn.Linear(x[0].numel(), random.randint(1, 40)), end]
    return nn.Sequential(*layers).eval(), images


def captured(module: nn.Module, images: Tensor) -> Program:
    found = capture(module, (images,), [("N", *images.shape[1:])])
    return Program(found.exported, contract_of(found.exported, found.shapes, ["images"], ["result"]))


def run(source: Source, folder: Path, images: Tensor, outputs: int, parts: int, sanitizer: str) -> np.ndarray:
    """What the C gives in one thread, then in several; a sanitizer that finds something ends the process."""
    path = folder / "net.c"
    source.write(path)
    main = folder / "main.c"
    main.write_text(
        MAIN.format(batch=len(images), input=images[0].numel(), output=outputs, parts=parts), encoding="utf-8"
    )
    build(path, folder / "net", [*SANITIZED, f"-fsanitize={sanitizer}", "-pthread", str(main)])
    options = {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run(
        [folder / "net"], input=images.numpy().tobytes(), capture_output=True, env=options, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[:3000]
    return np.frombuffer(done.stdout, np.float32).reshape(2, len(images), outputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid")  # of grids that are a pixel wide
@pytest.mark.skipif(bool(no_compiler()), reason=no_compiler())
@pytest.mark.parametrize("seed", sorted({*range(COUNT), 91}))  # that one sums up all of an example twice
def test_random_networks_equal_float64(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch):
    if seed % 3:  # small layers are computed as large ones are
        for module in (convolution_in_c, operators):
            monkeypatch.setattr(module, "HEAVY", 200)
        monkeypatch.setattr(convolution_in_c, "CACHED", 600)
        monkeypatch.setattr(writer, "GROUP", 2)
    program = captured(*(given := random_network(seed)))
    images = given[1]
    exact = program.exact.points((images,))["result"].flatten(1).numpy()
    eager = program.run((images,))["result"].flatten(1).numpy()
    target = ("native", "native", "generic", "x86-64-v3")[seed % 4]
    sanitizer = "thread,undefined" if seed % 5 == 4 else "address,undefined"
    found = run(write_source(program, "net", target), tmp_path, images, exact.shape[1], 2 + seed % 2, sanitizer)
    allowed = 3 * np.abs(eager - exact).max() + 8 * np.finfo(np.float32).eps * np.abs(exact).max()
    assert np.abs(found - exact).max() <= allowed, f"{given[0]}"
