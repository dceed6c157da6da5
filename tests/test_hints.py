"""Hints name commands that are there: make's targets in a clone's folder, else ``stn-export`` and packages."""

import ast
import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from stn_export import errors
from stn_export.cli import COMMANDS, EXTRAS
from stn_export.cli.options import PARSERS
from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "stn_export"
SUITES = [path for path in (REPOSITORY / "benchmarks").glob("*.py") if "conftest" not in path.name]
TARGETS = re.findall(r"^([a-z-]+):.*## ", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
BY_MAKE = re.compile(rf"\bmake ({'|'.join(sorted(TARGETS, key=len, reverse=True))})\b")
MODULE = re.compile(r"python -m (stn_export(?:\.[a-z_]+)*)\b")
BEFORE_A_TARGET = re.compile(r"\bmake $")  # of an f-string
COMMAND = re.compile(r"\bstn-export ([a-z]{3,})\b")
HAS_MAKE = errors.has_make  # before the suite holds it to a clone's folder
NO_COMMAND = ("command",)  # of the usage line, and of prose


def strings(source: str) -> list[str]:
    """Every string of a module but those that are for a clone: the first argument of ``in_clone``."""
    tree = ast.parse(source)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    in_clone = [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "in_clone"]
    left_out = {id(node) for node in in_clone}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out
    ]


def texts() -> dict[str, list[str]]:
    modules = [path for path in [*PACKAGE.rglob("*.py"), *SUITES] if "__pycache__" not in path.parts]
    others = [*(PACKAGE / "resources").iterdir(), *(PACKAGE / "play" / "page").iterdir()]
    found = {str(path): strings(path.read_text(encoding="utf-8")) for path in modules}
    return found | {str(path): [path.read_text(encoding="utf-8")] for path in others if path.is_file()}


TEXTS = texts()


def test_nothing_that_a_wheel_holds_speaks_of_make():
    assert len(TEXTS) > 150
    assert {path: said for path, every in TEXTS.items() for text in every if (said := BY_MAKE.findall(text))} == {}
    deciding = [path for path, every in TEXTS.items() if any(map(BEFORE_A_TARGET.search, every))]
    assert deciding == [str(PACKAGE / "errors.py")]


def test_every_module_and_command_that_is_named_is_there():
    named = {name for every in TEXTS.values() for text in every for name in MODULE.findall(text)}
    assert {name for name in named if find_spec(name) is None} == set()
    assert named
    named = {name for every in TEXTS.values() for text in every for name in COMMAND.findall(text)}
    assert {name for name in named if name not in COMMANDS} - set(NO_COMMAND) == set()


def test_no_package_that_is_on_no_index_is_to_be_installed():
    hint = re.compile(r"pip install[^\n]*\bstn[-_]export\b(?!\.)")
    assert [text for every in TEXTS.values() for text in every if hint.search(text)] == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("run 'make bench' again", ["bench"]), ("make bench-compare BASE=x", ["bench-compare"]), ("make room", [])],
)
def test_targets_of_make_are_seen(text: str, wanted: list[str]):
    assert BY_MAKE.findall(text) == wanted


def test_in_a_clone_the_hints_are_those_of_make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(errors, "has_make", HAS_MAKE)
    monkeypatch.chdir(REPOSITORY)
    assert errors.command("train", "export") == "'make train export'"
    assert errors.command("bench", run=Path("a b")) == "'make bench RUN='a b''"
    assert errors.command("bench", run=errors.DEFAULT_RUN) == "'make bench'"
    assert errors.installing("train") == "pip install '.[train]'"
    monkeypatch.chdir(tmp_path)  # where make finds no Makefile
    assert errors.command("train", run=Path("x")) == "'stn-export train --run x'"
    assert errors.installing("train") == f"pip install '{REPOSITORY}[train]'"


def test_in_a_wheel_the_hints_are_those_of_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(errors, "ROOT", tmp_path)
    assert errors.command("train", "export") == "'stn-export train', then 'stn-export export'"
    assert errors.in_clone("make", "other") == "other"
    assert errors.installing("openvino") == "pip install 'openvino>=2025.0'"
    for extra in sorted({*EXTRAS.values(), "all"}):
        said = errors.installing(extra)
        assert said.startswith("pip install '")
        assert "stn-export" not in said
    assert "torchvision>=0.26" in errors.installing("all")


def test_a_wheel_without_its_metadata_still_gives_a_hint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(errors, "ROOT", tmp_path)
    monkeypatch.setattr(errors.metadata, "requires", missing)
    assert errors.installing("openvino") == "install this package with its extra openvino"


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_usage_names_the_command(name: str):
    assert PARSERS[name]().format_usage().split("usage: ")[1].startswith(f"stn-export {name}")


def test_help_of_all_shows_the_options_of_training_too():
    said = PARSERS["all"]().format_help()
    options = [option for action in PARSERS["train"]()._actions for option in action.option_strings]
    assert [option for option in options if option not in said] == []
    assert said.count("--device") == 2  # usage and one line: of all stages, training too


NO_BEGINNINGS = {
    "a",
    "an",
    "the",
    "of",
    "also",
    "likewise",
    "only",
    "instead",
    "in",
    "on",
    "where",
    "how",
    "some",
    "what",
}


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_help_texts_begin_with_a_verb_or_a_noun_and_end_without_a_stop(name: str):
    parser = PARSERS[name]()
    said = [action.help for action in parser._actions if action.help]
    assert {text for text in said if text.split()[0].lower().strip(",") in NO_BEGINNINGS or text.endswith(".")} == set()
    assert parser.description.endswith(".")
