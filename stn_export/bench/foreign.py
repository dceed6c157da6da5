"""Look at anyone's ONNX file before it is timed, in a process of its own: what it runs on, and what that gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stn_export.cli.apart import apart, forked
from stn_export.errors import UserError
from stn_export.graphs.deployment import audit
from stn_export.graphs.graph import Shape, read_model
from stn_export.graphs.inputs import Asked, Inputs, Outputs, read_arrays
from stn_export.graphs.lint import Subject
from stn_export.graphs.portability import APART, least_exact
from stn_export.limits import LIMITS

HINT = "give sizes with --shape NAME=1,16000 or arrays with --inputs FILE.npz"


@dataclass(frozen=True)
class Foreign:
    """What a file runs on and gives on the CPU, and whether it gives the same again.

    ``allowed`` is how far another runner's outputs may lie from these, as a share of the largest; ``capturable`` says
    whether all of it can be in a CUDA graph.
    """

    inputs: Inputs
    outputs: Outputs
    names: tuple[str, ...]
    steady: bool
    allowed: float
    capturable: bool


def look(path: Path, shapes: Mapping[str, Shape], arrays: Path | None, capture: bool) -> Foreign:
    """Run a file in ONNX Runtime on the CPU within limits; ``capture`` asks for CUDA graphs too.

    Raises:
        UserError: where it cannot be read, or does not run.
    """
    seconds = LIMITS["timing"].value
    return apart(f"{__name__}:look_here", path, dict(shapes), arrays, capture, seconds=2 * seconds)


def look_here(path: Path, shapes: Mapping[str, Shape], arrays: Path | None, capture: bool) -> Foreign:
    """Do so in this process, which somebody watches."""
    file, asked = read_model(path), Asked(shapes, read_arrays(arrays) if arrays else {})
    subject = Subject(file.model, file.external, asked, partial(forked, seconds=LIMITS["timing"].value))
    trial = subject.trial
    if isinstance(trial.outputs, str):
        raise UserError(f"{path} does not run on {trial.inputs}: {trial.outputs}", HINT)
    return Foreign(
        inputs=trial.inputs,
        outputs=trial.outputs,
        names=tuple(each.name for each in file.model.graph.output),
        steady=trial.steady,
        allowed=APART[least_exact(subject)],
        capturable=capture and audit(file.model, "cuda").capturable,
    )
