"""Quantise a network and judge it on its calibration examples; layers that cost too much go back to float32.

Bounds are those that ``verify`` asks of int8 files, see ``comparison.tolerances``. ONNX Runtime's default session runs
both files: only its optimised kernels compute in bytes.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import onnx

from stn_export.artifacts.records import finite
from stn_export.comparison.tolerances import TOLERANCES, Tolerance, beyond
from stn_export.errors import UserError
from stn_export.export.quantise import Calibration, quantisable, quantise, sensitive_nodes
from stn_export.graphs.graph import as_array
from stn_export.graphs.placement import cpu_session
from stn_export.program.specs import Arrays

RETURNS = 4  # how many layers may go back to float32


@dataclass(frozen=True)
class Cost:
    """What int8 costs against float32 on the calibration examples.

    Attributes:
        examples: how many have labels.
        agreement: the share of them whose likeliest class is float32's; NaN without labels.
        accuracy_loss: by what share the accuracy falls; NaN without labels.
        wrong: by output of whole numbers, how many differ and of how many.
        rms: by other output, the root mean squared error against the root mean square.
    """

    examples: int
    agreement: float
    accuracy_loss: float
    wrong: dict[str, tuple[int, int]]
    rms: dict[str, float]

    def shortfall(self, tolerance: Tolerance) -> str:
        """Say what is out of bounds, or return an empty string."""
        if beyond(self.examples * self.accuracy_loss, tolerance.accuracy_loss, self.examples):
            return f"loses {100 * self.accuracy_loss:.1f} points, more than {100 * tolerance.accuracy_loss:g}"
        if beyond(self.examples * (1 - self.agreement), 1 - tolerance.agreement, self.examples):
            return f"agrees with float32 on {self.agreement:.1%} of the examples, less than {tolerance.agreement:.0%}"
        for name, (wrong, count) in self.wrong.items():
            if beyond(wrong, 1 - tolerance.agreement, count):
                return f"gets {wrong} of {count} {name} wrong, more than {1 - tolerance.agreement:.0%}"
        for name, error in self.rms.items():
            if not error <= tolerance.rms:
                return f"is {error:.0%} off at {name} in root mean square, more than {tolerance.rms:.0%}"
        return ""


@dataclass(frozen=True)
class Quantised:
    """An int8 model, the layers that went back to float32 for their cost, those that never left it, and the cost."""

    model: onnx.ModelProto
    returned: tuple[str, ...]
    kept: tuple[str, ...]
    cost: Cost

    def as_dict(self) -> dict:
        """JSON-ready, without the model."""
        layers = {"returned_to_float32": list(self.returned), "kept_in_float32": list(self.kept)}
        return layers | {"calibration": finite(asdict(self.cost))}


def to_int8(model: onnx.ModelProto, calibration: Calibration) -> Quantised:
    """Quantise as many layers as the bounds of int8 allow on the calibration examples.

    Where the whole file falls out of them, up to ``RETURNS`` layers go back to float32, the most sensitive one first.

    Raises:
        UserError: where nothing can be quantised, or it costs too much all the same.
    """
    if not calibration.batches:
        raise UserError(
            "no example that int8 is calibrated on has the sizes that it takes", "bring others, or use fp32"
        )
    kept = set(sensitive_nodes(model))
    layers = [name for name in quantisable(model) if name not in kept]
    expected = outputs(model, calibration.batches)
    ranked: list[str] = []
    shortfalls: list[str] = []
    for returns in range(min(RETURNS, max(0, len(layers) - 1)) + 1):
        ranked = by_sensitivity(model, layers, calibration) if returns == 1 else ranked
        candidate = quantise(model, calibration.batches, ranked[:returns])
        found = cost(expected, outputs(candidate, calibration.batches), calibration)
        shortfalls.append(found.shortfall(TOLERANCES["int8"]))
        if not shortfalls[-1]:
            never = tuple(name for name in quantisable(model) if name in kept)
            return Quantised(candidate, tuple(ranked[:returns]), never, found)
    still = f"; with {', '.join(ranked[:returns])} in float32 it {shortfalls[-1]}" if returns else ""
    raise UserError(f"{shortfalls[0]}{still}: not written", "use fp32")


def by_sensitivity(model: onnx.ModelProto, layers: Sequence[str], calibration: Calibration) -> list[str]:
    """Rank layers by the error that each one alone in int8 causes over the first batch, the largest first."""
    batches = calibration.batches[:1]
    expected, errors = outputs(model, batches), {}
    for layer in layers:
        alone = outputs(quantise(model, batches, [name for name in layers if name != layer]), batches)
        errors[layer] = sum(_relative(alone[name], expected[name]) for name in expected)
    return sorted(layers, key=lambda layer: -errors[layer])


def cost(expected: Arrays, actual: Arrays, calibration: Calibration) -> Cost:
    """Compare all outputs of an int8 model with those of its float32 model."""
    rest = [name for name in expected if name != calibration.scored]
    whole = [name for name in rest if expected[name].dtype.kind != "f"]
    labels, agreement, loss = calibration.labels, math.nan, math.nan
    if calibration.scored:
        scores = (values[calibration.scored].reshape(len(labels), -1) for values in (expected, actual))
        before, after = (each.argmax(1) for each in scores)
        agreement = float((before == after).mean())
        loss = float((before == labels).mean() - (after == labels).mean())
    return Cost(
        examples=len(labels),
        agreement=agreement,
        accuracy_loss=loss,
        wrong={name: (int((actual[name] != expected[name]).sum()), expected[name].size) for name in whole},
        rms={name: _relative(actual[name], expected[name]) for name in rest if name not in whole},
    )


def outputs(model: onnx.ModelProto, batches: Sequence[Arrays]) -> Arrays:
    """Run a model in ONNX Runtime on the CPU as users do; outputs by name, those of all batches in one."""
    session = cpu_session(model, intra_op_num_threads=1)
    names, parts = [each.name for each in session.get_outputs()], defaultdict(list)
    for batch in batches:
        for name, value in zip(names, session.run(names, batch), strict=True):
            parts[name].append(np.atleast_1d(as_array(value)))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _relative(actual: np.ndarray, expected: np.ndarray) -> float:
    """The root mean squared error against the root mean square."""
    error = actual.astype(np.float64) - expected
    return float(np.sqrt(np.square(error).sum() / max(np.square(expected.astype(np.float64)).sum(), 1e-300)))
