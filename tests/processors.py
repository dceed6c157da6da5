"""The chain under every instruction set that libraries can be held to, and C under other processors' emulators.

``make test-processors`` prints a line a setting. What this machine cannot do, or what a library does not heed here, is
"not tried", with the reason, and counted; nothing that was not seen to hold is called right.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch

from stn_export import cli
from stn_export.errors import CheckFailedError, UserError, one_line
from stn_export.export import __main__ as export
from stn_export.native.build import HERE, TARGETS, build
from stn_export.native.source import write_source
from stn_export.program.program import Program
from stn_export.results.tolerances import OUTPUT, worst_by_kind
from stn_export.run.environment import cpu_facts, cpu_name, instruction_sets
from stn_export.run.manifest import SUBJECT, NetworkDirectory
from stn_export.run.network import enter, write_examples
from stn_export.run.schemas import read_verified
from stn_export.run.store import read_json
from stn_export.runners import RUNNERS
from stn_export.verify import __main__ as verify
from stn_export.verify import challenges
from tests.runs import CLASSES, built_in, digits_examples

LIMIT = 600  # seconds of one setting
ROWS = ("torchscript-fp32", "matmul-fp32")
INT8 = "matmul-int8"
COLUMNS = ("setting", "what", "verdict", "worst error", "seconds")
OUTCOME = "outcome.json"
MAIN = """
#include "net.h"
#include <stdio.h>
#include <stdlib.h>

int main(void) {{
    const size_t n = {batch};
    float *in = malloc(n * {input} * sizeof(float)), *out = malloc(n * {output} * sizeof(float));
    void *memory = malloc(net_memory());
    if (fread(in, sizeof(float), n * {input}, stdin) != n * {input}) return 3;
    const int code = net_run_in(in, n, out, memory, net_memory());
    fwrite(out, sizeof(float), n * {output}, stdout);
    return code;
}}
"""


@dataclass(frozen=True)
class Line:
    """What one setting came to: ``passed`` is None where it was not tried; the error is absolute, of fp32 outputs."""

    setting: str
    what: str
    passed: bool | None
    verdict: str
    error: float | None = None
    seconds: float = 0.0

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        known = self.passed is not None
        return (
            *(self.setting, self.what, self.verdict),
            *(cli.figure(self.error, ".1e"), f"{self.seconds:.0f}" if known else cli.NONE),
        )


@dataclass(frozen=True)
class Setting:
    """A library's switch; ``shown`` is what the library says of itself where it heeds the switch."""

    variable: str
    value: str
    shown: str  # a regular expression
    needs: str = ""  # an instruction set

    @property
    def name(self) -> str:
        """As one types it."""
        return f"{self.variable}={self.value}"


SETTINGS = (
    Setting("OMP_NUM_THREADS", "1", r"^PyTorch threads 1$"),
    Setting("OMP_NUM_THREADS", "2", r"^PyTorch threads 2$"),
    Setting("ATEN_CPU_CAPABILITY", "default", r"^ATen DEFAULT$"),
    Setting("ATEN_CPU_CAPABILITY", "avx2", r"^ATen AVX2$", "AVX2"),
    Setting("ATEN_CPU_CAPABILITY", "avx512", r"^ATen AVX512$", "AVX-512"),
    Setting("ONEDNN_MAX_CPU_ISA", "SSE41", r"isa:Intel SSE4\.1$"),
    Setting("ONEDNN_MAX_CPU_ISA", "AVX", r"isa:Intel AVX$", "AVX"),
    Setting("ONEDNN_MAX_CPU_ISA", "AVX2", r"isa:Intel AVX2$", "AVX2"),
    Setting("ONEDNN_MAX_CPU_ISA", "AVX512_CORE", r"isa:Intel AVX-512 with AVX512BW", "AVX-512"),
    Setting("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI", r"isa:Intel AVX-512 with Intel DL Boost$", "VNNI"),
    Setting("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", r"isa:Intel AVX-512 .* and bfloat16 support$", "BF16"),
    Setting("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX", r"isa:.*Intel AMX", "AMX"),
    Setting("MKL_ENABLE_INSTRUCTIONS", "SSE4_2", r"^MKL_VERBOSE .*SSE4\.2\b.*enabled"),
    Setting("MKL_ENABLE_INSTRUCTIONS", "AVX2", r"^MKL_VERBOSE .*AVX2\b.*enabled", "AVX2"),
    Setting("MKL_ENABLE_INSTRUCTIONS", "AVX512", r"^MKL_VERBOSE .*AVX-512\b.*enabled", "AVX-512"),
    Setting("MKL_CBWR", "COMPATIBLE", r"CNR:COMPATIBLE\b"),
    Setting("MKL_CBWR", "AVX2", r"CNR:AVX2\b", "AVX2"),
    Setting("MKL_CBWR", "AVX512", r"CNR:AVX512\b", "AVX-512"),
)


@dataclass(frozen=True)
class Emulated:
    """Another processor for C: who compiles for it, for which target, and who plays it."""

    machine: str
    compiler: str
    target: str
    emulator: str
    model: str

    @property
    def name(self) -> str:
        """As the table shows it."""
        return f"{self.emulator} -cpu {self.model}" if self.emulator else self.machine

    def missing(self) -> str:
        """What is not installed for it, or an empty string."""
        tools = [self.compiler, *([self.emulator] if self.emulator else [])]
        return ", ".join(tool for tool in tools if not (shutil.which(tool) or shutil.which(f"{tool}-static")))

    def command(self, program: Path) -> list[str]:
        """Words that run a program on it."""
        if not self.emulator:
            return [str(program)]
        return [shutil.which(self.emulator) or f"{self.emulator}-static", "-cpu", self.model, str(program)]


EMULATED = (
    Emulated("aarch64", "aarch64-linux-gnu-gcc", "generic", "qemu-aarch64", "cortex-a53"),
    Emulated("aarch64", "aarch64-linux-gnu-gcc", "generic", "qemu-aarch64", "max"),
    Emulated("x86-64", "x86_64-linux-gnu-gcc", "generic", "qemu-x86_64", "Nehalem"),
    Emulated("x86-64", "x86_64-linux-gnu-gcc", "x86-64-v3", "qemu-x86_64", "Haswell"),
)


# What a child does: one setting, seen from inside.


@dataclass(frozen=True)
class Outcome:
    """What a child found: a failure of each check that failed, and the worst error of full precision."""

    checks: int
    failures: list[str]
    refused: str
    error: float


def introduce() -> None:
    """Print what PyTorch and its libraries say that they compute with."""
    sys.stdout.write(f"\nATen {torch.backends.cpu.get_cpu_capability()}\n")
    sys.stdout.write(f"PyTorch threads {torch.get_num_threads()}\n")
    sys.stdout.flush()
    with torch.backends.mkl.verbose(torch.backends.mkl.VERBOSE_ON):
        torch.rand(64, 64) @ torch.rand(64, 64)
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        torch.nn.functional.conv2d(torch.rand(1, 3, 32, 32), torch.rand(8, 3, 5, 5))


def prepare(run: Path) -> None:
    """Make a run with one small network, not exported yet."""
    examples = digits_examples(64)
    file = write_examples(run, examples)
    said = {"source": examples.source, "classes": CLASSES}
    enter(NetworkDirectory(run / "stn"), built_in("stn"), file, label="spatial transformer", role=SUBJECT, **said)


def chain(run: Path, rows: Sequence[str]) -> Outcome:
    """Export some rows and verify them on few batches, without runners that take a minute."""
    challenges.BATCHES, challenges.NOISE_BATCHES = (1, 3), (4,)
    verify.RUNNERS = tuple(spec for spec in RUNNERS if not spec.slow)
    verify.SMALL = 0  # as many threads as the setting says, however small the network
    place = ["--run", str(run)]
    required = [row for row in rows if row != INT8]
    if code := cli.run(export.main, [*place, "--only", *required]):
        return Outcome(0, [f"export ended with exit code {code}"], "", 0.0)
    refused = INT8 if INT8 in rows and cli.run(export.main, [*place, "--only", INT8]) else ""
    cli.run(verify.main, place)
    content = read_verified(run)
    if content is None:
        return Outcome(0, ["nothing was verified"], refused, 0.0)
    failed = [f"{each.artifact} on {each.runner}: {each.failure}" for each in content.checks if not each.passed]
    exact = [each for each in content.checks if each.precision == "fp32"]
    points = content.networks["stn"].points
    worst = max((worst_by_kind(each.errors, points).get(OUTPUT) or 0.0 for each in exact), default=0.0)
    missing = [row for row in rows if row != refused and row not in {each.artifact for each in content.checks}]
    return Outcome(len(content.checks), failed + [f"{row} was not checked" for row in missing], refused, worst)


# What the parent does.


def line_of(name: str, what: str, done: subprocess.CompletedProcess, outcome: Path, shown: str) -> Line:
    """Judge a child: by what it wrote, and by whether the library heeded the setting."""
    if not outcome.is_file():
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
        return Line(name, what, False, f"FAILED: exit code {done.returncode}: {last.strip()[:200]}")
    found = read_json(outcome, kind=Outcome)
    if found.failures or not found.checks:
        return Line(name, what, False, f"FAILED: {(found.failures or ['nothing was checked'])[0]}", found.error)
    if shown and not re.search(shown, done.stdout, re.MULTILINE):
        return Line(name, what, None, "not tried: the library does not heed it on this processor")
    equal = f"{found.checks} checks passed" + (f"; {found.refused} refused" if found.refused else "")
    return Line(name, what, True, equal, found.error)


def in_child(
    name: str, folder: Path, rows: Sequence[str], more: dict[str, str], shown: str = "", words: Sequence[str] = ()
) -> Line:
    """Run the chain in a process and a run of its own, under an environment."""
    what, run = ", ".join(rows), folder / re.sub(r"\W+", "-", name)
    command = words or [sys.executable, "-m", "tests.processors", "--child", str(run), *rows]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | more
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Line(name, what, False, f"FAILED: not over after {LIMIT} s", seconds=LIMIT)
    line = line_of(name, what, done, run / OUTCOME, shown)
    return Line(**asdict(line) | {"seconds": time.perf_counter() - started})


def under(setting: Setting, folder: Path) -> Line:
    """The chain with a library held to less."""
    if setting.needs and setting.needs not in instruction_sets():
        return Line(setting.name, "the chain", None, f"not tried: this processor has no {setting.needs}")
    switch = {setting.variable: setting.value}
    if setting.variable.startswith("MKL") and not re.search(setting.shown, introduction(switch), re.MULTILINE):
        return Line(setting.name, "the chain", None, "not tried: MKL does not heed it on this processor")
    return in_child(setting.name, folder, [*ROWS, INT8], switch, setting.shown)


def introduction(switch: dict[str, str]) -> str:
    """What the libraries say of themselves under a switch; much faster than the chain."""
    command = [sys.executable, "-c", "from tests.processors import introduce; introduce()"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | switch
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True).stdout


def native_rows() -> list[str]:
    """C for this processor, and for every target that it can run."""
    flags = set(cpu_facts().get("flags", cpu_facts().get("Features", "")).split())
    able = [target for target, (_, needed) in TARGETS.items() if set(needed) <= flags]
    return ["native-fp32" + (f"-{target}" if target != HERE else "") for target in able]


def emulate(machine: Emulated, program: Program, images: torch.Tensor, folder: Path) -> Line:
    """Compile a network's C for another processor, run it there and hold what it gives against float64."""
    what = f"C for {machine.target}"
    if missing := machine.missing():
        return Line(machine.name, what, None, f"not tried: {missing} not installed")
    started = time.perf_counter()
    try:
        found = _outputs(machine, program, images, folder)
    except (UserError, OSError, subprocess.SubprocessError) as error:
        return Line(machine.name, what, False, f"FAILED: {one_line(error)}", seconds=time.perf_counter() - started)
    return judged(machine.name, what, found, program, images, time.perf_counter() - started)


def _outputs(machine: Emulated, program: Program, images: torch.Tensor, folder: Path) -> np.ndarray:
    place = Path(tempfile.mkdtemp(dir=folder))
    write_source(program, "net", machine.target).write(place / "net.c")
    outputs = program.run((images,))[program.contract.outputs[0].name].flatten(1).shape[1]
    sizes = {"batch": len(images), "input": images[0].numel(), "output": outputs}
    (place / "main.c").write_text(MAIN.format(**sizes), encoding="utf-8")
    before = os.environ.get("CC")
    os.environ["CC"] = machine.compiler
    try:
        build(place / "net.c", place / "net", ["-static", str(place / "main.c")])
    finally:
        os.environ.pop("CC")
        os.environ |= {"CC": before} if before else {}
    command = machine.command(place / "net")
    done = subprocess.run(command, input=images.numpy().tobytes(), capture_output=True, timeout=LIMIT, check=True)
    return np.frombuffer(done.stdout, np.float32).reshape(len(images), outputs)


def judged(name: str, what: str, found: np.ndarray, program: Program, images: torch.Tensor, seconds: float) -> Line:
    """Equal where the error against float64 stays within three times eager float32's own, and a few roundings."""
    output = program.contract.outputs[0].name
    exact = program.exact.points((images,))[output].flatten(1).numpy()
    eager = program.run((images,))[output].flatten(1).numpy()
    error = float(np.abs(found - exact).max())
    allowed = 3 * np.abs(eager - exact).max() + 8 * np.finfo(np.float32).eps * np.abs(exact).max()
    right = bool(np.isfinite(found).all() and error <= allowed)
    verdict = "equal" if right else f"FAILED: more than {allowed:.1e} from float64"
    return Line(name, what, right, verdict, error, seconds)


def sweep(folder: Path) -> Iterator[Line]:
    """Every setting, one after the other."""
    for setting in SETTINGS:
        yield under(setting, folder)
    if shutil.which("cc"):
        yield in_child("C on this processor", folder, native_rows(), {})
    else:
        yield Line("C on this processor", "native-fp32", None, "not tried: no C compiler here")
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    program = built_in("stn")
    for machine in EMULATED:
        yield emulate(machine, program, images, folder)
    yield Line("torch.compile", "compiled-cpu", None, "not tried: it takes a minute a setting; make verify runs it")


def close(lines: Sequence[Line]) -> None:
    """Print the table and what it came to.

    Raises:
        CheckFailedError: where a line is red, or none was tried.
    """
    title = f"The chain on other processors, from {cpu_name()}: {', '.join(instruction_sets())}"
    cli.table(title, COLUMNS, [line.cells() for line in lines], ("what",))
    red = [line for line in lines if line.passed is False]
    right, untried = (sum(line.passed is value for line in lines) for value in (True, None))
    counted = f"{right} of {right + len(red)} settings right, {untried} not tried"
    cli.say(f"{counted}; {sum(line.seconds for line in lines):.0f} s")
    if red or not right:
        raise CheckFailedError("\n".join([counted, *(f"{line.setting}: {line.verdict}" for line in red)]))


def main(arguments: Sequence[str] | None = None, lines: Callable[[Path], Iterator[Line]] = sweep) -> None:
    """Run the sweep; as a child, one setting of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs="+", help="a run, and rows of it")
    options = parser.parse_args(arguments)
    if options.child:
        run, *rows = options.child
        introduce()
        prepare(Path(run))
        (Path(run) / OUTCOME).write_bytes(msgspec.json.encode(chain(Path(run), rows)))
        return
    found = []
    with tempfile.TemporaryDirectory(prefix="processors-") as folder:
        for line in lines(Path(folder)):
            found.append(line)
            sys.stderr.write(f"{line.setting}: {line.verdict}\n")
    close(found)


if __name__ == "__main__":
    sys.exit(cli.run(main))
