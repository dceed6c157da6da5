import itertools
import math
from dataclasses import replace

import pytest
import torch

from stn_export.results.statistics import estimate
from stn_export.train.data import Dataset
from stn_export.train.sweep import Plan, measured_weights
from stn_export.train.trainer import Settings, Trainer, run_epoch

CPU = torch.device("cpu")


def test_the_estimate_after_one_epoch_is_right_where_models_differ_in_speed(settings: Settings, small: Dataset):
    slow, quick = Trainer(settings, small, CPU), Trainer(replace(settings, model="cnn"), small, CPU)
    now = itertools.accumulate([10.0, 30.0])  # read at the start and after an epoch of the slow one
    plan = Plan([slow, quick], {"stn": 1.0, "cnn": 0.4}, clock=lambda: next(now))
    plan.advance("stn", 640)
    assert plan.seconds_left() == pytest.approx(2 * 30 + 3 * 0.4 * 30)


def test_what_an_earlier_run_did_is_complete_and_not_timed(settings: Settings, small: Dataset):
    trainer = Trainer(settings, small, CPU)
    run_epoch([trainer])
    now = itertools.accumulate([0.0, 5.0])
    plan = Plan([trainer], {"stn": 1.0}, clock=lambda: next(now))
    assert plan.complete == 640
    plan.advance("stn", 640)
    assert plan.eta() == "0:00:05"


def test_weights_are_measured_where_there_is_something_to_compare(settings: Settings, small: Dataset):
    assert measured_weights([settings, replace(settings, seed=7)], small, CPU) == {"stn": 1.0}
    weights = measured_weights([settings, replace(settings, model="cnn")], small, CPU)
    assert weights["stn"] == 1.0
    assert weights["cnn"] > 0


def test_a_mean_and_its_interval():
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.deviation, found.count) == (2.0, 1.0, 3)
    assert found.high - found.mean == pytest.approx(4.302653 / math.sqrt(3))
    assert found.low == pytest.approx(2 - 4.302653 / math.sqrt(3))
    assert not found.excludes_zero
    assert estimate([2.0, 2.1, 1.9]).excludes_zero


def test_one_value_has_no_interval():
    found = estimate([1.0])
    assert math.isnan(found.low)
    assert math.isnan(found.deviation)
    assert not found.excludes_zero
    assert found.as_dict() == {"mean": 1.0, "deviation": None, "low": None, "high": None, "count": 1}
    with pytest.raises(ValueError, match="no values"):
        estimate([])
