"""Write how a run's files are called: a snippet per format and kind of input, in four languages for ONNX."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stn_export.errors import UserError
from stn_export.onnx_graph.records import Described
from stn_export.onnx_graph.snippets import LANGUAGES, PYTHON, Call, c_program, snippet
from stn_export.program.specs import BATCH, TensorSpec, whole
from stn_export.run.manifest import CHECKPOINT, DEFAULT_EXPORT, Artifact, NetworkDirectory

PYTHON_ONLY = ("python",)
FENCES = {"c++": "cpp", "js": "js"}  # where Markdown's name of a language differs


@dataclass(frozen=True)
class HowToCall:
    """A snippet: the file that it calls, seen from the run, other files called alike, language, text."""

    file: str
    others: tuple[str, ...]
    language: str
    text: str

    @property
    def title(self) -> str:
        """The heading of the snippet."""
        more = f"; {', '.join(self.others)} likewise" if self.others else ""
        return f"{self.file}, in {self.language.capitalize() if self.language != 'js' else 'JavaScript'}{more}"

    @property
    def fence(self) -> str:
        """Its language as Markdown's code fences name it."""
        return FENCES.get(self.language, self.language)


def calls_of(directories: Iterable[NetworkDirectory]) -> Iterator[HowToCall]:
    """Yield a snippet for each group of a run's files of one format and with the same inputs.

    The first ONNX file is called in every language, others in Python: ``audit --snippet`` writes the rest.
    """
    languages = list(LANGUAGES)
    for directory in directories:
        groups: dict[tuple, list[Artifact]] = {}
        for artifact in sorted(directory.artifacts.values(), key=lambda artifact: artifact.lowering == DEFAULT_EXPORT):
            if artifact.name != CHECKPOINT:
                groups.setdefault((artifact.format, artifact.contract.inputs), []).append(artifact)
        for artifacts in groups.values():
            yield from _calls(directory, artifacts, languages)
            if artifacts[0].format == "onnx":
                languages = list(PYTHON_ONLY)


def call_of(directory: NetworkDirectory, artifact: Artifact) -> HowToCall | None:
    """Return how one file is called, in Python where that can; None for a file that no snippet calls."""
    return next(_calls(directory, [artifact], list(PYTHON_ONLY)), None)


def _calls(directory: NetworkDirectory, artifacts: list[Artifact], languages: list[str]) -> Iterator[HowToCall]:
    first, *others = artifacts
    file, more = f"{directory.name}/{first.file}", tuple(artifact.file for artifact in others)
    if first.format == "native":
        header = Path(first.file).with_suffix(".h").name
        if (directory.path / header).is_file():
            text = c_program((directory.path / header).read_text(encoding="utf-8"), header)
            yield HowToCall(file, more, "c", text)
        return
    if first.format != "onnx":
        languages = list(PYTHON_ONLY) if first.format in PYTHON else []
    inputs, outputs = (tuple(map(described, specs)) for specs in (first.contract.inputs, first.contract.outputs))
    call = Call(file, inputs, outputs, _sizes(directory, first))
    for language in languages:
        try:
            yield HowToCall(file, more, language, snippet(language, call, first.format))
        except UserError:  # a type that this language's runtime does not support
            continue


def described(spec: TensorSpec) -> Described:
    """Return an input or output of a run in the form of a file's declarations."""
    pixels = spec.pixels if spec.dtype == "float32" else None
    figures = (pixels.mean, pixels.std) if pixels else ((), ())
    return Described(spec.name, spec.dtype, spec.shape, *figures)


def _sizes(directory: NetworkDirectory, artifact: Artifact) -> dict[str, tuple[int, ...]]:
    """Return the shape of each input: batch 1 unless static, other dynamic sizes as in the run's examples."""
    contract = artifact.contract
    if contract.open_sizes:
        batch = directory.examples().take(contract.batch or 1)
        return {name: array.shape for name, array in contract.arrays(batch).items()}
    return {spec.name: whole(spec.fixed({BATCH: 1}).shape) for spec in contract.inputs}
