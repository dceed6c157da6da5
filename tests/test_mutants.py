"""The score of mutation testing where a number of each module's mutants is drawn."""

import pytest

from tests.mutants import Module, drawn, score


def module(mutants: int, killed: int, survived: int) -> Module:
    """A module of which so many mutants were tried."""
    states = ["killed"] * killed + ["survived"] * survived
    return Module(mutants, {str(number): state for number, state in enumerate(states)})


def test_the_same_mutants_are_drawn_each_time():
    names = [f"mutant {number}" for number in range(50)]
    assert drawn(names, 5) == drawn(names[::-1], 5)
    assert len(set(drawn(names, 5))) == 5
    assert drawn(names, 0) == drawn(names, 60) == sorted(names)


def test_a_module_counts_by_its_mutants():
    share, low, high = score({"large": module(900, 20, 0), "small": module(100, 10, 10)})
    assert share == pytest.approx(0.95)
    assert 0.85 < low < share < high <= 1


def test_all_mutants_tried_leave_no_doubt():
    share, low, high = score({"one": module(20, 19, 1)})
    assert (low, share, high) == pytest.approx((0.95, 0.95, 0.95))


def test_untested_mutants_are_alive():
    assert Module(2, {"a": "untested", "b": "timed out"}).killed == 0.5
