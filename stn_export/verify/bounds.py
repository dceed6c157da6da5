"""Bound the difference of two files without a float64 reference: by precision, dtype, channel and input rounding."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stn_export.errors import require_choice
from stn_export.program.specs import Arrays
from stn_export.results.tolerances import ANY, OUTPUT, RESAMPLED, TOLERANCES, WARPED, Bound, distance

ROUNDING = 2.0**-22  # relative rounding of inputs: float32 has 24 bits
DRAWS = 2
FURTHER = 4.0
MOVED = 4  # multiple of the largest movement that is allowed
IMAGE = 32  # pixels: the image size for which bounds are set


@dataclass(frozen=True)
class Asked:
    """What the user sets for a comparison: a precision instead of the assumed one, or explicit bounds."""

    precision: str | None = None
    atol: float | None = None
    rtol: float | None = None

    def __post_init__(self) -> None:
        if self.precision is not None:
            require_choice("precision", self.precision, list(TOLERANCES))

    @property
    def bound(self) -> Bound | None:
        """Return ``|a - b| <= atol + rtol |b|`` if either is given, with 0 for the other; else None."""
        return None if self.atol is None and self.rtol is None else Bound(self.atol or 0.0, self.rtol or 0.0)


@dataclass(frozen=True)
class Allowance:
    """The bound of one output plus ``room``, whose shape broadcasts to the output; ``rule`` describes it in words."""

    bound: Bound
    room: np.ndarray | float
    rule: str
    movable: bool  # whether the movement of the output counts

    def most(self, values: np.ndarray) -> float:
        """Return the largest difference that is allowed for any element of ``values``."""
        if values.dtype.kind != "f":
            return 0.0
        magnitude = np.where(np.isfinite(values), np.abs(values.astype(np.float64)), 0.0)
        allowed = self.bound.absolute + self.bound.relative * magnitude + self.room
        return float(np.max(allowed, initial=0.0))

    def moved(self, movement: np.ndarray) -> "Allowance":
        """Return the bound widened by ``MOVED`` times how far a rounding of the inputs moves the output."""
        terms = (
            f"{self.rule} + {MOVED} × how far a rounding of the inputs, {ROUNDING:.1e} of each, moves b in the channel"
        )
        return Allowance(self.bound, self.room + MOVED * movement, terms, False)


def allowance(values: np.ndarray, kind: str, precision: str, asked: Asked) -> Allowance:
    """Return how far an output may differ from ``values``.

    Args:
        values: of the other side, which the output is judged by.
        kind: ``warped`` or ``resampled`` if our own manifest says so, else ``output``.
        precision: a row of ``TOLERANCES``.
        asked: bounds that override it.
    """
    if asked.bound:
        return Allowance(asked.bound, 0.0, f"as asked: {formula(asked.bound, '')}", False)
    bound = TOLERANCES[precision].apart(kind if kind in (WARPED, RESAMPLED) else OUTPUT, _longer(values, kind))
    if math.isinf(bound.absolute):
        return Allowance(ANY, 0.0, precision, False)
    if values.dtype.kind == "f":
        bound = Bound(bound.absolute, max(bound.relative, 2 * float(np.finfo(values.dtype).eps)))
    rule = f"{precision}: {formula(bound, ' of its channel')}"
    return Allowance(Bound(0.0, bound.relative), bound.absolute * scales(values), rule, precision == "fp32")


def formula(bound: Bound, where: str) -> str:
    """Describe a bound in words; ``where`` names the unit of its absolute part, empty for none."""
    unit = f" max |b|{where}" if where else ""
    return f"|a - b| <= {bound.absolute:.2g}{unit} + {bound.relative:.2g} |b|"


def _longer(values: np.ndarray, kind: str) -> float:
    """Return the longer side in units of 32 pixels: a rounding of the grid is more pixels in a larger image."""
    return max(1.0, max(values.shape[2:], default=1) / IMAGE) if kind in (WARPED, RESAMPLED) else 1.0


def channel_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes along which an output's numbers may have different meanings.

    For images that is the second axis, for other outputs all but the first; axes of size 1 do not count.
    """
    wide = tuple(axis for axis in range(1, len(shape)) if shape[axis] > 1)
    return tuple(axis for axis in wide if axis == 1) if len(shape) > 3 and len(wide) > 1 else wide


def scales(values: np.ndarray) -> np.ndarray:
    """Return the unit of the absolute bound: each channel's largest magnitude, but at least 1 or the largest of all.

    One large channel thus hides no other; a channel close to zero, such as the log-probabilities of a certain class, is
    rounded as numbers around 1 are.
    """
    magnitude = np.where(np.isfinite(values), np.abs(values.astype(np.float64)), 0.0)
    least = max(min(1.0, float(magnitude.max(initial=0.0))), float(np.finfo(np.float32).tiny))
    return np.maximum(_by_channel(magnitude), least)


def _by_channel(values: np.ndarray) -> np.ndarray:
    """Return each channel's largest value, broadcastable to ``values``; if an element has several, the least one."""
    others: list[tuple[int, ...] | None] = [
        tuple(a for a in range(values.ndim) if a != axis) for axis in channel_axes(values.shape)
    ]
    maxima = [values.max(axis=axis, keepdims=True, initial=0.0) for axis in others or [None]]
    return np.minimum.reduce(np.broadcast_arrays(*maxima))


def rounded(feeds: Arrays, seed: int, times: float = 1.0) -> Arrays:
    """Return the inputs with every float moved by ``times`` ``ROUNDING`` of itself, up or down at random."""
    random = np.random.default_rng(seed)
    return {
        name: (value * (1 + times * ROUNDING * random.choice((-1.0, 1.0), value.shape))).astype(value.dtype)
        if value.dtype.kind == "f"
        else value
        for name, value in feeds.items()
    }


def movement(values: np.ndarray, draws: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return how far an output moves in each channel, at most over some draws.

    Args:
        values: the output.
        draws: pairs of the output for inputs moved by one rounding and by ``FURTHER`` roundings the same way. An
            element that moves as far for one as for many has jumped over a threshold or to another pixel; that is not
            rounding and does not count.
    """
    if values.dtype.kind != "f" or not values.size:
        return np.zeros(())
    moves = [
        _continuous(*(distance(points, values) for points in draw)) for draw in draws if draw[0].shape == values.shape
    ]
    return np.maximum.reduce([_by_channel(move) for move in moves]) if moves else np.zeros(())


def _continuous(near: np.ndarray, far: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(near) & (far >= FURTHER / 2 * near), near, 0.0)
