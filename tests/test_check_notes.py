"""``check`` tells what it had to fix and what it did not look into."""

import re

import pytest
import torch
from torch import Tensor, nn

import stn_export
from stn_export.errors import UserError
from stn_export.export.onnx import export_onnx
from stn_export.program.capture import capture


class Counted(nn.Module):
    """Its batch is a number to ``torch.export``, because it is asked for by ``len``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1) * 2


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


def test_check_tells_what_it_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stn_export.api._timed", lambda run, name: {})
    result = stn_export.check(Counted().eval(), torch.rand(4, 3, 2))
    assert result
    assert any(re.search(r"N of input x cannot be kept open", note) for note in result.notes), result.notes
    assert [text for word, text in result.card if word == "note"] == list(result.notes)
    assert result.to_dict()["notes"] == list(result.notes)


def test_a_hint_names_dynamic_sizes_only_where_there_are_some() -> None:
    for dynamic in (True, False):
        with pytest.raises(UserError) as caught:
            export_onnx(Decides().eval(), torch.rand(2, 3), dynamic_batch=dynamic)
        assert "replace Python branches on values" in caught.value.hint
    with pytest.raises(UserError) as caught:
        capture(Specialised().eval(), (torch.rand(2, 3),), [(2, 3)])
    assert "fewer" not in caught.value.hint


class Specialised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("a size was specialized")
