"""An artifact over all examples: predictions, grids in pixels, the examples that differ most."""

from dataclasses import dataclass

import numpy as np

from stn_export.artifacts.records import GridPixels
from stn_export.comparison.compare import distance, same_places, unlike_where_not_finite
from stn_export.comparison.tolerances import COUNT, GRID, THETA
from stn_export.program.specs import Arrays, Batch
from stn_export.runners import Runner
from stn_export.verify.feeding import feed, uncut
from stn_export.verify.points import Point, in_pixels
from stn_export.verify.truth import Truth, parts_of, predictions, share_of

MOST_DIFFERENT = 10


@dataclass(frozen=True)
class OverExamples:
    """An artifact over all examples.

    ``whole`` is how many of each output's whole numbers are right, and of how many, ``rms`` the root mean squared error
    of each other output against its root mean square; ``broken`` names what is not finite; ``left_out`` is what could
    not be compared.
    """

    agreement: float
    accuracy: float
    grid_pixels: dict[str, GridPixels]
    differing: tuple[tuple[int, float, str], ...]
    whole: dict[str, tuple[int, int]]
    rms: dict[str, float]
    broken: str
    left_out: set[str]


def over_examples(runner: Runner, truth: Truth) -> OverExamples:
    """Agreement, accuracy, the grids' errors in pixels, and the examples that differ most."""
    tally = _Tally(truth)
    for (batch, count), true in zip(parts_of(truth.examples, truth.program), truth.parts, strict=True):
        actual = in_pixels(feed(runner.points, batch, runner.contract, truth.rows), truth.units)
        shown = {name: actual[name][: len(true[name])] for name in true if name in actual}
        for name, value in _without_unclear(shown, true, batch, truth).items():
            tally.add(truth.points[name], value, true[name], count)
    batch, _ = next(parts_of(truth.examples, truth.program))
    return tally.result(uncut(batch, runner.contract, truth) & {spec.name for spec in truth.contract.outputs})


def _without_unclear(shown: Arrays, true: Arrays, batch: Batch, truth: Truth) -> Arrays:
    """The same with the truth where float32 eager itself is finite and float64 is not, or the other way round."""
    odd = [name for name, value in shown.items() if unlike_where_not_finite(value, true[name])]
    if not odd:
        return shown
    eager = truth.eager(batch)
    clear = {name: same_places(eager[name][: len(true[name])], true[name]) for name in odd}
    return shown | {name: np.where(clear[name], shown[name], true[name]) for name in odd}


class _Tally:
    """What is added up over the examples, by point."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.sums: dict[str, np.ndarray] = {}  # of errors, of what they are measured in, and the worst
        self.strayed: dict[str, list[np.ndarray]] = {}  # by output, the worst error of each example
        self.classes: list[np.ndarray] = []
        self.broken = ""

    def add(self, point: Point, actual: np.ndarray, true: np.ndarray, count: int) -> None:
        """A part of ``count`` examples; whole arrays where a point is not one example's own."""
        if unlike := unlike_where_not_finite(actual, true):
            self.broken = self.broken or f"{point.name} over the examples: {unlike}"
        if point.kind == GRID:
            pixels = np.linalg.norm(distance(actual, true), axis=-1)
            self._sum(point.name, pixels.sum(), pixels.size, pixels.max())
        elif point.kind == THETA:
            return
        elif point.kind == COUNT:
            self._sum(point.name, (actual == true).sum(), true.size, 0.0)
        else:
            error = distance(actual, true)
            self._sum(point.name, np.square(error).sum(), np.square(true[np.isfinite(true)]).sum(), error.max())
            if point.rows:
                self.strayed.setdefault(point.name, []).append(error.reshape(count, -1).max(axis=1))
        if point.name == self.truth.scored:
            self.classes.append(predictions(actual))

    def _sum(self, name: str, error: float, whole: float, worst: float) -> None:
        before = self.sums.get(name, np.zeros(3))
        self.sums[name] = np.array([before[0] + error, before[1] + whole, max(before[2], worst)])

    def result(self, left_out: set[str]) -> OverExamples:
        """All of it."""
        points, sums = self.truth.points, self.sums
        shares = {name: float(error / max(whole, 1e-300)) for name, (error, whole, _) in sums.items()}
        grids = {
            site.name: (shares[name], sums[name][2])
            for name in sums
            if points[name].kind == GRID and (site := points[name].site) is not None
        }
        outputs = [name for name in sums if points[name].kind not in (GRID, COUNT)]
        classes = np.concatenate(self.classes) if self.classes else None
        return OverExamples(
            agreement=share_of(classes, self.truth.predicted),
            accuracy=share_of(classes, self.truth.examples.labels),
            grid_pixels={
                site: GridPixels(mean=mean, worst=float(worst)) for site, (mean, worst) in sorted(grids.items())
            },
            differing=self._differing(),
            whole={name: (int(sums[name][0]), int(sums[name][1])) for name in sums if points[name].kind == COUNT},
            rms={name: shares[name] ** 0.5 for name in outputs if name != self.truth.scored},
            broken=self.broken,
            left_out=left_out,
        )

    def _differing(self) -> tuple[tuple[int, float, str], ...]:
        """The examples whose worst output, in units of its magnitude, strays furthest."""
        if not self.strayed:
            return ()
        names = sorted(self.strayed, key=list(self.truth.points).index)
        errors = np.stack([np.concatenate(self.strayed[name]) for name in names])
        relative = errors / np.array([[self.truth.points[name].rounding] for name in names])
        worst = relative.argmax(axis=0)
        furthest = np.argsort(-relative.max(axis=0))[:MOST_DIFFERENT]
        return tuple((int(i), float(errors[worst[i], i]), names[worst[i]]) for i in furthest)
