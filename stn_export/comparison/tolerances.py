"""How far an artifact may lie from the truth: one table, a row a precision, each with its reason. No I/O."""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Bound:
    """An element passes where ``|actual - expected| <= absolute + relative * |expected|``."""

    absolute: float
    relative: float = 0.0

    def at_least(self, absolute: float) -> "Bound":
        """The same where ``absolute`` is less than its own, else with that."""
        return replace(self, absolute=max(self.absolute, absolute))

    def plus(self, absolute: float) -> "Bound":
        """The same with so much more room everywhere."""
        return replace(self, absolute=self.absolute + absolute)

    def times(self, factor: float) -> "Bound":
        """One that is wider by a factor."""
        return Bound(factor * self.absolute, factor * self.relative)


ANY = Bound(float("inf"))


@dataclass(frozen=True)
class Tolerance:
    """What an artifact must keep to, measured against float64.

    ``theta``, ``grid`` (in pixels), ``warped`` and ``log_probs`` bound each element. An error of up to ``own`` times
    the worst of eager PyTorch in float32 is never held against an artifact, because some networks magnify roundings
    more than the bounds foresee; the worst error at any point may be ``multiple`` times eager's. Over the test set at
    least ``agreement`` of the predictions must be those of float32, and the accuracy may fall by ``accuracy_loss``.
    ``reason`` says why these figures.
    """

    theta: Bound
    grid: Bound
    warped: Bound
    log_probs: Bound
    multiple: float
    agreement: float
    accuracy_loss: float
    reason: str
    own: float = 2.0

    def allowing(self, eager_errors: dict[str, float]) -> "Tolerance":
        """The same for a network on which float32 eager strays from float64 by as much, by point."""
        bounds = {point: self.at(point).at_least(self.own * error) for point, error in eager_errors.items()}
        return replace(self, **bounds)

    def widened(self, eager_errors: dict[str, float]) -> "Tolerance":
        """The same far from the data, where float32 eager strays as much: ``multiple`` times that is allowed on top.

        There a network magnifies roundings: the bounds, made for the fixed challenges, would call every float32
        implementation wrong. Reduced precisions have no multiple; theirs stay as they are.
        """
        if math.isinf(self.multiple):
            return self
        return replace(
            self, **{point: self.at(point).plus(self.multiple * error) for point, error in eager_errors.items()}
        )

    def at(self, point: str) -> Bound:
        """The bound of one point."""
        return getattr(self, point)


FP16 = Tolerance(
    theta=Bound(5e-3, 5e-3),
    grid=Bound(0.1, 5e-3),
    warped=Bound(0.1),
    log_probs=Bound(0.1, 0.02),
    multiple=float("inf"),
    agreement=0.995,
    accuracy_loss=0.005,
    reason="half precision keeps 11 bits, 5e-4 a rounding, through seven layers",
)

TOLERANCES = {
    "fp32": Tolerance(
        theta=Bound(2e-6, 2e-6),
        grid=Bound(1e-4, 2e-6),
        warped=Bound(1e-4),
        log_probs=Bound(2e-5, 5e-6),
        multiple=8.0,
        agreement=0.999,
        accuracy_loss=0.001,
        reason="a few float32 roundings; log-probabilities reach -30 on noise, where one of them is 2e-6",
    ),
    "tf32": replace(
        FP16, reason="float32 files whose products a GPU computes in TF32, which keeps 11 bits as half precision does"
    ),
    "fp16": FP16,
    "bf16": Tolerance(
        theta=Bound(0.05, 0.05),
        grid=Bound(1.0, 0.05),
        warped=Bound(1.0),
        log_probs=Bound(0.5, 0.15),
        multiple=float("inf"),
        agreement=0.98,
        accuracy_loss=0.01,
        reason="bfloat16 keeps 8 bits, 4e-3 a rounding, through seven layers",
    ),
    "int8": Tolerance(
        theta=ANY,
        grid=ANY,
        warped=ANY,
        log_probs=ANY,
        multiple=float("inf"),
        agreement=0.9,
        accuracy_loss=0.01,
        reason="quantised activations saturate on inputs unlike the calibration set: judged by its predictions",
    ),
}

# What every artifact must have gone through before a run is called verified; other runners come on top.
REQUIRED_RUNNERS = {
    "checkpoint": "eager-cpu",
    "torchscript": "torchscript-cpu",
    "pt2": "pt2-cpu",
    "aotinductor": "aotinductor-cpu",
    "aotinductor-cuda": "aotinductor-cuda",
    "onnx": "onnxruntime-cpu",
}
