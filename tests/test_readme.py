"""README and docs say what the kept files say; their commands are commands and their links lead somewhere."""

import json
import re
import shlex
from pathlib import Path

import pytest

from stn_export.cli.options import PARSERS
from tests import readme
from tests.readme import BLOCKS, PAGES, REPOSITORY, page

TEXTS = {
    path: path.read_text(encoding="utf-8")
    for path in (*PAGES, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "SECURITY.md")
}
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
OTHERS = ("cc", "ar", "./main", "python", "rustc", "pip", "iree-compile", "pnnx")
FENCES = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """The text of every block of code in that language."""
    return [text for content in TEXTS.values() for kind, text in FENCES.findall(content) if kind == language]


def commands() -> list[list[str]]:
    """Every command of README and docs, in words."""
    lines = [line for text in blocks("sh") for line in text.replace("\\\n", " ").splitlines()]
    parts = [part for line in lines for part in re.split(r"&&|;|\|", line.partition(" #")[0])]
    return [words for part in parts if (words := shlex.split(part)) and not words[0].startswith("#")]


def refused(words: list[str]) -> str:
    """What is wrong with a command, without running it."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[0] == "make":
        unknown = [
            word for word in words[1:] if "=" not in word and word not in TARGETS and not word.startswith("gain-")
        ]
        return f"no target {unknown}" if unknown else ""
    stage = next((place for place, word in enumerate(words) if word.startswith("stn_export.")), None)
    if words[0] == "stn-export":
        name, rest = words[1], words[2:]
    elif stage is not None:
        name, rest = words[stage].removeprefix("stn_export."), words[stage + 1 :]
    else:
        return "" if words[0] in OTHERS else f"{words[0]} is no command of ours"
    if name not in PARSERS:
        return "" if (REPOSITORY / "stn_export" / f"{name.replace('.', '/')}.py").exists() or name in EXTRA else name
    _, left = PARSERS[name]().parse_known_args(rest)
    return f"{name} does not take {left}" if left and name != "bench" else ""


EXTRA = ("all", "doctor", "--completion", "--help")


def test_every_figure_is_that_of_the_kept_files():
    for path in PAGES:
        assert page(TEXTS[path]) == TEXTS[path], f"{path.name} and benchmarks/results differ: 'make readme' writes it"


@pytest.mark.parametrize("name", BLOCKS)
def test_a_typed_figure_does_not_stay(name: str):
    [text] = [TEXTS[path] for path in PAGES if f"<!-- {name} -->" in TEXTS[path]]
    before, rest = text.split(f"<!-- {name} -->\n")
    inside, after = rest.split("<!-- end -->", 1)
    digit = next(place for place in range(len(inside) - 1, -1, -1) if inside[place].isdigit())
    wrong = inside[:digit] + str((int(inside[digit]) + 1) % 10) + inside[digit + 1 :]
    typed = f"{before}<!-- {name} -->\n{wrong}<!-- end -->{after}"
    assert typed != text == page(typed)


def test_every_command_is_one():
    found = commands()
    assert len(found) > 30
    wrong = {" ".join(words): said for words in found if (said := refused(words))}
    assert not wrong


@pytest.mark.parametrize(
    "line", ["make nothing", "stn-export verify --nonsense", "python -m stn_export.frobnicate", "ls"]
)
def test_a_command_that_is_none_is_found(line: str):
    assert refused(shlex.split(line))


def test_every_python_block_compiles():
    for text in blocks("python"):
        compile(text, "a page", "exec")


def test_every_link_leads_somewhere():
    for path, text in TEXTS.items():
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", FENCES.sub("", text)):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_readme_is_short():
    assert len(TEXTS[PAGES[0]].splitlines()) <= 120


def test_kept_files_of_no_clean_commit_are_named():
    files = list((REPOSITORY / readme.KEPT).glob("*.json"))
    unclean = {
        path.name
        for path in files
        if re.search(r'"git_commit": "(unknown|[0-9a-f]+-dirty)"', path.read_text(encoding="utf-8"))
    }
    said = (
        (REPOSITORY / readme.KEPT / "README.md")
        .read_text(encoding="utf-8")
        .partition("Made from a tree with changes")[2]
    )
    assert set(re.findall(r"`([\w-]+\.json)`", said)) == unclean


def test_figures_are_read_from_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / readme.KEPT).mkdir(parents=True)
    for path in (REPOSITORY / readme.KEPT).glob("*.json"):
        content = path.read_text(encoding="utf-8")
        if path.name == "training-tuned-cpu.json":
            run = json.loads(content)
            run["runs"][0]["models"]["stn"]["mean"] = 0.5
            content = json.dumps(run)
        (tmp_path / readme.KEPT / path.name).write_text(content, encoding="utf-8")
    monkeypatch.setattr(readme, "REPOSITORY", tmp_path)
    readme.kept.cache_clear()
    try:
        assert "`tuned` gives the very same network 50.00 % on CIFAR-10" in readme.tuned()[0]
    finally:
        readme.kept.cache_clear()


def test_what_is_said_in_round_numbers():
    runs = {run["dataset"]: run for run in readme.kept("training-gain-cpu.json")["runs"]}
    text = " ".join(TEXTS[PAGES[0]].split())
    assert f"it gains {runs['digits']['differences']['cnn']['mean']:.1f} points" in text
    assert "| the published run (a spatial transformer) | 57.29 % |" in readme.reference()[-2].replace("  ", " ")
