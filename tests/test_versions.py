"""What the sweep over versions takes from pyproject.toml."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import versions


def test_the_lowest_of_every_dependency_is_its_bound():
    wanted = versions.requirements(["torch>=2.11", "numpy>=1.26", "onnxruntime-gpu>=1.22; python_version > '3'"])
    assert [versions.lowest(each) for each in wanted] == ["numpy==1.26", "onnxruntime==1.22"]
    assert [versions.newest(each) for each in wanted] == ["numpy>=1.26", "onnxruntime>=1.22"]


def test_what_another_machine_needs_is_left_out():
    assert versions.requirements(["onnxruntime>=1.22; sys_platform == 'nowhere'"]) == []


def test_a_dependency_without_a_bound_is_refused():
    with pytest.raises(ValueError, match="rich has not one lower bound"):
        versions.lowest(Requirement("rich"))


def test_every_dependency_has_a_bound_and_every_python_a_classifier():
    assert all(versions.lowest(each) for each in versions.requirements(versions.project()["dependencies"]))
    assert versions.pythons() == ["3.11", "3.12", "3.13"]


def test_packages_that_cannot_be_laid_are_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(versions, "installed", lambda packages, folder: "ERROR: No matching distribution found for x")
    line = versions.layered("lowest", ["x==0"], tmp_path)
    assert line.passed is False
    assert "No matching distribution" in line.verdict


def test_a_python_that_is_not_here_is_not_tried(tmp_path: Path):
    assert versions.other_python("3.99", ["/bin/false"], tmp_path).passed is None
