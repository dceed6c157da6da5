"""Bounds, and what a network that magnifies roundings adds to them."""

from stn_export.comparison.tolerances import ANY, GRID, OUTPUT, TOLERANCES, Bound


def test_a_bound_grows_and_never_shrinks():
    assert Bound(1.0, 0.5).at_least(3.0) == Bound(3.0, 0.5)
    assert Bound(1.0, 0.5).at_least(0.1) == Bound(1.0, 0.5)
    assert Bound(1.0, 0.5).times(2) == Bound(2.0, 1.0)
    assert ANY.times(2) == ANY.at_least(1.0) == ANY


def test_what_float32_itself_does_is_not_held_against_an_artifact():
    usual = TOLERANCES["fp32"]
    assert usual.at(OUTPUT, scale=10.0).absolute == 10 * usual.output.absolute
    assert usual.at(OUTPUT, scale=10.0, eager_error=1.0).absolute == usual.own
    assert usual.at(GRID, eager_error=0.0) == usual.grid
