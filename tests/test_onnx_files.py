"""Other people's files: the onnx package's models and cases, and what packages ship, audited without a fault."""

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.onnx_table import Line, fault_of, line_of, node_cases, package_files, shipped

PACKAGES = REPOSITORY / "artifacts" / "onnx-packages"
SMALL = [(source, path) for source, path in shipped() if source != "onnx light"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (Line("a", "b", macs=6, counted=12), "6 multiply-adds instead of 12"),
        (Line("a", "b", macs=13, uncounted=1, counted=12), "13 multiply-adds, and 12"),
        (Line("a", "b", macs=-1), "-1 multiply-adds"),
        (Line("a", "b", differing=("ONNX Runtime CPU",)), "differs from itself"),
        (Line("a", "b", seconds=21.0), "21 seconds"),
        (Line("a", "b", macs=12, counted=12), ""),
        (Line("a", "b", macs=6, uncounted=1, counted=12), ""),
    ],
)
def test_what_is_at_fault(line: Line, words: str):
    assert words in fault_of(line)
    assert bool(fault_of(line)) is bool(words)


def faults(lines: list[Line]) -> list[str]:
    return [f"{each.file}: {each.fault}" for each in lines if each.fault]


def test_a_few_of_every_source_are_audited():
    lines = [line_of(*each) for each in SMALL[::40]]
    assert faults(lines) == []
    assert {each.verdict for each in lines} <= {"runs, tested here", "refused", "not tried"}


@pytest.mark.slow
def test_every_shipped_model_is_audited():
    assert faults([line_of(*each) for each in shipped()]) == []


@pytest.mark.slow
def test_every_case_of_the_onnx_package_is_audited(tmp_path: Path):
    assert faults([line_of(*each) for each in node_cases(tmp_path)]) == []


@pytest.mark.onnx_files
@pytest.mark.slow
@pytest.mark.skipif(not PACKAGES.exists(), reason="needs make test-onnx-files")
def test_every_file_of_the_packages_is_audited():
    lines = [line_of(*each) for each in package_files(PACKAGES)]
    assert len({each.source for each in lines}) >= 12
    assert faults(lines) == []
