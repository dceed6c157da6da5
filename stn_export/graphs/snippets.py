"""Ten lines that call a file from Python, C++, Rust or JavaScript: its own names, sizes, normalisation; zeros for data.

``LANGUAGES`` has a writer a language for ONNX files, ``PYTHON`` one a format for the others that Python loads.
"""

import keyword
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from stn_export.cli.tables import UNSEEN, visible
from stn_export.errors import UserError
from stn_export.graphs.records import Described

MOST = 8  # outputs that a snippet names
PLACE = "the data goes here"
WORDS = """np ort torch session outputs results memory env main std values module i b shape data let const print auto
bool break case catch char class default delete do double enum export extern fn float fun goto int impl inputs interface
long loop match mod move mut new null operator private protected pub public ref self short signed sizeof static struct
super switch template this throw trait true false type typedef typeof union unsafe unsigned use using var virtual void
volatile where register friend inline namespace"""
TAKEN = {*keyword.kwlist, *WORDS.split()}  # words of the four languages, and what the snippets call other things
CPP = {"float32": "float", "float64": "double", "float16": "Ort::Float16_t", "bfloat16": "Ort::BFloat16_t"}
CPP["bool"] = "bool"
CPP |= {f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)}
RUST = {"float32": "f32", "float64": "f64", "bool": "bool"}
RUST |= {f"{sign}int{bits}": f"{sign or 'i'}{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
JS = {"float32": "Float32Array", "float64": "Float64Array", "float16": "Uint16Array", "bool": "Uint8Array"}
JS |= {"int64": "BigInt64Array", "uint64": "BigUint64Array"}
JS |= {f"{sign}int{bits}": f"{'Ui' if sign else 'I'}nt{bits}Array" for sign in ("", "u") for bits in (8, 16, 32)}
PY = {name: f"np.{name}" for name in (*CPP, "float16") if name != "bfloat16"} | {"bool": "np.bool_", "string": "object"}
TYPES = {"python": PY, "c++": CPP, "rust": RUST, "js": JS}  # by language, how it writes those that its runtime takes


@dataclass(frozen=True)
class Call:
    """What a snippet is written of: the file as it is opened, what goes in and comes out, and the sizes that go in."""

    file: str
    inputs: tuple[Described, ...]
    outputs: tuple[Described, ...]
    sizes: Mapping[str, tuple[int, ...]]

    @cached_property
    def variables(self) -> dict[str, str]:
        """An identifier of all four languages for every name, none of them twice."""
        found, taken = {}, set(TAKEN)
        for each in (*self.inputs, *self.outputs):
            word = re.sub(r"\W", "_", each.name, flags=re.ASCII).strip("_")
            word = f"x{word}" if not word or word[0].isdigit() else word
            while not taken.isdisjoint(_names(word)):
                word += "_"
            found[each.name] = word
            taken |= _names(word)
        return found

    @property
    def given(self) -> tuple[Described, ...]:
        """The outputs that are named: the first ones, where there are many."""
        return self.outputs[:MOST]

    def count(self, each: Described) -> int:
        """How many numbers an input is."""
        return math.prod(self.sizes[each.name])

    def comment(self, each: Described) -> str:
        """What belongs into an input, in words that end no comment and go on in no other line."""
        what = "bytes of pictures" if each.mean else PLACE
        shape = "" if each.shape is None else f": {each.sizes}"
        return re.sub(r"[^\w×?:,. -]", "_", f"{what}{shape}")


def _names(word: str) -> set[str]:
    """An identifier, and those that are made of it."""
    return {word, *(f"{word}_{part}" for part in ("bytes", "mean", "std", "shape", "count"))}


def snippet(language: str, call: Call, kind: str = "onnx") -> str:
    """Write the lines that call a file.

    Args:
        language: one of ``LANGUAGES``; only Python for files that are no ONNX.
        call: what is called.
        kind: the file's format.

    Raises:
        UserError: for an input that is no tensor, or of a type that the language's runtime does not take.
    """
    for each in call.inputs:
        if each.dtype not in TYPES[language]:
            others = ", ".join(name for name, types in TYPES.items() if each.dtype in types)
            told = f"no {language} can be written for input {visible(each.name)}: its type is {visible(each.dtype)}"
            raise UserError(told, f"try --snippet {others}" if others else "call it by hand")
    lines = (PYTHON[kind] if kind in PYTHON else LANGUAGES[language])(call)
    return "\n".join(lines) + "\n"


def quoted(text: str, unicode: str = "\\u{:04x}") -> str:
    """Write text as a string literal; what is not seen, or acts on what surrounds it, is spelt out."""

    def spelt(found: re.Match[str]) -> str:
        code = ord(found.group())
        return f"\\x{code:02x}" if code < 0x80 else unicode.format(code)

    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{UNSEEN.sub(spelt, escaped)}"'


def _braced(text: str) -> str:
    """The same where code points stand in braces: Rust and JavaScript."""
    return quoted(text, "\\u{{{:x}}}")


def _cpp_text(text: str) -> str:
    """The same where a hexadecimal escape would swallow the digits behind it."""
    return re.sub(r"\\x([0-7][0-9a-f])", lambda found: f"\\{int(found[1], 16):03o}", quoted(text, "\\U{:08x}"))


def _tuple(sizes: Sequence[int]) -> str:
    return f"({', '.join(map(str, sizes))}{',' * (len(sizes) == 1)})"


def _python_inputs(call: Call) -> Iterator[str]:
    for each in call.inputs:
        name, sizes = call.variables[each.name], _tuple(call.sizes[each.name])
        if each.mean:
            yield f"{name} = np.zeros({sizes}, np.uint8)  # {call.comment(each)}"
            mean, std = (f"np.float32({list(values)}).reshape(-1, 1, 1)" for values in (each.mean, each.std))
            yield f"{name} = ({name}.astype(np.float32) / 255 - {mean}) / {std}"
        else:
            made = f'np.full({sizes}, "", object)' if each.dtype == "string" else f"np.zeros({sizes}, {PY[each.dtype]})"
            yield f"{name} = {made}  # {call.comment(each)}"


def _python_prints(call: Call) -> Iterator[str]:
    for each in call.given:
        name = call.variables[each.name]
        shown = f"{name}.shape, {name}.dtype" if each.is_tensor else f"type({name})"
        yield f"print({quoted(each.name)}, {shown})"


def _unpacked(call: Call) -> str:
    return f"[{', '.join(call.variables[each.name] for each in call.given)}]"


def python(call: Call) -> Iterator[str]:
    """ONNX Runtime's Python package."""
    yield from ("import numpy as np", "import onnxruntime as ort", "")
    yield f'session = ort.InferenceSession({quoted(call.file)}, providers=["CPUExecutionProvider"])'
    yield from _python_inputs(call)
    names = ", ".join(quoted(each.name) for each in call.given)
    feeds = ", ".join(f"{quoted(each.name)}: {call.variables[each.name]}" for each in call.inputs)
    yield f"{_unpacked(call)} = session.run([{names}], {{{feeds}}})"
    yield from _python_prints(call)


def _torch(load: str) -> Callable[[Call], Iterator[str]]:
    """PyTorch, for a file that a module is loaded from by ``load``."""

    def write(call: Call) -> Iterator[str]:
        yield from ("import numpy as np", "import torch", "")
        yield f"module = {load.format(quoted(call.file))}"
        yield from _python_inputs(call)
        arguments = ", ".join(f"torch.from_numpy({call.variables[each.name]})" for each in call.inputs)
        yield from ("with torch.inference_mode():", f"    outputs = module({arguments})")
        yield "print(torch.utils._pytree.tree_map(lambda tensor: tensor.shape, outputs))"

    return write


def _index(each: Described, call: Call, values: Sequence[float], form: str = "i / {} % {}") -> str:
    """Which of the means or stds number ``i`` of a picture has."""
    sizes = call.sizes[each.name]
    return form.format(math.prod(sizes[2:]), sizes[1]) if len(values) > 1 else "0"


def cpp(call: Call) -> Iterator[str]:
    """ONNX Runtime's C++ header."""
    yield from ("#include <onnxruntime_cxx_api.h>", "#include <cstdint>", "#include <iostream>", "#include <memory>")
    yield from ("", "int main() {", "  Ort::Env env;")
    yield f"  Ort::Session session(env, ORT_TSTR({_cpp_text(call.file)}), Ort::SessionOptions{{}});"
    yield "  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);"
    yield "  std::vector<Ort::Value> values;"
    for each in call.inputs:
        yield from _cpp_input(each, call)
    for word, specs in (("inputs", call.inputs), ("outputs", call.given)):
        if specs:  # an array of none is no C++
            yield f"  const char* {word}[] = {{{', '.join(_cpp_text(each.name) for each in specs)}}};"
    counts = f"{'inputs' if call.inputs else 'nullptr'}, values.data(), {len(call.inputs)}, outputs, {len(call.given)}"
    yield f"  auto results = session.Run(Ort::RunOptions{{nullptr}}, {counts});"
    for index, each in enumerate(call.given):
        if each.dtype in CPP:
            name, result = call.variables[each.name], f"results[{index}]"
            yield f"  const {CPP[each.dtype]}* {name} = {result}.GetTensorData<{CPP[each.dtype]}>();"
            yield f"  auto {name}_count = {result}.GetTensorTypeAndShapeInfo().GetElementCount();"
            pointer = f"(const void*){name}"
            yield f'  std::cout << {_cpp_text(each.name)} << ": " << {name}_count << " from " << {pointer} << "\\n";'
    yield "}"


def _cpp_input(each: Described, call: Call) -> Iterator[str]:
    name, kind, count = call.variables[each.name], CPP[each.dtype], call.count(each)
    yield f"  auto {name} = std::make_unique<{kind}[]>({count});{'' if each.mean else f'  // {call.comment(each)}'}"
    if each.mean:
        yield f"  auto {name}_bytes = std::make_unique<uint8_t[]>({count});  // {call.comment(each)}"
        for word, values in (("mean", each.mean), ("std", each.std)):
            yield f"  const float {name}_{word}[] = {{{', '.join(f'{float(value)!r}f' for value in values)}}};"
        mean, std = (_index(each, call, values) for values in (each.mean, each.std))
        yield f"  for (size_t i = 0; i < {count}; ++i)"
        yield f"    {name}[i] = ({name}_bytes[i] / 255.0f - {name}_mean[{mean}]) / {name}_std[{std}];"
    sizes = call.sizes[each.name]
    yield f"  const int64_t {name}_shape[] = {{{', '.join(map(str, sizes or (0,)))}}};"
    arguments = f"memory, {name}.get(), {count}, {name}_shape, {len(sizes)}"
    yield f"  values.push_back(Ort::Value::CreateTensor<{kind}>({arguments}));"


def rust(call: Call) -> Iterator[str]:
    """The crate ``ort``."""
    yield '// Cargo.toml: ort = "=2.0.0-rc.12"'
    yield from ("use ort::{inputs, session::Session, value::Tensor};", "", "fn main() -> ort::Result<()> {")
    yield f"    let mut session = Session::builder()?.commit_from_file({_braced(call.file)})?;"
    for each in call.inputs:
        yield from _rust_input(each, call)
    feeds = ", ".join(f"{_braced(each.name)} => {call.variables[each.name]}" for each in call.inputs)
    yield f"    let outputs = session.run(inputs![{feeds}])?;"
    for each in call.given:
        if each.dtype in RUST:
            name = call.variables[each.name]
            kind = RUST[each.dtype]
            yield f"    let (shape, {name}) = outputs[{_braced(each.name)}].try_extract_tensor::<{kind}>()?;"
            yield f'    println!("{{}} {{:?}}: {{}}", {_braced(each.name)}, shape, {name}.len());'
    yield from ("    Ok(())", "}")


def _rust_input(each: Described, call: Call) -> Iterator[str]:
    name, kind, count = call.variables[each.name], RUST[each.dtype], call.count(each)
    shape = f"[{', '.join(f'{size}usize' for size in call.sizes[each.name]) or '0usize; 0'}]"
    if each.mean:
        mean, std = (_index(each, call, values) for values in (each.mean, each.std))
        for word, values in (("mean", each.mean), ("std", each.std)):
            yield f"    let {name}_{word} = [{', '.join(f'{float(value)!r}f32' for value in values)}];"
        yield f"    let {name}_bytes = vec![0u8; {count}]; // {call.comment(each)}"
        number = f"({name}_bytes[i] as f32 / 255.0 - {name}_mean[{mean}]) / {name}_std[{std}]"
        yield f"    let {name}: Vec<f32> = (0..{count}).map(|i| {number}).collect();"
        yield f"    let {name} = Tensor::from_array(({shape}, {name}))?;"
    else:
        zero = "false" if kind == "bool" else f"0{kind}"
        yield f"    let {name} = Tensor::from_array(({shape}, vec![{zero}; {count}]))?; // {call.comment(each)}"


def js(call: Call) -> Iterator[str]:
    """ONNX Runtime in Node.js or, with the other package, in a browser."""
    yield 'import * as ort from "onnxruntime-node"; // in a browser: onnxruntime-web'
    yield ""
    yield f"const session = await ort.InferenceSession.create({_braced(call.file)});"
    for each in call.inputs:
        yield from _js_input(each, call)
    feeds = ", ".join(f"{_braced(each.name)}: {call.variables[each.name]}" for each in call.inputs)
    yield f"const results = await session.run({{{feeds}}});"
    for each in call.given:
        yield f"console.log({_braced(each.name)}, results[{_braced(each.name)}].dims);"


def _js_input(each: Described, call: Call) -> Iterator[str]:
    name, count, data = call.variables[each.name], call.count(each), f"new {JS[each.dtype]}({call.count(each)})"
    if each.mean:
        mean, std = (_index(each, call, values, "Math.floor(i / {}) % {}") for values in (each.mean, each.std))
        yield f"const {name}_bytes = new Uint8Array({count}); // {call.comment(each)}"
        for word, values in (("mean", each.mean), ("std", each.std)):
            yield f"const {name}_{word} = [{', '.join(repr(float(value)) for value in values)}];"
        number = f"(b / 255 - {name}_mean[{mean}]) / {name}_std[{std}]"
        data = f"Float32Array.from({name}_bytes, (b, i) => {number})"
    sizes = ", ".join(map(str, call.sizes[each.name]))
    end = "" if each.mean else f" // {call.comment(each)}"
    yield f"const {name} = new ort.Tensor({_braced(each.dtype)}, {data}, [{sizes}]);{end}"


def c_program(header: str, file: str) -> str:
    """The C program that calls a network written as C once, on zeros, from what its header declares.

    Args:
        header: its text.
        file: its name.
    """
    declared = re.search(r"^int (\w+)_run\((.*)\);", header, re.MULTILINE)
    assert declared is not None  # the header is of this package
    name, arguments = declared[1], declared[2].split(", ")
    arrays = [match for each in arguments if (match := re.fullmatch(r"(?:const )?(\w+) \*(\w+)", each))]
    variables = [f"{each[2]}[{name.upper()}_{each[2].upper()}]" for each in arrays]
    passed = [each.rpartition(" ")[2].lstrip("*") for each in arguments]
    memory = f"static char memory[{name.upper()}_MEMORY];"
    last = arrays[-1][2]
    lines = [f'#include "{file}"', "#include <stdio.h>", "", "int main(void) {"]
    lines += [f"    static {each[1]} {variable};" for each, variable in zip(arrays, variables, strict=True)]
    call = ", ".join("1" if each == "n" else each for each in passed)
    lines += [f"    {memory}", f"    const int code = {name}_run_in({call}, memory, sizeof memory);"]
    lines += [f'    printf("{last}[0] = %g\\n", (double){last}[0]);', "    return code;", "}"]
    return "\n".join(lines) + "\n"


LANGUAGES: dict[str, Callable[[Call], Iterator[str]]] = {"python": python, "c++": cpp, "rust": rust, "js": js}
PYTHON: dict[str, Callable[[Call], Iterator[str]]] = {
    "torchscript": _torch("torch.jit.load({})"),
    "pt2": _torch("torch.export.load({}).module()"),
    "aotinductor": _torch("torch._inductor.aoti_load_package({})"),
}
