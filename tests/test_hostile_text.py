"""Text that others chose stands as it is wherever it is shown: it colours nothing, moves no cursor and is no HTML."""

import io
import json
import re
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from onnx.parser import parse_model
from PIL import Image

from stn_export import cli
from stn_export.cli.tables import Table, as_csv, as_markdown, visible
from stn_export.report.drawing import picture_rows
from stn_export.run.manifest import MANIFEST, MANIFEST_SCHEMA
from stn_export.run.store import write_json
from stn_export.runners import RUNNERS
from stn_export.verify import __main__ as verify
from tests.test_bad_input import NET, RELU
from tests.widths import rendered

EVIL = "[/b] [red]x\x1b[31m\x07\u202e<script>alert(1)</script>|`\n\u2028\u200bCUDA  runs everywhere$x^$![](http://x)"
FILE = EVIL.replace("/", "∕")  # as a file's name


@pytest.fixture
def run(entered_run: Path, tmp_path: Path) -> Path:
    """A run of that name, whose networks and classes are called so."""
    run = Path(shutil.copytree(entered_run, tmp_path / FILE))
    for path in run.glob(f"*/{MANIFEST}"):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["network"] |= {"label": EVIL, "note": EVIL, "classes": [EVIL] * 10}
        content["network"]["examples"]["source"] = EVIL
        for site in content["network"]["sites"]:
            site |= {"where": EVIL, "source": EVIL}
        content["refused"] = {"gather-fp32": EVIL}
        content.pop("schema")
        write_json(path, MANIFEST_SCHEMA, content)
    return run


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A picture, an ONNX file and a module of that name."""
    folder = tmp_path / "files"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / f"{FILE}.png")
    (folder / f"{FILE}.onnx").write_bytes(parse_model(RELU.replace(" g (", " evil (")).SerializeToString())
    (folder / f"{FILE}.py").write_text(NET, encoding="utf-8")
    return folder


STAGES = [
    ("export", "--list", "--run", "{run}"),
    ("report", "--run", "{run}"),
    ("predict", "{files}.png", "--artifact", "{run}/stn/program.pt2"),
    ("predict", "{files}.png", "--artifact", "{run}/cnn/program.pt2", "--json"),
    ("audit", "{files}.onnx"),
    ("verify", "{files}.onnx", "{files}.onnx"),
    ("verify", "{files}.onnx", "{run}/stn/program.pt2"),
    ("adopt", "{files}.py:make", "--input", "x=N,3", "--inspect", "--name", "net"),
    ("verify", "--run", "{run}"),
    ("train", "--models", EVIL),
    ("train", "--run", "{files}.png"),
    ("audit", "{files}/nothing.onnx"),
    ("play", "--run", "{run}", "--runtime", "{files}.png"),
]
SILENT = [each for each in STAGES if each[:2] in (("audit", "{files}.onnx"), ("adopt", "{files}.py:make"))]
SILENT += [each for each in STAGES if each[:2] == ("verify", "{files}.onnx")]  # whose titles CSV leaves out


@pytest.mark.parametrize("form", ["table", "markdown", "csv"])
@pytest.mark.parametrize("arguments", STAGES, ids=lambda arguments: f"{arguments[0]} {arguments[1][:12]!a}")
def test_what_is_printed_holds_no_escapes(
    arguments: tuple[str, ...],
    form: str,
    run: Path,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(verify, "RUNNERS", RUNNERS[:1])  # one says all the words
    places = {"{run}": str(run), "{files}": str(files / FILE)}
    given = [replaced(each, places) for each in arguments[1:]]
    extra = [] if "--json" in given else ["--format", form]
    cli.run(import_module(f"stn_export.{cli.COMMANDS[arguments[0]][0]}").main, [*given, *extra])
    out, err = capsys.readouterr()
    text = out + err
    assert "Traceback" not in text
    assert not {"\x1b", "\x07", "\u202e", "\u2028", "\u200b"} & set(text)
    assert not [line for line in text.splitlines() if line.lstrip().startswith("CUDA  runs")]  # forged
    assert {"[red]", r"\[red\]"} & set(
        re.findall(r"\\?\[red\\?\]", text)
    ) or arguments in SILENT  # it is there, spelt out


def replaced(text: str, places: dict[str, str]) -> str:
    for name, place in places.items():
        text = text.replace(name, place)
    return text


def test_documents_hold_no_html_of_others(run: Path):
    assert cli.run(import_module("stn_export.report.__main__").main, ["--run", str(run)]) == 0
    markdown, html = (run / "report.md").read_text(encoding="utf-8"), (run / "report.html").read_text(encoding="utf-8")
    assert "&lt;script>alert" in markdown
    for text in (markdown, html, (run / "report.md").read_text(encoding="utf-8")):
        assert "<script>alert" not in text
        assert not {"\x1b", "\x07"} & set(text)


@pytest.mark.parametrize("width", [60, 120, None])
def test_tables_show_it_as_it_stands(width: int | None):
    made = Table(EVIL, (EVIL, "b"), [(EVIL, cli.styled(EVIL, "red"))])
    text = "".join(rendered(made, width).split())
    assert text.count("".join(visible(EVIL).split())) >= (4 if width is None else 0)
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "<script>" not in as_markdown(made)


def test_a_line_is_one_line():
    assert visible("a\r\nb\tc\u2028d\u200b") == "a\\r\\nb\tc\\u2028d\\u200b"
    assert cli.markdown("a\r\n|b") == r"a\\r\\n\|b"
    assert visible("\ud800") == r"\ud800"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("![](http://x)", r"!\[\](http://x)"),
        ("[c](javascript:x)", r"\[c\](javascript:x)"),
        (r"\|", r"\\\|"),
        ("<b>&", "&lt;b>&amp;"),
        ("$x^$", r"\$x^\$"),
        ("`a`*b*", r"\`a\`\*b\*"),
    ],
)
def test_markdown_of_others_is_text(text: str, shown: str):
    assert cli.markdown(text) == shown


def test_no_cell_of_csv_is_a_formula():
    cells = ["=1+1", "+A1", "-cmd|x", "@SUM(1)", "-0.5", "+2.10", "-1e-06", "stn"]
    shown = as_csv(Table("", ("=a", "b"), [(cell, "1") for cell in cells])).splitlines()
    assert shown == ["'=a,b", "'=1+1,1", "'+A1,1", "'-cmd|x,1", "'@SUM(1),1", "-0.5,1", "+2.10,1", "-1e-06,1", "stn,1"]


def test_a_class_name_is_no_formula_in_a_picture():
    figure = picture_rows({"input": torch.zeros(2, 1, 4, 4, dtype=torch.uint8)}, ["$x^$", "a$b\x1b"])
    figure.savefig(io.BytesIO(), format="png")
