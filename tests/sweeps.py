"""Sweeps over many values: some of them in `make test`, the others in `make test-slow`."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def swept(values: Iterable[Any], *quick: Any, name: Callable[[Any], Any] = lambda value: value) -> list[Any]:
    """Parameters of a test, all but the ``quick`` ones marked as slow; ``name`` says by what they are called."""
    values = list(values)
    assert set(quick) <= set(map(name, values))
    return [value if name(value) in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]
