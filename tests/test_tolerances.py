"""Bounds, in units of a scale, and what a network that magnifies roundings adds to them."""

import json
import math

import pytest

from stn_export.results.tolerances import ANY, COUNT, GRID, OUTPUT, THETA, TOLERANCES, WARPED, WHOLE, Bound
from stn_export.run.records import finite

FP32 = TOLERANCES["fp32"]


def test_a_bound_grows_and_never_shrinks():
    assert Bound(1.0, 0.5).at_least(3.0) == Bound(3.0, 0.5)
    assert Bound(1.0, 0.5).at_least(0.1) == Bound(1.0, 0.5)
    assert Bound(1.0, 0.5).times(2) == Bound(2.0, 1.0)
    assert Bound(1.0, 0.5).at_scale(4) == Bound(4.0, 0.5)
    assert ANY.times(2) == ANY.at_least(1.0) == ANY.at_scale(3.0) == ANY


def test_what_float32_itself_does_is_not_held_against_an_artifact():
    assert FP32.at(OUTPUT, 1.0, eager_error=1.0).absolute == FP32.own
    assert FP32.at(GRID, 1.0, eager_error=0.0) == FP32.grid
    assert FP32.at(COUNT) == WHOLE


def test_of_trained_digits_the_bounds_are_what_they_were():
    bound = FP32.at(OUTPUT, scale=58.9)  # the largest log-probability of the kept digits run
    assert bound.absolute == pytest.approx(2e-5, rel=0.05)
    assert bound.relative == 5e-6
    assert FP32.at(GRID, scale=1.0) == Bound(1e-4, 2e-6)  # an image of 32 pixels
    assert FP32.at(WARPED, scale=1.0) == Bound(1e-4)
    assert FP32.at(THETA) == Bound(2e-6, 2e-6)


def test_the_bounds_widen_far_from_the_data():
    assert FP32.far(GRID, 1.0, 0.25) == Bound(FP32.grid.absolute + FP32.multiple * 0.25, FP32.grid.relative)
    assert FP32.far(THETA, 1.0, 0.0) == FP32.theta
    assert TOLERANCES["fp16"].far(GRID, 2.0, 0.25) == TOLERANCES["fp16"].at(GRID, 2.0)


def test_two_artifacts_may_each_stray_on_a_side():
    assert FP32.apart(OUTPUT, 2.0) == Bound(16 * 2 * FP32.output.absolute, 16 * FP32.output.relative)
    assert TOLERANCES["fp16"].apart(OUTPUT, 1.0) == TOLERANCES["fp16"].output.times(2)
    assert TOLERANCES["int8"].apart(OUTPUT, 1.0).absolute == math.inf


def test_reduced_precisions_are_looser_at_every_point():
    order = [TOLERANCES[name] for name in ("fp32", "fp16", "bf16", "int8")]
    for kind in (THETA, GRID, WARPED, OUTPUT):
        bounds = [tolerance.at(kind).absolute for tolerance in order]
        assert bounds == sorted(set(bounds))
    assert all(tolerance.reason for tolerance in TOLERANCES.values())


def test_what_knows_no_limit_is_none_in_json():
    said = TOLERANCES["int8"].as_dict()
    assert (said["theta"]["absolute"], said["multiple"], said["rms"]) == (None, None, 0.2)
    assert json.dumps(finite({"a": (math.nan, [1.0, math.inf])}), allow_nan=False) == '{"a": [null, [1.0, null]]}'


def test_sums_in_order_may_stray_further_and_nothing_else_changes():
    loose = FP32.in_order
    assert loose.at(OUTPUT, 1.0, 1e-6).absolute == pytest.approx(16e-6)
    assert (loose.multiple, loose.output, loose.grid) == (16.0, FP32.output, FP32.grid)
    assert TOLERANCES["fp16"].in_order.multiple == float("inf")
