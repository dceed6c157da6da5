"""Which lowering runs in which runtime, tried: ``python -m stn_export.audit.runtimes --run RUN``, or ``make runtimes``.

Every ONNX file of a run's first network is cut to a batch of 1 and run by each runtime on its first example, in a
process and an environment of its own (``--install`` makes those), and set against ONNX Runtime on the CPU running the
same file. The table is kept in ``benchmarks/results/runtimes.json``, for ``export --for``, and in ``docs/runtimes.md``.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from stn_export import cli
from stn_export.artifacts.environment import versions
from stn_export.artifacts.files import write_atomically
from stn_export.artifacts.manifest import Artifact, NetworkDirectory, network_directories
from stn_export.config import DEFAULT_RUN
from stn_export.graphs.destinations import EQUAL, KEPT, OFF, REFUSES, WRONG
from stn_export.graphs.placement import open_session

ENVIRONMENTS = Path(".runtimes")
LIMIT = 120  # seconds, of an installation and of a trial
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "int8": 1e-1}  # of the largest value: `equal`; ten times that is `off by`
REASON = 160  # characters of it that are shown
FOLDERS = re.compile(r"/(?:[^\s/:]+/)+")  # of the machine that tried it
PAGE = KEPT.parents[2] / "docs" / "runtimes.md"
INTRODUCTION = """# Runtimes

`make runtimes` wrote this page: each file at a batch of 1, in each runtime, against ONNX Runtime on the CPU. `equal`:
within {tolerances} of the largest output, or of 1; `off by`: within ten times that; `WRONG`: beyond, in silence.
"""


@dataclass(frozen=True)
class Runtime:
    """One row: what is installed for it, exactly as pip or npm takes it. What needs no torch is spared it."""

    name: str
    packages: tuple[str, ...]
    options: tuple[str, ...] = ()

    @property
    def interpreter(self) -> Path:
        """That of its environment."""
        return ENVIRONMENTS / self.name / "bin" / "python"

    def install(self) -> str:
        """Make the environment, or say why there is none."""
        if self.name == "web":
            commands = [["npm", "install", "--silent", "--prefix", str(ENVIRONMENTS / self.name), *self.packages]]
        else:
            pip = [str(self.interpreter), "-m", "pip", "install", "--quiet", *self.options]
            commands = [[sys.executable, "-m", "venv", str(ENVIRONMENTS / self.name)], [*pip, *self.packages]]
        try:
            for command in commands:
                subprocess.run(command, check=True, capture_output=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return f"not installed within {LIMIT} s"
        except (OSError, subprocess.CalledProcessError) as error:
            return f"not installed: {error}"
        return ""

    def version(self) -> str:
        """Of its first package; empty where it is not installed."""
        if self.name == "web":
            file = ENVIRONMENTS / self.name / "node_modules" / self.packages[0] / "package.json"
            return json.loads(file.read_text())["version"] if file.is_file() else ""
        command = f"import importlib.metadata as m; print(m.version({self.packages[0]!r}))"
        if not self.interpreter.is_file():
            return ""
        return subprocess.run([self.interpreter, "-c", command], capture_output=True, text=True).stdout.strip()

    def run(self, model: bytes, feeds: dict[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray] | str:
        """The outputs in the file's order, or why there are none."""
        with tempfile.TemporaryDirectory() as folder:
            file, fed, out = (Path(folder) / name for name in ("model.onnx", "feeds.npz", "out.npz"))
            file.write_bytes(model)
            file.with_suffix(".outputs").write_text("\n".join(outputs))
            np.savez(fed, **feeds)  # type: ignore[arg-type]
            command: list[str | Path] = [
                self.interpreter.absolute(),
                Path(__file__).with_name("trials.py"),
                self.name,
                file,
                fed,
                out,
            ]
            if self.name == "web":
                command = self._in_node(file, feeds, Path(folder))
            try:
                calm = os.environ | {
                    "PIP_NO_INDEX": "1",
                    "PYTHONPATH": "",
                    "RUST_BACKTRACE": "0",
                }  # a converter may want to install things
                done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=calm, cwd=folder)
            except subprocess.TimeoutExpired:
                return f"takes more than {LIMIT} s"
            if self.name == "web" and not done.returncode:
                return _from_json(Path(folder) / "out.json")
            if done.returncode:
                return _reason(done)
            with np.load(out) as content:
                return [content[name] for name in content.files]

    def _in_node(self, file: Path, feeds: dict[str, np.ndarray], folder: Path) -> list[str | Path]:
        fed = [
            {"name": name, "type": each.dtype.name, "shape": each.shape, "values": each.ravel().tolist()}
            for name, each in feeds.items()
        ]
        (folder / "feeds.json").write_text(json.dumps(fed))
        module = ENVIRONMENTS.absolute() / "web" / "node_modules" / "onnxruntime-web" / "dist" / "ort.wasm.min.mjs"
        script = Path(__file__).with_name("trial.mjs")
        return ["node", script, module, file, folder / "feeds.json", folder / "out.json"]


def _from_json(path: Path) -> list[np.ndarray]:
    return [np.array(each["values"], np.float64).reshape(each["shape"]) for each in json.loads(path.read_text())]


def _reason(done: subprocess.CompletedProcess) -> str:
    """What the exception says that ended it, and the line in that which names its cause."""
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    raised = [index for index, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)]
    told = lines[raised[-1] :] if raised else lines[-1:]
    caused = [line for line in told if re.search(r"error:|not exists|Unimplemented|Impossible", line)]
    return " … ".join(dict.fromkeys([*told[:1], *caused[:1]])) or "no reason given"


RUNTIMES = (
    Runtime("openvino", ("openvino",)),
    Runtime("web", ("onnxruntime-web",)),
    Runtime("tract", ("tract",)),
    Runtime("tvm", ("apache-tvm", "onnx")),
    Runtime("iree", ("iree-base-compiler", "iree-base-runtime", "onnx")),
    Runtime("mnn", ("mnn",)),
    Runtime("ncnn", ("ncnn", "pnnx", "numpy"), ("--no-deps",)),
    Runtime("opencv", ("opencv-python-headless",)),
)


def at_batch_one(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with its open batch set to 1: most of these runtimes want sizes that are known."""
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = 1
    return model


def cell(found: list[np.ndarray] | str, expected: Sequence[np.ndarray], precision: str) -> tuple[str, float | str]:
    """``EQUAL``, ``OFF`` or ``WRONG`` with the largest difference over the largest value, or ``REFUSES`` with why."""
    if isinstance(found, str):
        return REFUSES, FOLDERS.sub("", found)[:REASON]
    if [each.size for each in found] != [each.size for each in expected]:
        return WRONG, f"shapes {[each.shape for each in found]}"
    pairs = [(a.ravel().astype(float), b.ravel().astype(float)) for a, b in zip(found, expected, strict=True)]
    error = max(float(np.abs(a - b).max(initial=0) / max(1.0, np.abs(b).max(initial=0))) for a, b in pairs)
    allowed = TOLERANCES[precision]
    return EQUAL if error <= allowed else OFF if error <= 10 * allowed else WRONG, error


def trials(directory: NetworkDirectory, runtimes: Sequence[Runtime]) -> Iterator[dict]:
    """One row per file and runtime."""
    for artifact in directory.artifacts.values():
        if artifact.format == "onnx":
            yield from _trials_of(directory, artifact, runtimes)


def _trials_of(directory: NetworkDirectory, artifact: Artifact, runtimes: Sequence[Runtime]) -> Iterator[dict]:
    model = at_batch_one(onnx.load(directory.path / artifact.file))
    feeds = artifact.contract.arrays(directory.examples().take(1))
    names = [each.name for each in model.graph.output]
    expected = open_session(model, "cpu").run(names, feeds)
    for runtime in runtimes:
        verdict, detail = cell(runtime.run(model.SerializeToString(), feeds, names), expected, artifact.precision)
        said = {"file": artifact.name, "lowering": artifact.lowering, "precision": artifact.precision}
        yield said | {"opset": artifact.opset, "runtime": runtime.name, "verdict": verdict, "detail": detail}


def shown(row: dict) -> str:
    """A row's cell, for a person."""
    detail = row["detail"]
    figure = f"{detail:.0e}" if isinstance(detail, float) else detail
    return f"{row['verdict']} {figure}" if row["verdict"] == OFF else f"{row['verdict']} ({figure})"


def page(table: dict) -> str:
    """``docs/runtimes.md``: a row a file, a column a runtime, and the reasons of refusals below."""
    runtimes = list(table["runtimes"])
    tolerances = ", ".join(f"{value:g} ({name})" for name, value in TOLERANCES.items())
    cells = {(row["file"], row["runtime"]): row for row in table["rows"]}
    lines = [
        INTRODUCTION.format(tolerances=tolerances),
        f"| file | {' | '.join(runtimes)} |",
        "|---" * (len(runtimes) + 1) + "|",
    ]
    for file in dict.fromkeys(row["file"] for row in table["rows"]):
        found = [cells[file, runtime] for runtime in runtimes]
        short = [row["verdict"] if row["verdict"] == REFUSES else shown(row) for row in found]
        lines.append(f"| {file} | {' | '.join(short)} |")
    lines += [
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in table["runtimes"].items()) + ".",
        "",
    ]
    lines += [
        f"- {row['file']} in {row['runtime']}: {row['detail']}" for row in table["rows"] if row["verdict"] == REFUSES
    ]
    lines += [f"- {name}: {why}" for name, why in table["left_out"].items()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Try every runtime that is there, and keep the table."""
    parser = cli.stage("audit.runtimes", "Try a run's ONNX files in other runtimes, and keep the table.")
    parser.add_argument("--run", type=cli.path_or_none, help=f"run directory; by default {DEFAULT_RUN}")
    parser.add_argument("--install", action="store_true", help=f"make the environments under {ENVIRONMENTS} first")
    options = parser.parse_args(arguments)
    left_out = {}
    for runtime in RUNTIMES:
        if options.install and not runtime.version():
            left_out[runtime.name] = runtime.install()
    there = {runtime: version for runtime in RUNTIMES if (version := runtime.version())}
    left_out = {each.name: left_out.get(each.name) or "not installed" for each in RUNTIMES if each not in there}
    rows = []
    for row in trials(network_directories(options.run or DEFAULT_RUN)[0], list(there)):
        rows.append(row)
        cli.say(f"{row['file']:<24}{row['runtime']:<10}{shown(row)}")
    said = {runtime.name: version for runtime, version in there.items()}
    table = {
        "schema": "stn_export/runtimes/1",
        "versions": versions(),
        "runtimes": said,
        "left_out": left_out,
        "rows": rows,
    }
    write_atomically(KEPT, json.dumps(table, indent=1).encode() + b"\n")
    write_atomically(PAGE, page(table).encode())


if __name__ == "__main__":
    sys.exit(cli.run(main))
