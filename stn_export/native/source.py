"""Assemble a captured program as C11 source with its header."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np
from torch._ops import OpOverload
from torch.fx import Node

from stn_export.errors import UserError, require_choice
from stn_export.native.build import HERE, TARGETS, flags_of
from stn_export.native.graph import name_of, one_example, refusal
from stn_export.native.operators import OPERATORS, VIEWS
from stn_export.native.writer import FloatLayer, Int8Layer, Plan, Step, Value, Writer, planned, scalar
from stn_export.program.capture import operand, outputs_of
from stn_export.program.program import Program
from stn_export.program.specs import TensorSpec
from stn_export.run.store import fingerprint

ABI = 2
FOLDER = Path(__file__).parent
INSIDE = 1 << 18  # most weights that are written into the source; more go to a .bin beside it
ON_STACK = 1 << 20  # most bytes of memory that are taken from the caller's stack
LINE = 10  # per line
TYPES = {"float32": "float", "uint8": "uint8_t", "int64": "int64_t", "int32": "int32_t", "bool": "uint8_t"}
TAKEN = (
    "n", "i", "memory", "bytes", "part", "parts", "meeting", "own", "divided", "end", "count", "all_memory", "network",
    "int", "char", "float", "double", "long", "short", "const", "default",
)  # fmt: skip
BINARY = """\
// The weights; give the path with -DWEIGHTS='"..."' where the compiler does not run beside it.
#ifndef WEIGHTS
#define WEIGHTS "{name}.bin"
#endif
#ifdef __APPLE__
#define WEIGHTS_SECTION ".section __TEXT,__const"
#else
#define WEIGHTS_SECTION ".section .rodata"
#endif
extern const float {name}_weights[] __asm__("{name}_weights") __attribute__((visibility("hidden")));
__asm__(WEIGHTS_SECTION "\\n.balign 64\\n{name}_weights:\\n.incbin \\"" WEIGHTS "\\"\\n.text\\n");
"""


@dataclass(frozen=True)
class Source:
    """The content of ``name``.c, ``name``.h and, for many weights, ``name``.bin."""

    name: str
    c: str
    h: str
    weights: bytes

    def write(self, path: Path) -> None:
        """Write the .c to a path, the other files beside it with the same stem."""
        path.write_text(self.c.replace(f'"{self.name}.', f'"{path.stem}.'), encoding="utf-8")
        path.with_suffix(".h").write_text(self.h, encoding="utf-8")
        if self.weights:
            path.with_suffix(".bin").write_bytes(self.weights)


def write_source(
    program: Program, name: str, target: str = HERE, comment: str = "", int8: Sequence[Int8Layer | FloatLayer] = ()
) -> Source:
    """Generate the C source of a program.

    Args:
        program: captured with a dynamic batch.
        name: of files and functions.
        target: one of ``TARGETS``.
        comment: a line on what it was generated from.
        int8: the layers of the program's int8 file, if it is to compute as that does.

    Raises:
        UserError: where an operator is not supported, or examples of a batch depend on each other; it names the
            operator and its line of the module.
    """
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise UserError(f"{name!r} is no name in C", "use letters, digits and underscores")
    require_choice("target", target, tuple(TARGETS))
    w, arrays = _written(program, int8)
    return _assembled(name, w, arrays, {"target": target, "flags": " ".join(flags_of(target)), "said": comment})


@cache
def generator() -> str:
    """Return a digest of all that writes C: files of another generator may have other functions."""
    return fingerprint(path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.is_file())[:16]


def multiply_adds_saved(program: Program) -> int:
    """Count the multiply-adds of one example that the C code saves over those stated by the network.

    Raises:
        UserError: where the network cannot be written as C.
    """
    return _written(program)[0].multiply_adds_saved


def _written(program: Program, int8: Sequence[Int8Layer | FloatLayer] = ()) -> "tuple[Writer, list[_Array]]":
    """Write every operator of a program, and list its inputs and outputs."""
    contract, w = program.contract, Writer(one_example(program), int8=list(int8))
    nodes, result = w.example.nodes[:-1], w.example.nodes[-1]
    placeholders = [node for node in nodes if node.op == "placeholder"]
    arrays = [_read(w, node, spec) for node, spec in zip(placeholders, contract.inputs, strict=True)]
    for node in nodes:
        if node.op == "call_function" and node in w.example.shapes and node not in w.example.constants:
            _operate(w, node)
    arrays += [_give(w, w.value(node), spec) for node, spec in zip(outputs_of(result), contract.outputs, strict=True)]
    if stray := [layer.name for layer in w.int8 if isinstance(layer, Int8Layer)]:
        raise UserError(f"{stray[0]} of the int8 file is no layer of the program", "use native-fp32")
    return w, arrays


def _operate(w: Writer, node: Node) -> None:
    if node in w.absorbed:
        return
    if name_of(node) not in OPERATORS:
        raise refusal(node, "is not among the operators that are written in C")
    if isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
        changed = operand(node)
        if len(changed.users) > 1 or changed.op == "placeholder" or name_of(changed) in VIEWS:
            raise refusal(node, "changes what others may read")
    OPERATORS[name_of(node)](w, node)


@dataclass(frozen=True)
class _Array:
    """An input or output in C; ``inside`` is its name in ``network``, where kernel names are taken."""

    spec: TensorSpec
    kind: str
    word: str
    inside: str
    count: int

    def at(self, index: str, pointer: str) -> str:
        """Return the C expression for its part of an example, behind a pointer to that of the first."""
        return f"{pointer} + {index} * {self.count}" if self.spec.batched else pointer


def _array(spec: TensorSpec, side: str, count: int) -> _Array:
    if spec.dtype not in TYPES:
        raise UserError(f"{spec.name} is {spec.dtype}, which is not written in C", f"use one of {', '.join(TYPES)}")
    word = re.sub(r"\W", "_", spec.name, flags=re.ASCII)
    word = f"{word}_" if word in TAKEN or word[0].isdigit() else word
    return _Array(spec, ("const " if side == "in" else "") + TYPES[spec.dtype], word, f"{side}_{word}", count)


def _read(w: Writer, node: Node, spec: TensorSpec) -> _Array:
    """Write the copy of an input to a buffer that vectors may read beyond its end."""
    x = w.new(node)
    array = _array(spec, "in", x.count)
    line = f"for (int i = 0; i < {x.count}; i++) {x.text}[i] = (float){array.inside}[i];"
    w.step(f"{spec.name}, {spec.text}", [line], [x])
    return array


def _give(w: Writer, value: Value, spec: TensorSpec) -> _Array:
    array = _array(spec, "out", value.count)
    line = f"for (int i = 0; i < {value.count}; i++) {array.inside}[i] = ({array.kind})({value.text})[i];"
    w.step(f"{spec.name}, {spec.text}", [line], [value])
    return array


def _assembled(name: str, w: Writer, arrays: Sequence[_Array], facts: dict[str, str]) -> Source:
    """Fill the templates of all files."""
    plan = planned(w.steps, {root: value.count for root, value in w.buffers.items()})
    count = sum(data.size for data in w.constants.values())
    binary, weights = _binary(name, w.constants) if count > INSIDE else (b"", _tables(w.constants))
    functions = "\n".join(w.functions.values())
    steps = "\n".join(line for run in plan.runs for line in _run(w, plan, run, arrays))
    inputs = [array for array in arrays if array.kind.startswith("const")]
    outputs, block = arrays[len(inputs) :], 4 * -(-plan.size // 16) * 16
    memory = block + 128
    declared, passed = ([f"{a.kind} *{a.word}" for a in arrays], [a.word for a in arrays])
    declared.insert(len(inputs), "size_t n")
    passed.insert(len(inputs), "n")
    small, upper = memory <= ON_STACK, name.upper()
    run = f"float memory[{upper}_MEMORY / sizeof(float)];\n    return {name}_run_in({', '.join(passed)}, memory, sizeof memory);"  # noqa: E501
    fields = facts | {
        "name": name,
        "upper": upper,
        "abi": ABI,
        "memory": memory,
        "inputs": ", ".join(f"{array.word} {array.spec.text}" for array in inputs),
        "outputs": ", ".join(f"{array.word} {array.spec.text}" for array in outputs),
        "sizes": "\n".join(f"    {upper}_{a.word.upper()} = {a.count},  // numbers of an example" for a in arrays),
        "arguments": ", ".join(declared),
        "passed": ", ".join(passed),
        "firsts": ", ".join(f"{a.kind} *first_{a.word}" for a in arrays),
        "moved": ", ".join(a.at("i", a.word) for a in arrays),
        "multiply_adds": sum(step.multiply_adds for step in w.steps),
        "group": plan.group,
        "block": block // 4,
        "missing": " || ".join(f"{array.word} == NULL" for array in arrays),
        "stack": f"Takes {upper}_MEMORY bytes of the stack."
        if small
        else f"Too large for a stack: call {name}_run_in.",
        "run": run
        if small
        else f"{', '.join(f'(void){parameter}' for parameter in passed)};\n    return {upper}_NO_MEMORY;",
        "version": hashlib.sha256((weights + functions + steps).encode() + binary).hexdigest()[:16],
        "kernels": _kernels(functions + steps),
        "weights": weights,
        "functions": functions,
        "steps": steps,
    }
    code, header = (
        (FOLDER / file).read_text(encoding="utf-8").format(**fields) for file in ("template.c", "template.h")
    )
    return Source(name, code, header, binary)


def _run(w: Writer, plan: Plan, run: Sequence[int], arrays: "Sequence[_Array]") -> list[str]:
    """Write a run of steps: for one example after the other, or a joint step for all at once."""
    steps = [w.steps[index] for index in run]
    lines = list(_in_turn(run, steps, plan))
    roots = [root for root in w.buffers if any(root in step.touched for step in steps)]
    heads = []
    for root in roots:
        example = f" + e * {plan.pitches[root]}" if root in plan.pitches and not steps[0].joint else ""
        shape = "×".join(map(str, w.buffers[root].shape))
        heads.append(f"float *const {root} = memory + {plan.places[root]}{example};  // {shape}")
    if steps[0].joint:
        heads += [f"const int pitch_{root} = {plan.pitches.get(root, 0)};" for root in roots]
    text = "\n".join(lines)
    heads += [
        f"{a.kind} *const {a.inside} = {a.at('e', f'first_{a.word}')};"
        for a in arrays
        if re.search(rf"\b{a.inside}\b", text)
    ]
    opening = "{" if steps[0].joint else "for (int e = 0; e < count; e++) {"
    return [f"    {opening}", *(f"        {line}" for line in [*heads, *lines]), "    }"]


def _in_turn(run: Sequence[int], steps: Sequence[Step], plan: Plan) -> Iterator[str]:
    """Write steps; what is not shared is done by the first thread, and threads meet before others read it."""
    for shared, group in groupby(zip(run, steps, strict=True), lambda pair: pair[1].shared):
        lines = []
        for index, step in group:
            place = plan.places.get(f"scratch{index}")
            lines += [f"// {step.comment}", f"STEP({index})"]
            lines += [re.sub(r"\bscratch\b", f"own + {place}", line) for line in step.lines]
            lines += ["meet(meeting, parts);"] * shared
        yield from (
            lines if shared else ["if (part == 0) {", *(f"    {line}" for line in lines), "}", "meet(meeting, parts);"]
        )


def _tables(constants: dict[str, np.ndarray]) -> str:
    """Format constants as C arrays."""
    parts = []
    for name, data in constants.items():
        whole = data.dtype == np.int32
        kind, texts = "int32_t" if whole else "float", [str(n) if whole else scalar(n) for n in data]
        rows = (", ".join(texts[at : at + LINE]) for at in range(0, len(texts), LINE))
        parts.append(f"static const {kind} {name}[{len(texts)}] ALIGNED = {{\n    " + ",\n    ".join(rows) + "};\n")
    return "\n".join(parts)


def _binary(name: str, constants: dict[str, np.ndarray]) -> tuple[bytes, str]:
    """Return constants as the content of a file, and the C definitions of where each begins."""
    chunks, lines, begin = [], [BINARY.format(name=name)], 0
    for word, data in constants.items():
        whole = data.dtype == np.int32
        place = f"({name}_weights + {begin})"
        lines.append(f"#define {word} {f'((const word *){place})' if whole else place}")
        chunks.append(np.pad(data, (0, -len(data) % 16)).astype("<i4" if whole else "<f4").tobytes())
        begin += len(chunks[-1]) // 4
    return b"".join(chunks), "\n".join(lines) + "\n"


def _kernels(text: str) -> str:
    """Return the parts of ``kernels.c`` that the text calls, in their order."""
    files = ("kernels.c", "int8.c") if re.search(r"const bytes b = |\brows_of_bytes\(", text) else ("kernels.c",)
    chunks = [chunk for file in files for chunk in (FOLDER / file).read_text(encoding="utf-8").strip().split("\n\n")]
    names = [re.search(r"^(?:INLINE .*?|APART )(\w+)\(", chunk, re.MULTILINE) for chunk in chunks]
    named = [(name and rf"\b{name[1]}\(", chunk) for name, chunk in zip(names, chunks, strict=True)]
    needed: list[str] = []
    while True:
        used = text + "".join(needed)
        more = [chunk for name, chunk in named if name is None or re.search(name, used)]
        if len(more) == len(needed):
            return "\n\n".join(more) + "\n"
        needed = more
