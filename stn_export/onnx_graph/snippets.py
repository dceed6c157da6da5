"""Write a short program that calls a file from Python, C++, Rust or JavaScript, on zeros, with its names and sizes.

``LANGUAGES`` has one template per language for ONNX files, ``PYTHON`` says how Python loads files of other formats.
"""

import keyword
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from stn_export.cli.tables import UNSEEN, visible
from stn_export.errors import UserError
from stn_export.onnx_graph.records import Described

MOST = 8  # most outputs that a snippet names
PLACE = "the data goes here"
WORDS = """np ort torch session outputs results memory env main std values module i b shape data let const print auto
bool break case catch char class default delete do double enum export extern fn float fun goto int impl inputs interface
long loop match mod move mut new null operator private protected pub public ref self short signed sizeof static struct
super switch template this throw trait true false type typedef typeof union unsafe unsigned use using var virtual void
volatile where register friend inline namespace"""
TAKEN = {*keyword.kwlist, *WORDS.split()}  # keywords of the four languages, and names that the snippets use
CPP = {"float32": "float", "float64": "double", "float16": "Ort::Float16_t", "bfloat16": "Ort::BFloat16_t"}
CPP["bool"] = "bool"
CPP |= {f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)}
RUST = {"float32": "f32", "float64": "f64", "bool": "bool"}
RUST |= {f"{sign}int{bits}": f"{sign or 'i'}{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
JS = {"float32": "Float32Array", "float64": "Float64Array", "float16": "Uint16Array", "bool": "Uint8Array"}
JS |= {"int64": "BigInt64Array", "uint64": "BigUint64Array"}
JS |= {f"{sign}int{bits}": f"{'Ui' if sign else 'I'}nt{bits}Array" for sign in ("", "u") for bits in (8, 16, 32)}
PY = {name: f"np.{name}" for name in (*CPP, "float16") if name != "bfloat16"} | {"bool": "np.bool_", "string": "object"}
TYPES = {"python": PY, "c++": CPP, "rust": RUST, "js": JS}  # by language, its names of types that its runtime supports


@dataclass(frozen=True)
class Call:
    """The facts for a snippet: the path of the file, inputs, outputs, and the shapes of the inputs."""

    file: str
    inputs: tuple[Described, ...]
    outputs: tuple[Described, ...]
    sizes: Mapping[str, tuple[int, ...]]

    @cached_property
    def variables(self) -> dict[str, str]:
        """An identifier for every name, valid in all four languages and unique."""
        variables, taken = {}, set(TAKEN)
        for spec in (*self.inputs, *self.outputs):
            word = re.sub(r"\W", "_", spec.name, flags=re.ASCII).strip("_")
            word = f"x{word}" if not word or word[0].isdigit() else word
            while not taken.isdisjoint(_names(word)):
                word += "_"
            variables[spec.name] = word
            taken |= _names(word)
        return variables

    def named(self, specs: Sequence[Described], language: str) -> list["Named"]:
        """Return inputs or outputs in the form of that language's template."""
        return [Named(spec, self.variables[spec.name], self.sizes.get(spec.name, ()), language) for spec in specs]


def _names(word: str) -> set[str]:
    """Return an identifier, and those that templates derive from it."""
    return {word, *(f"{word}_{part}" for part in ("bytes", "mean", "std", "shape", "count"))}


class Named:
    """An input or output in a language: identifier, name as a string literal, type, sizes, normalisation."""

    def __init__(self, spec: Described, name: str, sizes: tuple[int, ...], language: str) -> None:
        self.name, self.text, self.sizes = name, QUOTES[language](spec.name), sizes
        self.dtype, self.type, self.is_tensor = spec.dtype, TYPES[language].get(spec.dtype, ""), spec.is_tensor
        self.mean, self.std = spec.mean, spec.std
        self.count, self.plane = math.prod(sizes), math.prod(sizes[2:])
        what = "bytes of pictures" if spec.mean else PLACE
        shape = "" if spec.shape is None else f": {spec.sizes}"
        self.comment = re.sub(r"[^\w×?:,. -]", "_", f"{what}{shape}")  # cannot end a comment or start a new line


def snippet(language: str, call: Call, kind: str = "onnx") -> str:
    """Write the program that calls a file.

    Args:
        language: one of ``LANGUAGES``; only Python for files other than ONNX.
        call: the file, its inputs and outputs.
        kind: the file's format.

    Raises:
        UserError: for an input that is no tensor, or of a type that the language's runtime does not support.
    """
    for spec in call.inputs:
        if spec.dtype not in TYPES[language]:
            others = ", ".join(name for name, types in TYPES.items() if spec.dtype in types)
            reason = f"no {language} can be written for input {visible(spec.name)}: its type is {visible(spec.dtype)}"
            raise UserError(reason, f"try --snippet {others}" if others else "call it by hand")
    return _filled(
        "call_torch.py.j2" if kind in PYTHON else LANGUAGES[language],
        quoted=QUOTES[language],
        file=PYTHON.get(kind, "{}").format(QUOTES[language](call.file)),
        inputs=call.named(call.inputs, language),
        outputs=call.named(call.outputs[:MOST], language),
    )


def _filled(template: str, quoted: Callable[[str], str] = str, **content: object) -> str:
    """Render a template of the resources; its variables stand in «», as the languages use braces themselves."""
    import jinja2  # slow to import, and few commands write snippets

    loader = jinja2.PackageLoader("stn_export", "resources")
    environment = jinja2.Environment(
        loader=loader,
        variable_start_string="«",
        variable_end_string="»",
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"floats": _floats, "quoted": quoted}
    return environment.get_template(template).render(content)


def _floats(values: Sequence[float], suffix: str = "") -> str:
    return ", ".join(f"{float(value)!r}{suffix}" for value in values)


def quoted(text: str, unicode: str = "\\u{:04x}") -> str:
    """Format text as a string literal, with invisible characters escaped."""

    def spelt(match: re.Match[str]) -> str:
        code = ord(match.group())
        return f"\\x{code:02x}" if code < 0x80 else unicode.format(code)

    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{UNSEEN.sub(spelt, escaped)}"'


def _braced(text: str) -> str:
    """Format text as a string literal of Rust or JavaScript, which write code points in braces."""
    return quoted(text, "\\u{{{:x}}}")


def _cpp_text(text: str) -> str:
    """Format text as a string literal of C++, where a hexadecimal escape would swallow the digits behind it."""
    return re.sub(r"\\x([0-7][0-9a-f])", lambda match: f"\\{int(match[1], 16):03o}", quoted(text, "\\U{:08x}"))


def c_program(header: str, file: str) -> str:
    """Write a C program that calls a network generated as C once, on zeros, from its header's declarations.

    Args:
        header: the text of the header.
        file: the name of the header.
    """
    declared = re.search(r"^int (\w+)_run\((.*)\);", header, re.MULTILINE)
    assert declared is not None  # the header was generated by this package
    name, arguments = declared[1], declared[2].split(", ")
    arrays = [match for argument in arguments if (match := re.fullmatch(r"(?:const )?(\w+) \*(\w+)", argument))]
    passed = [argument.rpartition(" ")[2].lstrip("*") for argument in arguments]
    calls = ["1" if argument == "n" else argument for argument in passed]
    return _filled("call.c.j2", file=file, name=name, arrays=[array.groups() for array in arrays], passed=calls)


LANGUAGES = {"python": "call.py.j2", "c++": "call.cpp.j2", "rust": "call.rs.j2", "js": "call.js.j2"}
QUOTES = {"python": quoted, "c++": _cpp_text, "rust": _braced, "js": _braced}
PYTHON = {
    "torchscript": "torch.jit.load({})",
    "pt2": "torch.export.load({}).module()",
    "aotinductor": "torch._inductor.aoti_load_package({})",
}
