"""The suite's own helpers: what is shared stays whole, what waits comes last, skips are told by reason."""

from types import SimpleNamespace

import onnx
import pytest
import torch

from tests.conftest import needs_training, pytest_collection_modifyitems, skips_by_reason
from tests.exports import exported
from tests.runs import built_in
from tests.zoo import ZOO


@pytest.mark.parametrize("name", ["GreyDigits", "stn"])
def test_a_program_that_a_test_spoils_is_whole_for_the_next(name: str):
    get = ZOO[name].program if name in ZOO else lambda: built_in(name)
    whole, spoilt = get().to_bytes({}), get()
    for value in spoilt.state().values():
        value.add_(1)
    values = ZOO[name].values(2) if name in ZOO else (torch.rand(2, 3, 32, 32),)
    wrong, right = (next(iter(each.run(values).values())) for each in (spoilt, get()))
    assert not torch.allclose(wrong, right)
    assert get().to_bytes({}) == whole


def test_a_capture_kept_is_the_one_made_anew():
    assert ZOO["PlateRectifier"].program().to_bytes({}) == ZOO["PlateRectifier"].capture().to_bytes({})


def test_an_export_that_a_test_spoils_is_whole_for_the_next():
    whole = exported("NoSampler", "plain").SerializeToString(deterministic=True)
    onnx.helper.set_model_props(exported("NoSampler", "plain"), {"spoilt": "yes"})
    exported("NoSampler", "plain").graph.ClearField("node")
    assert exported("NoSampler", "plain").SerializeToString(deterministic=True) == whole


def item(name: str, *fixtures: str) -> SimpleNamespace:
    """Stand in for a test that is collected."""
    return SimpleNamespace(name=name, fixturenames=fixtures, get_closest_marker=lambda _: None)


def test_what_waits_for_a_training_comes_last_in_the_order_that_was_drawn():
    items = [item("a", "trained_run"), item("b", "run", "trained_run"), item("c", "entered_run"), item("d")]
    pytest_collection_modifyitems(items)
    assert [each.name for each in items] == ["c", "d", "a", "b"]
    assert [needs_training(each) for each in items] == [False, False, True, True]


def test_skips_are_counted_by_reason():
    reports = [SimpleNamespace(longrepr=("file.py", line, f"Skipped: {why}")) for line, why in enumerate("baab")]
    reports.append(SimpleNamespace(longrepr=("file.py", 9, "Skipped: a")))
    assert skips_by_reason(reports) == [(3, "a"), (2, "b")]
