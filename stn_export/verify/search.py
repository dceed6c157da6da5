"""A bounded search for inputs that an artifact gets wrong, beyond the fixed challenges.

Hypothesis draws small batches of structured images, climbs towards a larger error and shrinks what fails. A batch is
a few numbers, so the smallest one that fails can be said in words.
"""

import math
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, Verbosity, find, settings, target
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.errors import NoSuchExample

from stn_export.artifacts.manifest import Artifact
from stn_export.comparison.compare import Comparison, compare
from stn_export.comparison.tolerances import TOLERANCES, Tolerance
from stn_export.config import IMAGE_SHAPE, OUTPUT_NAME
from stn_export.runners import Runner, RunnerSpec
from stn_export.verify.checks import (
    Challenge,
    Check,
    Points,
    Truth,
    compare_points,
    feed,
    first_failure,
    make_challenge,
)
from stn_export.verify.pictures import STRIPES, Changed, Edge, Noisy, Picture, Sparse, Stripes

_, HEIGHT, WIDTH = IMAGE_SHAPE
MOST_IMAGES = 4
MOST_PIXELS = 8
SEED = 0
ROUND = 100  # examples a round: between rounds the clock is looked at and the climb starts anew
MOST_EXAMPLES = 1_000_000
INFINITE = math.inf
QUIET = settings(
    max_examples=ROUND,
    deadline=None,
    database=None,
    verbosity=Verbosity.quiet,
    phases=(Phase.generate, Phase.target, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)

LEVELS = st.integers(0, 255)
COLOURS = LEVELS.map(lambda level: (level, level, level)) | st.tuples(LEVELS, LEVELS, LEVELS)
Batch = tuple[Picture, ...]


def batches(test_images: int) -> st.SearchStrategy[Batch]:
    """Batches of one to four pictures, the simplest kind first; ``test_images`` may be changed or blended."""
    index = st.integers(0, test_images - 1)
    pixels = st.tuples(st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 1), COLOURS)
    pictures = st.one_of(
        st.builds(Edge, st.booleans(), st.integers(1, WIDTH - 1), st.tuples(COLOURS, COLOURS)),
        st.builds(Sparse, st.lists(pixels, min_size=1, max_size=MOST_PIXELS).map(tuple)),
        st.builds(Stripes, st.sampled_from(STRIPES), st.integers(1, WIDTH // 2), st.tuples(COLOURS, COLOURS)),
        st.builds(Changed, index, st.integers(0, 12), st.booleans(), st.integers(-100, 300), st.integers(-255, 255)),
        st.builds(Noisy, index, st.integers(1, 100), st.integers(0, 2**16)),
    )
    return st.lists(pictures, min_size=1, max_size=MOST_IMAGES).map(tuple)


def describe(batch: Batch) -> str:
    """The pictures of a batch in words."""
    return "; ".join(map(str, batch))


@dataclass(frozen=True)
class SearchResult:
    """What a search came to.

    ``examples`` batches were tried; ``excess`` is the worst error of the log-probabilities in units of its tolerance
    (1.0 at the bound, infinite where an output was missing or no number), at the batch that ``worst`` describes.
    ``failure`` describes the smallest batch that fails, and how; it is empty where none was found.
    """

    examples: int
    excess: float
    worst: str
    failure: str


class _Hunt:
    """One artifact in one runner under search: what was tried, and the clock."""

    def __init__(self, runner: Runner, contract: dict, truth: Truth, tolerance: Tolerance, seconds: float) -> None:
        self.runner, self.contract, self.truth, self.tolerance = runner, contract, truth, tolerance
        self.end = time.monotonic() + seconds
        self.tried: dict[Batch, tuple[float, bool]] = {}  # the excess, and whether the batch fails

    @property
    def late(self) -> bool:
        return time.monotonic() >= self.end

    def fails(self, batch: Batch) -> bool:
        """Whether a batch fails. Out of time, one that was never tried does not: shrinking ends with what it has."""
        if batch not in self.tried:
            if self.late:
                return False
            self.tried[batch] = self.run(batch)
        excess, failed = self.tried[batch]
        target(min(excess, 1e9))
        return failed

    def run(self, batch: Batch) -> tuple[float, bool]:
        try:
            results, actual, challenge = self.compare(batch)
        except Exception:  # whatever a runner raises is a failure, named by ``explain``
            return INFINITE, True
        if OUTPUT_NAME not in actual:
            return INFINITE, True
        excess = compare(actual[OUTPUT_NAME], challenge.true[OUTPUT_NAME], self.tolerance.at(OUTPUT_NAME)).excess
        return INFINITE if math.isnan(excess) else excess, not all(results.values())

    def compare(self, batch: Batch) -> tuple[dict[str, Comparison], Points, Challenge]:
        images = torch.stack([picture.draw(self.truth.dataset.test.images) for picture in batch])
        challenge = make_challenge(self.truth.model, self.truth.model64, images)
        actual = feed(self.runner.points, images, self.runner, self.contract)
        usual = self.truth.eager_errors
        eager_errors = {point: max(error, usual[point]) for point, error in challenge.eager_errors.items()}
        return compare_points(actual, challenge, self.tolerance.widened(eager_errors)), actual, challenge

    def explain(self, batch: Batch) -> str:
        try:
            return first_failure(*self.compare(batch)) or "it fails only now and then"
        except Exception as problem:
            return f"{type(problem).__name__}: {next(iter(str(problem).splitlines()), '')}"

    def result(self, smallest: Batch | None) -> SearchResult:
        worst = max(self.tried, key=lambda batch: self.tried[batch][0], default=())
        excess = self.tried[worst][0] if worst else 0.0
        failure = f"search: {describe(smallest)}: {self.explain(smallest)}" if smallest else ""
        return SearchResult(len(self.tried), excess, describe(worst), failure)


def search(
    runner: Runner,
    contract: dict,
    truth: Truth,
    tolerance: Tolerance,
    seconds: float,
    seed: int = SEED,
    examples: int = MOST_EXAMPLES,
) -> SearchResult:
    """Look for a batch whose points leave ``tolerance``, ``widened``, of the network in float64, and shrink it.

    Args:
        runner: of the artifact.
        contract: the artifact's input contract.
        truth: of the model that the artifact was made from.
        seconds: how long to search; what is found late is shrunk as far as time allows.
        seed: the same seed tries the same batches in the same order.
        examples: how many to draw at most, in rounds of 100.
    """
    hunt = _Hunt(runner, contract, truth, tolerance, seconds)
    strategy = batches(len(truth.dataset.test))
    with _no_traces():
        for number in range(0, examples, ROUND):
            if hunt.late:
                break
            try:
                return hunt.result(find(strategy, hunt.fails, settings=QUIET, random=random.Random(f"{seed} {number}")))
            except NoSuchExample:
                continue
    return hunt.result(None)


@contextmanager
def _no_traces() -> Iterator[None]:
    """Hypothesis keeps notes in the working directory: let it keep them elsewhere meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            set_hypothesis_home_dir(None)


def with_search(check: Check, artifact: Artifact, path: Path, spec: RunnerSpec, truth: Truth, seconds: float) -> Check:
    """A check that passed with what a search of ``seconds`` came to; what it finds makes the check fail."""
    if check.failure:
        return check
    contract, tolerance = spec.verified_as(artifact.input_contract), TOLERANCES[check.precision]
    result = search(spec.open(path, contract), contract, truth, tolerance, seconds)
    return replace(check, failure=result.failure, search=asdict(result) | {"seconds": seconds, "seed": SEED})
