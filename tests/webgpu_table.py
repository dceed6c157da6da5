"""Verify files with WebGPU and set its placement against the prediction: ``python -m tests.webgpu_table --run RUN``.

Every ONNX file of the run, and one of each of three networks that others might have written. The session is asked where
each node runs; ``audit --provider webgpu`` predicts it from the table of kernels. benchmarks/results/webgpu.json keeps
the rows, from which ``make readme`` writes the table of docs/gpu.md. The exit code is 1 where a file is called unequal,
or a node that computes runs elsewhere than predicted.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from stn_export import cli
from stn_export.config import DEFAULT_RUN
from stn_export.export import __main__ as export
from stn_export.onnx_graph.deployment import audit
from stn_export.onnx_graph.lint import lint
from stn_export.onnx_graph.model import flat
from stn_export.onnx_graph.records import CPU
from stn_export.run.environment import cpu_name, git_commit, instruction_sets
from stn_export.run.manifest import NetworkDirectory, network_directories
from stn_export.run.records import Check
from stn_export.runners import FEW, RUNNERS
from stn_export.runners.external import RefusedError
from stn_export.runners.external.environments import OnWebGpu, asked_for, by_name
from stn_export.verify.checks import check_artifact
from stn_export.verify.oracle import reference_of
from tests.zoo import enter_zoo

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "webgpu.json"
FOREIGN = dict.fromkeys(("PlateRectifier", "GreyDigits", "FlowWarp", "TextRectifier"), "matmul-fp32")  # of the zoo
SPEC = next(spec for spec in RUNNERS if spec.device == "webgpu")
EQUAL, WITHIN, REFUSED, WRONG = "equal", "within bounds", "refused", "WRONG"
KNOWN = {"STN017"}  # rules of audit that say of a file that WebGPU computes it wrongly


@dataclass(frozen=True)
class Row:
    """One file: how many nodes that compute run on the GPU, which on the CPU, and how WebGPU's outputs compare.

    ``left`` are the nodes on the CPU, ``cpu`` their operators, ``differ`` the nodes that run elsewhere than predicted,
    ``multiple`` the worst error over that of eager PyTorch.
    """

    network: str
    file: str
    gpu: int
    cpu: tuple[str, ...]
    left: tuple[str, ...]
    differ: tuple[str, ...]
    multiple: float | None
    verdict: str
    why: str = ""

    @property
    def fine(self) -> bool:
        """Whether it is as it should be: a wrong file is one that ``audit`` warns of."""
        return self.verdict in (EQUAL, WITHIN, REFUSED, *map(wrong_by, KNOWN)) and not self.differ


def wrong_by(rule: str) -> str:
    """The verdict on a file that is wrong as a rule says."""
    return f"{WRONG}, as {rule} says"


def verdict_of(check: Check, precision: str, model: onnx.ModelProto) -> str:
    """In words: ``equal`` is of float32, and a wrong file is one that ``audit`` warns of, or a finding."""
    if check.passed:
        return EQUAL if precision == "fp32" else WITHIN
    return next((wrong_by(found.rule) for found in lint(model) if found.rule in KNOWN), WRONG)


def rows_of(directory: NetworkDirectory, only: tuple[str, ...] = ()) -> Iterator[Row]:
    """One row for each ONNX file of a network."""
    runtime = by_name("webgpu")
    assert isinstance(runtime, OnWebGpu)
    reference = reference_of(directory.program(), directory.examples().first(FEW))
    for artifact, path in directory.expected():
        if not SPEC.takes(artifact) or (only and artifact.name not in only):
            continue
        model = flat(onnx.load(path))
        nodes = [node for node in audit(model, "webgpu").nodes if node.compute]
        named = (directory.name, artifact.name)
        try:
            check = check_artifact(artifact, path, SPEC, reference)
        except RefusedError as error:
            yield Row(*named, 0, (), (), (), None, REFUSED, str(error))
            continue
        asked = runtime.placement(model)
        left = [node for node in nodes if asked.get(node.name) == CPU]
        yield Row(
            *named,
            sum(node.name in asked for node in nodes) - len(left),
            tuple(dict.fromkeys(node.op_type for node in left)),
            tuple(node.name for node in left),
            tuple(node.name for node in nodes if asked.get(node.name, node.provider) != node.provider),
            check.multiple,
            verdict_of(check, artifact.precision, model),
            check.failure,
        )


def foreign(folder: Path, name: str, file: str) -> Iterator[Row]:
    """The row of a network of the zoo."""
    directory = enter_zoo(folder / name, name)
    assert cli.run(export.main, ["--run", str(folder / name), "--only", file]) == 0
    yield from rows_of(directory, (file,))


def main() -> None:
    """Try all, print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=DEFAULT_RUN)
    parser.add_argument("--runtimes", type=Path, default=Path(".runtimes"))
    options = parser.parse_args()
    with asked_for(options.runtimes), tempfile.TemporaryDirectory() as folder:
        if reason := SPEC.unavailable():
            sys.exit(reason)
        runtime, rows = by_name("webgpu"), []
        networks = [rows_of(directory) for directory in network_directories(options.run)]
        for found in (*networks, *(foreign(Path(folder), *item) for item in FOREIGN.items())):
            for row in found:
                print(json.dumps(asdict(row)), flush=True)
                rows.append(row)
        content = {
            "versions": {"onnxruntime-webgpu": runtime.version},
            "adapter": runtime.software or "a GPU",
            "examples": FEW if runtime.software else None,
            "environment": {"cpu": cpu_name(), "instruction_sets": instruction_sets(), "git_commit": git_commit()},
            "rows": [asdict(row) for row in rows],
        }
    bad = [row for row in rows if not row.fine]
    print(f"{len(rows)} files, {len(bad)} at fault")
    if not bad:
        RESULTS.write_text(json.dumps(content, indent=1), encoding="utf-8")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
