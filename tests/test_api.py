"""``check``, ``compare`` and ``audit`` in Python, on networks of other shapes than ours."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import stn_export
from stn_export import api
from stn_export.errors import UserError
from tests import made_records
from tests.foreign import Sampler


class Warps(nn.Module):
    """A grey picture of 12×20, turned by a pose that comes with it."""

    def __init__(self) -> None:
        super().__init__()
        self.turn, self.head = nn.Linear(3, 6), nn.Linear(240, 4)

    def forward(self, picture: Tensor, pose: Tensor) -> Tensor:
        grid = functional.affine_grid(
            self.turn(pose).view(-1, 2, 3), [picture.shape[0], 1, 12, 20], align_corners=False
        )
        return self.head(functional.grid_sample(picture, grid, align_corners=False).flatten(1))


def sequence() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 14, 2)).eval()


NETWORKS = {
    "sampler": (lambda: Warps().eval(), (torch.rand(6, 1, 12, 20), torch.rand(6, 3))),
    "theta given": (lambda: Sampler("bilinear", "zeros", align_corners=False).eval(), Sampler.inputs),
    "series": (sequence, (torch.rand(6, 2, 16),)),
    "vector": (lambda: nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)).eval(), torch.rand(4, 7)),
    "picture": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)).eval(), torch.rand(4, 3, 9, 9)),
    "volume": (lambda: nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.Flatten()).eval(), torch.rand(4, 1, 5, 5, 5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_module_of_any_shape_is_checked(name: str):
    make, inputs = NETWORKS[name]
    torch.manual_seed(0)
    result = stn_export.check(make(), inputs)
    assert result, result.failures
    assert str(result).startswith("deploy")
    assert "2 of 2 checks against the float64 reference passed" in str(result)
    assert "speed-up over eager PyTorch" in result._repr_html_()
    content = json.loads(json.dumps(result.to_dict()))
    assert content["passed"]
    assert {each["runner"] for each in content["checks"]} == {"onnxruntime-cpu", "eager-cpu"}
    assert content["contest"]["ratio_low"] <= content["contest"]["ratio"] <= content["contest"]["ratio_high"]
    assert content["audit"]["portability"]["ONNX Runtime CPU"]["verdict"] == "runs, tested here"
    onnx.checker.check_model(result.model)


@pytest.mark.slow
def test_a_result_that_failed_is_falsy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    found = [made_records.check(artifact="a", runner="r", failure="the grid is off")]
    verified = api._verified
    monkeypatch.setattr(api, "_verified", lambda *given: verified(*given) and found)
    result = stn_export.check(sequence(), torch.rand(4, 2, 16), run=tmp_path / "run")
    assert not result
    assert result.failures == ["a on r: the grid is off"]
    assert result.contest == {}
    assert (tmp_path / "run" / "verify.json").exists()
    result.save(tmp_path / "a.onnx")
    assert not any(row.reason for row in stn_export.compare(tmp_path / "a.onnx", tmp_path / "a.onnx"))
    assert stn_export.audit(tmp_path / "a.onnx")["audits"]


def test_a_module_left_in_training_mode_is_refused():
    module = sequence()
    module[1].train()  # one part is enough, as a Dropout is
    with pytest.raises(UserError, match=r"1 is in training mode\nhint: call"):
        stn_export.check(module, torch.rand(4, 2, 16))
    with pytest.raises(UserError, match="1 is in training mode"):
        stn_export.export_onnx(module, torch.rand(4, 2, 16))


def test_what_there_is_not():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        stn_export.nothing  # noqa: B018
