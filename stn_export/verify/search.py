"""Search for inputs that an artifact gets wrong, within limits, as images that words can reproduce."""

import math
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, Verbosity, find, settings, target
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.errors import NoSuchExample
from msgspec.structs import replace
from torch import Tensor

from stn_export.errors import one_line
from stn_export.program.specs import Arrays, Batch
from stn_export.results.tolerances import COUNT, TOLERANCES, Tolerance, compare
from stn_export.run.manifest import Artifact
from stn_export.run.records import Check, Comparison
from stn_export.runners import Runner, RunnerSpec
from stn_export.verify.challenges import range_of
from stn_export.verify.checks import compare_points, feed, first_failure
from stn_export.verify.oracle import Challenge, Reference
from stn_export.verify.points import Point, in_pixels

# Structured images, each described by a few parameters.


STRIPES = ("rows", "columns", "a checkerboard")
Colour = tuple[int, ...]  # a level of 255 for each channel


class Picture(Protocol):
    """An image described by its parameters; ``str`` puts them into words."""

    def draw(self, images: Tensor) -> Tensor:
        """Draw the image, uint8 C×H×W; ``images`` are the examples to start from, uint8 N×C×H×W."""


@dataclass(frozen=True)
class Changed:
    """An example that is cropped, mirrored, and changed in contrast and brightness, in this order."""

    index: int
    margin: int  # pixels cut off every side before it is enlarged again
    mirrored: bool
    contrast: int  # per cent more
    brightness: int  # steps of 255

    def draw(self, images: Tensor) -> Tensor:
        """Draw the changed example."""
        height, width = images.shape[2:]
        rows, columns = (slice(self.margin, size - self.margin) for size in (height, width))
        image = F.interpolate(images[self.index, None, :, rows, columns].float(), (height, width))[0]
        image = image.flip(-1) if self.mirrored else image
        return _bytes((image - 127.5) * (1 + self.contrast / 100) + 127.5 + self.brightness)

    def __str__(self) -> str:
        changes = {
            f"without its outer {self.margin} px": self.margin,
            "mirrored": self.mirrored,
            f"contrast {self.contrast:+d} %": self.contrast,
            f"brightness {self.brightness:+d}": self.brightness,
        }
        return ", ".join([f"example {self.index}", *(words for words, made in changes.items() if made)])


@dataclass(frozen=True)
class Noisy:
    """An example blended with uniform noise; if no input is an image, all its float inputs are blended."""

    index: int
    share: int  # per cent of noise
    seed: int

    def draw(self, images: Tensor) -> Tensor:
        """Draw the blended example."""
        noise = torch.randint(256, images.shape[1:], generator=torch.Generator().manual_seed(self.seed))
        return _bytes(images[self.index] * (1 - self.share / 100) + noise * (self.share / 100))

    def blend(self, row: Mapping[str, Tensor], ranges: Mapping[str, tuple[float, float]]) -> dict[str, Tensor]:
        """Blend the example's float inputs with noise over their ``ranges``."""
        random, blended = torch.Generator().manual_seed(self.seed), dict(row)
        for name, (low, high) in ranges.items():
            noise = low + (high - low) * torch.rand(row[name].shape, generator=random)
            blended[name] = row[name] * (1 - self.share / 100) + noise.to(row[name].dtype) * (self.share / 100)
        return blended

    def __str__(self) -> str:
        return f"example {self.index} under {self.share} % noise (seed {self.seed})"


@dataclass(frozen=True)
class Stripes:
    """Stripes of one width, or a checkerboard."""

    kind: str  # one of STRIPES
    width: int
    colours: tuple[Colour, Colour]

    def draw(self, images: Tensor) -> Tensor:
        """Draw the stripes."""
        height, width = images.shape[2:]
        y, x = torch.arange(height)[:, None] // self.width, torch.arange(width) // self.width
        second = {"rows": y + 0 * x, "columns": x + 0 * y, "a checkerboard": x + y}[self.kind] % 2
        return torch.where(second.bool(), _flat(self.colours[1]), _flat(self.colours[0]))

    def __str__(self) -> str:
        return f"{self.kind} of {self.width} px in {_name(self.colours[0])} and {_name(self.colours[1])}"


@dataclass(frozen=True)
class Edge:
    """Two flat halves, side by side or one above the other."""

    upright: bool
    at: int  # where the second begins, in pixels
    colours: tuple[Colour, Colour]

    def draw(self, images: Tensor) -> Tensor:
        """Draw both halves."""
        image = _flat(self.colours[0]).expand(images.shape[1:]).clone()
        (image[:, :, self.at :] if self.upright else image[:, self.at :])[:] = _flat(self.colours[1])
        return image

    def __str__(self) -> str:
        if self.colours[0] == self.colours[1]:
            return f"flat {_name(self.colours[0])}"
        axis = "column" if self.upright else "row"
        return f"{_name(self.colours[0])} up to {axis} {self.at}, from there {_name(self.colours[1])}"


@dataclass(frozen=True)
class Sparse:
    """A black image with a few coloured pixels."""

    pixels: tuple[tuple[int, int, Colour], ...]  # y, x, colour

    def draw(self, images: Tensor) -> Tensor:
        """Draw the pixels."""
        image = torch.zeros(images.shape[1:], dtype=torch.uint8)
        for y, x, colour in self.pixels:
            image[:, y, x] = torch.tensor(colour, dtype=torch.uint8)
        return image

    def __str__(self) -> str:
        pixels = [f"{_name(colour)} at row {y}, column {x}" for y, x, colour in self.pixels]
        return f"black but for {', '.join(pixels)}"


def _bytes(image: Tensor) -> Tensor:
    return image.round().clamp(0, 255).to(torch.uint8)


def _flat(colour: Colour) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8)[:, None, None]


def _name(colour: Colour) -> str:
    return f"grey {colour[0]}" if len(set(colour)) == 1 else f"{'RGB' if len(colour) == 3 else 'levels'} {colour}"


MOST_IMAGES = 4
MOST_PIXELS = 8
SEED = 0
ROUND = 100  # examples per round; between rounds the time is checked and the search restarts
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
LARGEST_MARGIN, LEAST_LEFT = 12, 8  # pixels
Items = tuple[Picture, ...]


def batches(examples: int, size: tuple[int, int, int] | None) -> st.SearchStrategy[Items]:
    """Return a strategy for batches of one to four images, the simplest kind first.

    Args:
        examples: how many there are to be changed or blended.
        size: channels, height and width; None if no input is an image.
    """
    noisy = st.builds(Noisy, st.integers(0, examples - 1), st.integers(1, 100), st.integers(0, 2**16))
    kind = st.one_of(*_pictures(examples, *size), noisy) if size else noisy
    return st.lists(kind, min_size=1, max_size=MOST_IMAGES).map(tuple)


def _pictures(examples: int, channels: int, height: int, width: int) -> Iterator[st.SearchStrategy[Picture]]:
    colours = LEVELS.map(lambda level: (level,) * channels) | st.tuples(*[LEVELS] * channels)
    two, least = st.tuples(colours, colours), min(height, width)
    pixels = st.tuples(st.integers(0, height - 1), st.integers(0, width - 1), colours)
    margin = st.integers(0, max(0, min(LARGEST_MARGIN, (least - LEAST_LEFT) // 2)))
    yield st.one_of(
        *(
            st.builds(Edge, st.just(upright), st.integers(1, max(1, side - 1)), two)
            for upright, side in ((False, height), (True, width))
        )
    )
    yield st.builds(Sparse, st.lists(pixels, min_size=1, max_size=MOST_PIXELS).map(tuple))
    yield st.builds(Stripes, st.sampled_from(STRIPES), st.integers(1, max(1, least // 2)), two)
    changes = margin, st.booleans(), st.integers(-100, 300), st.integers(-255, 255)
    yield st.builds(Changed, st.integers(0, examples - 1), *changes)


def describe(batch: Items) -> str:
    """Describe the images of a batch in words."""
    return "; ".join(map(str, batch))


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    ``examples`` batches were tried; ``excess`` is the largest error of an output in units of its tolerance (1.0 at the
    bound, infinite if an output was missing or not a number), at the batch that ``worst`` describes. ``failure``
    describes the smallest batch that fails, and how; it is empty if none was found.
    """

    examples: int
    excess: float
    worst: str
    failure: str


@dataclass(frozen=True)
class _Canvas:
    """The input that images are drawn for, and the examples to start from, uint8 N×C×H×W."""

    name: str
    images: Tensor


class _Drawer:
    """Convert drawn images to batches for a program."""

    def __init__(self, reference: Reference) -> None:
        self.contract, self.examples = reference.contract, reference.examples
        pictures = (spec for spec in self.contract.inputs if spec.is_picture and spec.is_float and spec.batched)
        floating = [spec.name for spec in self.contract.inputs if spec.is_float and spec.batched]
        self.ranges = {name: range_of(self.examples.inputs[name]) for name in floating}
        self.canvas = next((self._canvas(spec.name) for spec in pictures), None)

    @property
    def size(self) -> tuple[int, int, int] | None:
        """Return channels, height and width of an image; None if no input is one."""
        if self.canvas is None:
            return None
        channels, height, width = self.canvas.images.shape[1:]
        return channels, height, width

    def _canvas(self, name: str) -> _Canvas:
        example, (low, high) = self.examples.inputs[name], self.ranges[name]
        if example.dtype == torch.uint8:
            return _Canvas(name, example)
        return _Canvas(name, ((example - low) / max(high - low, 1e-30) * 255).to(torch.uint8))

    def batch(self, items: Items) -> Batch:
        """Return as many examples as there are items, or as the program's static batch."""
        count = self.contract.batch or len(items)
        rows = [self._row(position, items[position % len(items)]) for position in range(count)]
        return rows[0] | {name: torch.cat([row[name] for row in rows]) for name in self.examples.batched}

    def _row(self, position: int, item: Picture) -> dict[str, Tensor]:
        row = self.examples.rows(torch.tensor([getattr(item, "index", position) % len(self.examples)]))
        if self.canvas is None:
            if not isinstance(item, Noisy):
                raise TypeError(f"there is no input to draw {item} into")
            return item.blend(row, self.ranges)
        name = self.canvas.name
        drawn, (low, high) = item.draw(self.canvas.images)[None], self.ranges[name]
        dtype = self.examples.inputs[name].dtype
        return row | {name: drawn if dtype == torch.uint8 else (low + drawn.double() * (high - low) / 255).to(dtype)}


class _Hunt:
    """The search for one artifact in one runner: what was tried, and the time limit."""

    def __init__(self, runner: Runner, reference: Reference, tolerance: Tolerance, seconds: float) -> None:
        self.runner, self.reference, self.tolerance = runner, reference, tolerance
        self.drawer = _Drawer(reference)
        self.end = time.monotonic() + seconds
        self.tried: dict[Items, tuple[float, bool]] = {}  # excess, and whether the batch fails

    @property
    def late(self) -> bool:
        """Return whether the time is over."""
        return time.monotonic() >= self.end

    def fails(self, batch: Items) -> bool:
        """Return whether a batch fails; once the time is over, an untried batch does not, which ends the shrinking."""
        if batch not in self.tried:
            if self.late:
                return False
            self.tried[batch] = self.run(batch)
        excess, failed = self.tried[batch]
        target(min(excess, 1e9))
        return failed

    def run(self, batch: Items) -> tuple[float, bool]:
        """Return the excess of a batch, and whether it fails."""
        try:
            results, actual, challenge = self.compare(batch)
        except Exception:  # any exception is a failure, described by ``explain``
            return INFINITE, True
        outputs = [point for name, point in self.reference.points.items() if point.site is None and name in results]
        if any(point.name not in actual for point in outputs):
            return INFINITE, True
        usual = [point for point in outputs if point.kind != COUNT]
        excess = max((self.excess(point, actual, challenge) for point in usual), default=0.0)
        return excess, not all(results.values())

    def excess(self, point: Point, actual: Arrays, challenge: Challenge) -> float:
        """Return an output's error in units of its bound for inputs near the data."""
        bound = self.tolerance.at(point.kind, point.scale)
        excess = compare(actual[point.name], challenge.true[point.name], bound).excess
        return INFINITE if excess is None else excess

    def compare(self, batch: Items) -> tuple[dict[str, Comparison], Arrays, Challenge]:
        """Run the artifact on a batch and compare it with the reference."""
        challenge = self.reference.challenge(self.drawer.batch(batch))
        actual = in_pixels(
            feed(self.runner.points, challenge.batch, self.runner.contract, self.reference.rows), challenge.units
        )
        return (
            compare_points(self.runner, actual, challenge, self.reference, self.tolerance, far=True),
            actual,
            challenge,
        )

    def explain(self, batch: Items) -> str:
        """Describe why a batch fails."""
        try:
            return first_failure(*self.compare(batch), self.reference) or "the failure is not reproducible"
        except Exception as problem:
            return one_line(problem)

    def result(self, smallest: Items | None) -> SearchResult:
        """Return the search's outcome, given the smallest batch that fails."""
        worst = max(self.tried, key=lambda batch: self.tried[batch][0], default=())
        excess = self.tried[worst][0] if worst else 0.0
        failure = f"search: {describe(smallest)}: {self.explain(smallest)}" if smallest else ""
        return SearchResult(len(self.tried), excess, describe(worst), failure)


def search(
    runner: Runner,
    reference: Reference,
    tolerance: Tolerance,
    seconds: float,
    seed: int = SEED,
    examples: int = MOST_EXAMPLES,
) -> SearchResult:
    """Search for a batch whose points exceed ``tolerance.far``, and shrink it.

    Args:
        runner: of the artifact.
        reference: of the program that the artifact was made from.
        tolerance: of the artifact's precision.
        seconds: how long to search; a late find is shrunk as far as time allows.
        seed: the same seed tries the same batches in the same order.
        examples: how many to draw at most, in rounds of 100.
    """
    hunt = _Hunt(runner, reference, tolerance, seconds)
    strategy = batches(len(reference.examples), hunt.drawer.size)
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
    """Keep Hypothesis's files, which it puts into the working directory, in a temporary one."""
    with tempfile.TemporaryDirectory() as folder:
        set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            set_hypothesis_home_dir(None)


def with_search(
    check: Check, artifact: Artifact, path: Path, spec: RunnerSpec, reference: Reference, seconds: float
) -> Check:
    """Search for ``seconds`` if the check passed, and add the outcome; a find makes the check fail."""
    if check.failure:
        return check
    runner = spec.open(path, spec.verified_as(artifact.contract))
    result = search(runner, reference, TOLERANCES[check.precision], seconds)
    return replace(check, failure=result.failure, search=asdict(result) | {"seconds": seconds, "seed": SEED})
