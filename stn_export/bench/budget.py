"""Which rows come first, and when no other one is begun."""

import math
import time
from collections.abc import Callable

from stn_export.artifacts.manifest import SUBJECT
from stn_export.bench.cases import Case

# By worth: what ``all`` and the card must know comes before what the report draws. Of a suite the rows of one example,
# of the network that samples, come in the first place and all others in the second.
ORDER = {
    "latency": (0, 9),
    "overhead": (1, 5),
    "eager": (2, 4),
    "throughput": (3, 8),
    "default": (6, 6),
    "breakdown": (7, 9),
    "request": (4, 10),
    "pytorch": (8, 8),
    "lowering": (10, 11),
    "startup": (11, 12),
    "cold": (13, 13),
}


def worth(suite: str, case: object) -> int:
    """The place of a row among those that a budget may not suffice for; what answers most has the lowest.

    Of a suite without rows pytest collects a placeholder, which has no case.
    """
    if not isinstance(case, Case):
        return max(map(max, ORDER.values())) + 1
    subject, single = case.target.network.facts.role == SUBJECT, case.batch == 1
    first, others = ORDER[suite]
    return first if subject and (single or suite == "throughput") else others


class Budget:
    """Seconds for a session, counted from now; none is without end."""

    def __init__(self, seconds: float | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.end = math.inf if seconds is None else now() + seconds

    @property
    def left(self) -> float | None:
        """Seconds that are left, at least none; None where there is no end."""
        return None if math.isinf(self.end) else max(0.0, self.end - self.now())

    @property
    def over(self) -> bool:
        """Whether no other row is begun."""
        return self.now() >= self.end
