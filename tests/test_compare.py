import numpy as np
import pytest

from stn_export.results.tolerances import Bound, compare, compare_typed

TOLERANCE = Bound(absolute=1e-5, relative=1e-6)
EXPECTED = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], np.float32))


def test_equal_arrays_pass():
    result = compare(EXPECTED.copy(), EXPECTED, TOLERANCE)
    assert result
    assert (result.max_abs, result.agreement, result.reason) == (0.0, 1.0, "")


def test_the_worst_element_is_named():
    actual = EXPECTED.copy()
    actual[1, 0] += 1e-3
    result = compare(actual, EXPECTED, TOLERANCE)
    assert not result
    assert result.worst == (1, 0)
    assert "(1, 0)" in result.reason
    assert result.max_abs == pytest.approx(1e-3, rel=1e-3)


def test_agreement_counts_rows():
    result = compare(EXPECTED[:, ::-1], EXPECTED, TOLERANCE)
    assert not result
    assert result.agreement == 0.0


@pytest.mark.parametrize(
    ("actual", "expected", "reason"),
    [
        (np.empty((0, 3)), np.empty((0, 3)), "there was nothing to compare"),
        (EXPECTED[:1], EXPECTED, "shape (1, 3) instead of (2, 3)"),
        (np.full_like(EXPECTED, np.nan), EXPECTED, "6 of 6 elements are not finite"),
        (EXPECTED, np.full_like(EXPECTED, -np.inf), "6 of 6 elements are finite where -inf is expected"),
    ],
)
def test_what_cannot_be_compared_fails(actual: np.ndarray, expected: np.ndarray, reason: str):
    result = compare(actual, expected, TOLERANCE)
    assert not result
    assert result.reason == reason


def test_the_tolerance_is_absolute_plus_relative():
    expected = np.array([[-30.0, -1.0]])
    assert compare(expected - 3.5e-5, expected, TOLERANCE).worst == (0, 1)
    assert compare(np.array([[-30.00003, -1.0]]), expected, TOLERANCE)
    assert not compare(np.array([[-30.00005, -1.0]]), expected, TOLERANCE)


def test_strays_are_the_elements_furthest_beyond_their_tolerance():
    actual = EXPECTED.copy()
    actual[0, 0] += 1.0
    actual[1, 2] += 1e-3
    assert compare(actual, EXPECTED, TOLERANCE, strays=1).worst == (1, 2)
    assert compare(actual, EXPECTED, TOLERANCE, strays=2)
    assert compare(actual, EXPECTED, TOLERANCE, strays=99).max_abs == 0.0
    assert not compare(
        np.full_like(EXPECTED, np.nan), EXPECTED, TOLERANCE, strays=99
    )  # what is no number is never right


def test_arrays_of_any_type():
    bound = Bound(0.1)
    words, numbers = np.array(["a", "b"]), np.array([10**6, 2])
    assert compare_typed(words, words, bound)
    assert not compare_typed(words, words[::-1], bound)
    assert compare_typed(words[:1], words[:1], bound)
    assert compare_typed(words[:0], words[:0], bound).reason == "values differ, or there was nothing to compare"
    assert not compare_typed(np.array([1.0]), np.array([1.2]), bound)  # floats by their tolerance, not to the whole
    assert compare_typed(numbers, numbers, bound)
    assert not compare_typed(numbers + 1, numbers, Bound(5.0))  # of whole numbers no tolerance takes any
    assert not compare_typed(np.array([True]), np.array([False]), bound)
    assert not compare_typed(numbers.astype(np.float64), numbers, bound)
    assert compare_typed(np.float32([[1]])[0, 0:1].reshape(()), np.array(1.05, np.float32), bound)
