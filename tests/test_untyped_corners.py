"""What ended in a traceback until types showed that it may be missing: refused in a line now."""

from pathlib import Path

import pytest
import torch

from stn_export.adopt.adoption import adopt
from stn_export.bench import machine
from stn_export.errors import UserError
from stn_export.native.build import target_of
from stn_export.program.specs import Given, whole


def test_a_c_file_that_names_no_target_is_refused(tmp_path: Path):
    source = tmp_path / "network.c"
    source.write_text("// Target: x86-64-v3\n", encoding="utf-8")
    assert target_of(source) == "x86-64-v3"
    source.write_text("int main(void) { return 0; }\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"network\.c does not say"):
        target_of(source)


def test_a_captured_file_is_not_adopted_by_a_call_of_it():
    with pytest.raises(UserError, match=r"network\.pt2 is captured already"):
        adopt("network.pt2", Given.of(torch.zeros(1, 2)))


def test_memory_is_unknown_where_the_system_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "PROCESS", tmp_path)
    (tmp_path / "status").write_text("Name:\tpython\n", encoding="utf-8")
    with machine.Memory("cpu") as taken:
        pass
    assert taken.host_bytes is None


def test_sizes_that_are_open_are_no_numbers():
    assert whole((2, 3)) == (2, 3)
    with pytest.raises(TypeError, match="N×3"):
        whole(("N", 3))
