"""Tables lose no cell: at any width of a terminal what has no room is named, and in a pipe nothing is left out."""

import csv
import io
import json

import pytest

from stn_export import cli
from stn_export.cli.tables import OUTPUT, Table, table
from tests.widths import WIDTHS, lost, rendered

LONG = Table(
    "A [/b] title",
    ("artifact", "runner", "ms", "verdict", "why"),
    [
        ("stn/folded-fp32-uint8-nhwc", "onnxruntime-default-cpu", "0.107", cli.styled("equal", "green"), "a | b"),
        ("stn/matmul-int8", "openvino-cpu", "–", cli.styled("FAILED", "red"), "because " * 12),
    ],
    ("ms", "runner"),
)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_cell_is_lost(width: int | None):
    text = rendered(LONG, width)
    assert not lost(LONG, text)
    if width:
        assert max(map(len, text.splitlines())) <= width
    assert ("columns hidden" in text) == (width in (60, 80))


def test_columns_go_in_the_order_that_is_stated():
    assert LONG.shown(1000) == list(LONG.columns)
    rows = LONG.least()
    whole = sum(rows.values()) + 2 * len(rows)
    assert LONG.shown(whole) == list(LONG.columns)
    assert LONG.shown(whole - 1) == ["artifact", "runner", "verdict", "why"]
    assert LONG.shown(10) == ["artifact", "verdict", "why"]


@pytest.mark.parametrize(
    ("form", "start"), [("json", "{"), ("markdown", "\n**A \\[/b\\] title**"), ("csv", "artifact,runner")]
)
def test_forms(form: str, start: str, capsys: pytest.CaptureFixture[str]):
    OUTPUT.form = form
    table(LONG.title, LONG.columns, LONG.rows, LONG.drop)
    cli.say("a word")
    cli.card([("caveat", "it")])
    printed, aside = capsys.readouterr()
    assert printed.startswith(start)
    assert "a word" in aside
    assert "caveat" in aside
    if form == "json":
        assert json.loads(printed)["rows"][0]["verdict"] == "equal"
    if form == "csv":
        assert list(csv.reader(io.StringIO(printed)))[1:] == LONG.plain()
    if form == "markdown":
        assert r"a \| b" in printed


def test_brief_leaves_the_card(capsys: pytest.CaptureFixture[str]):
    OUTPUT.brief = True
    table(LONG.title, LONG.columns, LONG.rows)
    cli.say("a word")
    cli.card([("caveat", "[it]")])
    assert capsys.readouterr().out == "caveat     [it]\n"
