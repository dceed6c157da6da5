"""Audit other people's ONNX files and count their costs a second time: ``python -m tests.onnx_table``.

The cases of the onnx package, ONNX Runtime's data sets, and with ``--packages FOLDER`` whatever packages lie there.
Writes artifacts/onnx_files.json as it goes; the exit code is 1 where a file is at fault: a traceback, a crash, a hang,
a count that is negative or another than the independent one, or a file that is said to differ from itself.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import onnx
import onnxruntime

from stn_export import cli
from stn_export.audit.content import examined
from stn_export.cli.apart import BeyondLimitError, apart, forked
from stn_export.errors import UserError
from stn_export.onnx_graph.inputs import Asked
from stn_export.onnx_graph.lint import Subject
from stn_export.onnx_graph.model import flat, read_model
from stn_export.onnx_graph.trial import within_limits
from stn_export.run.environment import versions
from tests.counted import Count, counted

if importlib.util.find_spec("openvino"):
    import openvino  # noqa: F401  # once, instead of in every fork

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "artifacts" / "onnx_files.json"
LONGEST = 20.0  # seconds that an audit may take
COUNTING = 60.0  # seconds for the second count
FIRST = "ONNX Runtime CPU"
NODES = "onnx node"
PAGE = ROOT / "docs" / "onnx-files.md"
COLUMNS = (
    "from",
    "files",
    "run",
    "refused by ONNX Runtime",
    "not tried",
    "counts equal",
    "lower bounds",
    "longest, s",
    "at fault",
)
INTRODUCTION = """# Other people's ONNX files

`make test-onnx-files` audits the cases and models of the onnx package, ONNX Runtime's data sets and the files that
packages ship, each in a process of its own within [limits](survival.md), and wrote this table ({versions}). *Run* is on
ONNX Runtime's CPU provider, at sizes that were found where the file leaves them open; *not tried* is what loads and
needs inputs that a search did not find (`--shape`, `--inputs`). Multiply-adds are counted a second time from the arrays
of a real run by code that shares nothing with the package (`tests/counted.py`); *lower bounds* are files that hold
operators whose multiply-adds are not known, and are said to be such. *At fault* is an audit with a traceback, a crash,
a hang, another count, or a file that differs from itself.

"""


@dataclass(frozen=True)
class Line:
    """What became of one file; ``fault`` is empty where nothing is wrong with the audit."""

    source: str
    file: str
    verdict: str = ""
    inputs: str = ""
    macs: int = 0
    uncounted: int = 0
    counted: int | None = None
    counted_by: str = ""
    rules: tuple[str, ...] = ()
    differing: tuple[str, ...] = ()
    seconds: float = 0.0
    fault: str = ""


def node_cases(folder: Path) -> Iterator[tuple[str, Path]]:
    """The onnx package's cases of single operators, written to a folder; expanded ones say the same once more."""
    with warnings.catch_warnings(action="ignore"):  # NumPy's, of cases that overflow
        from onnx.backend.test.case.node import collect_testcases  # it makes them all: some seconds

        cases = collect_testcases(None)
    for case in cases:
        if case.model is not None and not case.name.endswith("_expanded"):
            onnx.save(case.model, folder / f"{case.name}.onnx")
            yield NODES, folder / f"{case.name}.onnx"


def shipped() -> Iterator[tuple[str, Path]]:
    """The models that the onnx package ships, and ONNX Runtime's data sets."""
    cases = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for path in sorted(cases.rglob("*.onnx")):
        yield f"onnx {path.relative_to(cases).parts[0]}", path
    datasets = Path(onnxruntime.__file__).parent / "datasets"
    yield from (("onnxruntime datasets", path) for path in sorted(datasets.glob("*.onnx")))


def package_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files that lie in a folder of packages, by the package."""
    for path in sorted(folder.rglob("*.onnx")):
        yield path.relative_to(folder).parts[0], path


def second_count(path: Path) -> Count | str:
    """Count a file again, on the inputs that the audit ran it on; or why that cannot be."""
    subject = Subject(read_model(path).model)
    if isinstance(subject.trial.outputs, str):
        return subject.trial.outputs
    try:
        return counted(flat(subject.model), dict(subject.trial.inputs.draw()))
    except Exception as error:  # what the reference evaluator lacks
        return f"{type(error).__name__}: {error}"


def named(path: Path) -> str:
    """What tells a file from others of its source."""
    return path.parent.name if path.name == "model.onnx" else path.stem


def examine(source: str, path: Path) -> Line:
    """Audit a file, then count it again, each within its limits."""
    line, begun = Line(source, named(path)), time.monotonic()
    try:
        report = examined(str(path), read_model(path), asked=Asked(), step=within_limits)
    except UserError as error:
        return replace(line, verdict="cannot be read", inputs=error.message, seconds=time.monotonic() - begun)
    json.dumps(report.as_dict())
    first = report.audits[0]
    line = replace(
        line,
        verdict=report.portability[FIRST][0],
        inputs=str(report.tried),
        macs=first.macs,
        uncounted=len(first.uncounted),
        rules=tuple(sorted({each.rule for each in report.findings})),
        differing=tuple(name for name, (verdict, _) in report.portability.items() if verdict == "runs, WRONG"),
        seconds=round(time.monotonic() - begun, 2),
    )
    try:
        again = forked(partial(second_count, path), COUNTING)
    except BeyondLimitError as error:
        again = error.message
    if isinstance(again, Count):
        line = replace(line, counted=again.macs, counted_by=again.by)
    else:
        line = replace(line, counted_by=again[:120])
    return replace(line, fault=fault_of(line))


def fault_of(line: Line) -> str:
    """What is wrong with the audit of a file; empty where nothing is."""
    if line.macs < 0 or (line.counted is not None and line.macs > line.counted):
        return f"{line.macs} multiply-adds, and {line.counted} by the second count"
    if line.counted is not None and not line.uncounted and line.macs != line.counted:
        return f"{line.macs} multiply-adds instead of {line.counted}"
    if FIRST in line.differing:
        return "differs from itself"
    return f"{line.seconds:.0f} seconds" if line.seconds > LONGEST else ""


def line_of(source: str, path: Path) -> Line:
    """Examine a file in a process of its own; what no user should see is a fault."""
    try:
        return apart("tests.onnx_table:examine", source, path, seconds=180)
    except BeyondLimitError as error:
        return Line(source, named(path), fault=error.message)
    except Exception as error:
        return Line(
            source, named(path), fault=f"TRACEBACK {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        )


def write(lines: list[Line]) -> None:
    """Keep the lines, with the versions that they were made with."""
    KEPT.parent.mkdir(exist_ok=True)
    content = {"schema": "stn_export/onnx_files/1", "versions": versions(), "files": [asdict(each) for each in lines]}
    KEPT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(lines), encoding="utf-8")


def kept_nodes() -> list[Line]:
    """The lines of single operators that an earlier run kept."""
    content = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {"files": []}
    return [Line(**each) for each in content["files"] if each["source"] == NODES]


def page(lines: list[Line]) -> str:
    """``docs/onnx-files.md``: a row a source."""
    rows = []
    for source in dict.fromkeys(each.source for each in lines):
        of = [each for each in lines if each.source == source]
        said = Counter(each.verdict for each in of)
        twice = [each for each in of if each.counted is not None]
        rows.append(
            (
                source,
                len(of),
                said["runs, tested here"],
                said["refused"] + said["cannot be read"],
                said["not tried"],
                f"{sum(each.macs == each.counted for each in twice if not each.uncounted)} of "
                f"{sum(not each.uncounted for each in twice)}",
                sum(bool(each.uncounted) for each in of),
                f"{max(each.seconds for each in of):.1f}",
                sum(bool(each.fault) for each in of),
            )
        )
    named = ", ".join(f"{name} {version}" for name, version in versions().items() if name.startswith(("onnx", "openv")))
    return INTRODUCTION.format(versions=named) + "\n".join(cli.markdown_table(COLUMNS, rows)) + "\n"


def summary(lines: list[Line]) -> str:
    """One line for people."""
    bad = [f"{each.source} {each.file}: {each.fault}" for each in lines if each.fault]
    return "\n".join([f"{len(lines)} files, {len(bad)} at fault", *bad])


def main() -> int:
    """Examine all, keep the table, say what is at fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, help="a folder that pip install --target filled")
    parser.add_argument("--only", default="", help="files whose path holds this; nothing is kept")
    parser.add_argument("--no-nodes", action="store_true", help="keep the lines of single operators as they are")
    options = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        packages = package_files(options.packages) if options.packages else ()
        files = [*shipped(), *packages, *(() if options.no_nodes else node_cases(Path(folder)))]
        for source, path in [each for each in files if options.only in str(each[1])]:
            lines.append(line_of(source, path))
            print(json.dumps(asdict(lines[-1])), file=sys.stderr, flush=True)
    if not options.only:
        write([*lines, *(kept_nodes() if options.no_nodes else ())])
    print(summary(lines), dict(Counter(each.verdict for each in lines)))
    return 1 if any(each.fault for each in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
