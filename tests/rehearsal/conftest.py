"""The GPU that is rehearsed on."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from stn_export.bench import timing
from stn_export.results.statistics import METHOD
from tests.rehearsal.device import Device
from tests.rehearsal.surface import rehearsed


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """All of the test sees a GPU; contests load either side once."""
    monkeypatch.setattr(timing, "METHOD", replace(METHOD, loads=1))
    with rehearsed() as device:
        yield device
