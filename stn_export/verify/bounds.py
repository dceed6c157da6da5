"""Bound the difference of two files without a float64 reference: by precision, dtype, channel and input rounding.

A row is the comparison of one output on one set of inputs; one in which the output varies nowhere says nothing.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from stn_export.errors import require_choice
from stn_export.program.specs import Arrays, Batch, numbers_of
from stn_export.results.tolerances import (
    ANY,
    NOTHING,
    OUTPUT,
    RESAMPLED,
    TOLERANCES,
    WARPED,
    Bound,
    compare_typed,
    distance,
)
from stn_export.run.records import finite

ROUNDING = 2.0**-22  # relative rounding of inputs: float32 has 24 bits
DRAWS = 2
FURTHER = 4.0
MOVED = 4  # multiple of the largest movement that is allowed
IMAGE = 32  # pixels: the image size for which bounds are set
JUDGED = 1000  # examples, over which int8 is judged
SAYS_NOTHING = "says nothing"
ONE = "one value: "  # mark of an output that holds one value only


@dataclass(frozen=True)
class Still:
    """Marks of an output that is the same for all examples, or that belongs to one example, and of the inputs."""

    output: str
    inputs: str


@dataclass(frozen=True)
class Row:
    """The comparison of one output on one set of inputs; ``reason`` is empty if both sides agree.

    ``note`` says why there was nothing to compare on these inputs; if that holds for all inputs, it becomes the
    ``reason`` and the row is not ``comparable``. ``bound`` is the largest difference allowed. ``artifact`` is set if
    two runs are compared. ``still`` is set if the output is the same for all examples.
    """

    output: str
    inputs: str
    max_abs: float | None = None
    max_rel: float | None = None
    agreement: float | None = None
    reason: str = ""
    rule: str = ""
    artifact: str = ""
    comparable: bool = True
    note: str = ""
    bound: float | None = None
    still: Still | None = None

    @property
    def verdict(self) -> str:
        """Return the verdict in words."""
        if (self.note or self.reason).startswith(SAYS_NOTHING):
            return self.note or self.reason
        if self.note:
            return "not compared"
        if not self.reason:
            return "equal" if self.rule.startswith("fp32") else "within bounds"
        return "DIFFERENT" if self.comparable else "not comparable"

    @property
    def silent(self) -> bool:
        """Whether both sides give the same whatever the inputs, so that it says nothing that they agree."""
        return self.note.startswith(SAYS_NOTHING)

    def as_dict(self) -> dict:
        """Convert to JSON-ready values with the verdict; ``passed`` is None if there was nothing to compare."""
        content = {name: value for name, value in asdict(self).items() if name != "still"}
        return finite({"passed": None if self.note else not self.reason} | content)


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


def compare_output(a: np.ndarray, b: np.ndarray, precision: str, name: str, inputs: str, allowed: Allowance) -> Row:
    """Compare output ``a`` with output ``b`` on the same inputs."""
    result = compare_typed(a, b, allowed.bound, allowed.room)
    if result.reason.startswith(NOTHING):
        return Row(name, inputs, note=result.reason)
    tolerance = TOLERANCES[precision]
    reason, agreement = result.reason, result.agreement if a.ndim == 2 and a.shape[1] > 1 else None
    if not reason and math.isinf(allowed.bound.absolute) and inputs == f"examples ×{JUDGED}":
        if agreement is None:
            wide = [values.astype(np.float64) for values in (a, b)]
            off = float(np.sqrt(np.square(wide[0] - wide[1]).mean() / max(np.square(wide[1]).mean(), 1e-30)))
            reason = "" if off <= 2 * tolerance.rms else f"{off:.2%} apart in root mean square"
        elif agreement < tolerance.agreement:
            reason = f"{agreement:.2%} of the predictions agree, less than {tolerance.agreement:.2%}"
    max_abs, max_rel, agreed_on = (finite(value) for value in (result.max_abs, result.max_rel, agreement))
    rule = rule_of(precision) if math.isinf(allowed.bound.absolute) else allowed.rule
    return Row(name, inputs, max_abs, max_rel, agreed_on, reason, rule, bound=finite(allowed.most(b)))


def rule_of(precision: str) -> str:
    """Describe the criterion for outputs without a bound."""
    return f"{precision}: {TOLERANCES[precision].agreement:.0%} of the predictions agree on examples ×{JUDGED}"


# What rows say together, and rows that say nothing.


def settled(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of one pair of files; for outputs never compared, the notes become reasons.

    Outputs that say nothing become reasons only if no output says anything.
    """
    rows = _hushed(rows)
    compared = {row.output for row in rows if not row.note and row.comparable}
    seen = compared | {row.output for row in rows if row.silent}

    def lost(row: Row) -> bool:
        return not compared or (bool(row.output) and not row.silent and row.output not in seen)

    return [replace(row, reason=row.note, note="", comparable=False) if row.note and lost(row) else row for row in rows]


def _hushed(rows: Sequence[Row]) -> list[Row]:
    """Note rows of one example, or one number, that the other rows of the output show to say nothing.

    Either several examples gave the same as this one, or the output is the same in every row though the inputs differ.
    """
    varying = {row.output for row in rows if not row.note and row.still is None}
    dead = {(row.output, row.still.output) for row in rows if row.still and row.silent}
    outputs, inputs = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for row in rows:
        if row.still:
            outputs[row.output].add(row.still.output)
            inputs[row.output].add(row.still.inputs)

    def silent(name: str, still: Still) -> bool:
        never = name not in varying and len(outputs[name]) == 1 and len(inputs[name]) > 1
        return never or (name, still.output) in dead

    return [
        replace(row, note=_said(row.still.output))
        if row.still and not (row.note or row.reason) and silent(row.output, row.still)
        else row
        for row in rows
    ]


def quiet(row: Row, a: np.ndarray, b: np.ndarray, batch: Batch) -> Row:
    """Mark a passed row in which neither side's output varies, and note it if the inputs do.

    Args:
        row: of the output.
        a: the output of one side.
        b: that of the other side.
        batch: the inputs of both.
    """
    inputs = [numbers_of(values) for values in batch.values()]
    count = max((len(values) for values in inputs if values.ndim and b.ndim and len(values) == len(b)), default=1)
    one = all(_is_one(values.reshape(-1)) for values in (a, b))
    if row.reason or row.note or not (one or all(_is_one(values[:count]) for values in (a, b) if values.ndim)):
        return row
    examples = any(len(values) == count and not _is_one(values) for values in inputs if values.ndim)
    numbers = any(not _is_one(values.reshape(-1)) for values in inputs)
    if count > 1 and not (examples or (one and numbers)):
        return row  # equal examples have equal outputs
    if not numbers and any(values.size > 1 for values in inputs):
        return row
    value = np.abs(b.reshape(-1)[0]) if b.dtype.kind == "f" and not b.any() else b.reshape(-1)[0]  # not -0
    mark = ONE + str(value).removesuffix(".0") if one else _digest(b[:1])
    sure = (one and b.size > 1 and numbers) or (count > 1 and examples)
    return replace(row, note=_said(mark) if sure else "", still=Still(mark, _digest(*inputs)))


def _said(mark: str) -> str:
    every = f"every output is {mark.removeprefix(ONE)}" if mark.startswith(ONE) else "every example gives the same"
    return f"{SAYS_NOTHING}: {every}"


def _is_one(values: np.ndarray) -> bool:
    """Return whether everything along the first axis is the same."""
    floats = values.dtype.kind == "f"
    return bool(values.size) and np.array_equal(values, np.broadcast_to(values[:1], values.shape), equal_nan=floats)


def _digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(str(array.shape).encode() + array.tobytes() for array in arrays)).hexdigest()
