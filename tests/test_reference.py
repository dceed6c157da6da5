"""The generated reference pages say what the code says: options, exit codes, lint rules, tolerances and versions."""

import pytest

from stn_export.cli.options import PARSERS
from stn_export.onnx_graph.lint import RULES
from tests import reference
from tests.conftest import REPOSITORY


def page(name: str) -> str:
    """The text of a page of docs/."""
    return (REPOSITORY / "docs" / f"{name}.md").read_text(encoding="utf-8")


def cells(block: list[str], first: str) -> list[str]:
    """The cells of the row of a table that begins so."""
    [row] = [line for line in block if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in row.split(" | ")][1:]


@pytest.mark.parametrize("name", PARSERS)
def test_a_command_has_a_section_with_every_option(name: str):
    section = page("commands").partition(f"## `{name}`\n")[2].partition("\n## ")[0]
    assert f"stn-export {name}" in section, "an example"
    shared = {"--help", "--format", "--json", "--brief"}
    long = {option for each in PARSERS[name]()._actions for option in each.option_strings if option[:2] == "--"}
    assert [option for option in long - shared if f"`{option}" not in section] == []


def test_help_names_the_exit_codes_and_the_page_has_them(capsys: pytest.CaptureFixture):
    PARSERS["verify"]().print_help()
    shown = " ".join(capsys.readouterr().out.split())
    for code, meaning in ((0, "success"), (1, "a check failed"), (130, "interrupted")):
        assert f"{code} {meaning}" in shown
        assert f"| {code} | {meaning} |" in page("commands")


def test_defaults_are_said_where_they_are_values():
    section = reference.commands()
    assert "| `--port PORT` | port on localhost; 0 picks a free port; by default 0 |" in section
    assert "| `--no-wait` | exit instead of waiting for a stage that locked the run |" in section
    assert "| `--models MODELS` | comma-separated: stn, cnn, cnn-matched; by default stn and cnn |" in section


def test_every_lint_rule_is_on_its_page():
    assert [rule.id for rule in RULES if f"| {rule.id} | " not in page("lint")] == []
    assert cells(reference.lint_rules(), "STN004")[1:] == ["export with a dynamic first dimension, from a batch of 2 |"]


def test_tolerances_are_those_of_the_code():
    found = cells(reference.tolerances(), "bf16")
    bounds = ["0.05 + 0.05 of the value", "1 + 0.05 of the value", "1", "0.03 + 0.15 of the value"]
    assert found[:6] == [*bounds, "98.0%", "1 points"]
    assert cells(reference.tolerances(), "int8")[:4] == ["–"] * 4


def test_versions_are_those_of_the_lock():
    lock = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    accepted, installed, _ = cells(reference.versions(), "torch")
    assert accepted == ">=2.11"
    assert f"torch=={installed} " in lock
