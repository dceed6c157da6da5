"""Keep what WebGPU does: the table of its kernels, and where it runs the nodes of a run's files.

python -m benchmarks.tools.webgpu --runtimes .runtimes --kernels stn_export/resources/webgpu_kernels.json

ONNX Runtime does not list WebGPU's kernels, so a session is asked where it would run models of one node: the cases of
ONNX's own tests, in every version of the operator and with every element type that it may have.
"""

import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from subprocess import CalledProcessError
from typing import NamedTuple

import onnx
from onnx import TensorProto, helper
from onnx.backend.test.case.node import collect_testcases
from onnx.defs import OpSchema

from stn_export import cli
from stn_export.onnx_graph.placement import kernels, write_table
from stn_export.onnx_graph.records import WEBGPU
from stn_export.runners.external.environments import OnWebGpu, asked_for, by_name

TYPES = tuple(
    getattr(TensorProto, name)
    for name in ("FLOAT", "FLOAT16", "DOUBLE", "INT8", "UINT8", "INT32", "UINT32", "INT64", "UINT64", "BOOL")
)
OLDEST = 7  # opset that ONNX Runtime still reads
CASES = 3  # of ONNX's tests that are asked for an operator
AT_ONCE = 200  # models in one process, which a crash would end


class Question(NamedTuple):
    """A model of one node, which asks for one element type of one type constraint."""

    operator: str
    version: int
    constraint: str
    element: int
    content: bytes


def questions() -> Iterator[Question]:
    """Make the models: for each operator and version, every element type of a constraint beside the case's others."""
    cases: dict[str, list[onnx.ModelProto]] = defaultdict(list)
    for case in collect_testcases(None):
        if case.model and len(case.model.graph.node) == 1 and not case.model.graph.node[0].domain:
            cases[case.model.graph.node[0].op_type].append(case.model)
    newest = max(entry.version for models in cases.values() for entry in models[0].opset_import)
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain or schema.deprecated or schema.name not in cases:
            continue
        for model in cases[schema.name][:CASES]:
            for constraint in schema.type_constraints:
                for element in TYPES:
                    if _written(element) in constraint.allowed_type_strs and schema.since_version <= newest:
                        content = _with_type(model, schema, constraint.type_param_str, element)
                        yield Question(schema.name, schema.since_version, constraint.type_param_str, element, content)


def _written(element: int) -> str:
    return f"tensor({TensorProto.DataType.Name(element).lower()})"


def _with_type(model: onnx.ModelProto, schema: OpSchema, constraint: str, element: int) -> bytes:
    """Return a case in another version of its operator, one constraint of whose is of another element type."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.opset_import[:]
    changed.opset_import.append(helper.make_opsetid("", max(schema.since_version, OLDEST)))
    changed.ir_version = 10
    [node] = changed.graph.node
    node.name = "asked"
    del node.input[schema.max_input :]  # what older versions lack
    known = [attribute for attribute in node.attribute if attribute.name in schema.attributes]
    del node.attribute[:]
    node.attribute.extend(known)
    for value in [value for value in changed.graph.input if value.name not in node.input]:
        changed.graph.input.remove(value)
    for index, (name, formal) in enumerate(zip(node.input, schema.inputs, strict=False)):
        if not name and formal.option == OpSchema.FormalParameterOption.Single:  # what newer versions can leave out
            node.input[index] = f"filled{index}"
            changed.graph.input.append(helper.make_tensor_value_info(node.input[index], TensorProto.FLOAT, None))
    for value in changed.graph.output:
        value.type.tensor_type.ClearField("shape")  # it may be another without them
    typed = set()
    for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for index, name in enumerate(names):
            if formals and formals[min(index, len(formals) - 1)].type_str == constraint:
                typed.add(name)
    for value in (*changed.graph.input, *changed.graph.output):
        if value.name in typed:
            value.type.tensor_type.elem_type = element
            for attribute in node.attribute:
                if attribute.name == "to" and value.name in node.output:
                    attribute.i = element
    return changed.SerializeToString()


def asked(runtime: OnWebGpu, models: Sequence[bytes]) -> Iterator[bool]:
    """Yield for each model of one node whether WebGPU runs it; False also where it does not load."""
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, len(models), AT_ONCE):
            files = []
            for index, content in enumerate(models[start : start + AT_ONCE]):
                files.append(Path(folder) / f"{index}.onnx")
                files[-1].write_bytes(content)
            yield from map(_on_gpu, _answers(runtime, files))


def _answers(runtime: OnWebGpu, files: Sequence[Path]) -> Iterable[dict[str, str] | str]:
    """Ask for all files at once, or for one after the other where one of them crashes the runtime."""
    try:
        return runtime.placements(files)
    except CalledProcessError as crash:
        return [f"{crash}"] if len(files) == 1 else [next(iter(_answers(runtime, [file]))) for file in files]


def _on_gpu(answer: dict[str, str] | str) -> bool:
    return not isinstance(answer, str) and answer.get("asked") == WEBGPU


def write_kernels(path: Path, runtime: OnWebGpu) -> int:
    """Write the table of WebGPU's kernels, and return the number of operators."""
    everything = list(questions())
    answers = list(asked(runtime, [question.content for question in everything]))
    elements: dict[tuple[str, int], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for question, served in zip(everything, answers, strict=True):
        if served:
            element = TensorProto.DataType.Name(question.element).lower()
            elements[question.operator, question.version][question.constraint].add(element)
    rows: dict[str, list[list]] = defaultdict(list)
    for (operator, version), types in sorted(elements.items()):
        rows[operator].append([version, version, {name: sorted(types[name]) for name in sorted(types)}])
    source = f"what a session of {runtime.packages[0]} {runtime.version} answers"
    return write_table(path, runtime.version, kernels().cpu, {"source": source, "operators": None}, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table of kernels."""
    parser = cli.stage("benchmarks.tools.webgpu", "Keep the table of WebGPU's kernels.")
    parser.add_argument("--runtimes", type=cli.path_or_none, metavar="DIR", help="folder of runtimes, with WebGPU")
    parser.add_argument("--kernels", type=cli.path_or_none, help="table to write")
    options = parser.parse_args(arguments)
    with asked_for(options.runtimes):
        runtime = by_name("webgpu")
        assert isinstance(runtime, OnWebGpu)
        cli.say(f"{options.kernels}: {write_kernels(options.kernels, runtime)} operators")


if __name__ == "__main__":
    sys.exit(cli.run(main))
