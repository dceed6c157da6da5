"""Run an ONNX file of any origin in a separate process before it is timed, to find its inputs and outputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stn_export.cli.apart import apart, forked
from stn_export.errors import UserError, typed
from stn_export.limits import LIMITS
from stn_export.onnx_graph.deployment import audit
from stn_export.onnx_graph.inputs import Asked, Inputs, Outputs
from stn_export.onnx_graph.lint import Subject
from stn_export.onnx_graph.model import Shape, read_model
from stn_export.onnx_graph.portability import APART, least_exact
from stn_export.onnx_graph.records import GIVE_SIZES
from stn_export.run.store import load_arrays


@dataclass(frozen=True)
class Foreign:
    """The inputs that a file runs on, its outputs on the CPU, and whether a second run gives the same.

    ``allowed`` is how far another runner's outputs may differ from these, as a share of the largest; ``capturable``
    says whether the whole file can be captured in a CUDA graph.
    """

    inputs: Inputs
    outputs: Outputs
    names: tuple[str, ...]
    steady: bool
    allowed: float
    capturable: bool


def look(
    path: Path, shapes: Mapping[str, Shape], arrays: Path | None, capture: bool, left: float | None = None
) -> Foreign:
    """Run a file in ONNX Runtime on the CPU in a separate process, with limits.

    Args:
        path: the file.
        shapes: of inputs with dynamic sizes.
        arrays: an ``.npz`` of inputs by name.
        capture: whether to check if the file can be captured in a CUDA graph.
        left: seconds left of a budget; the run gets at least the limit of an audit's trial.

    Raises:
        UserError: if it cannot be read, or does not run.
    """
    seconds = float(LIMITS["timing"].value)
    if left is not None:
        seconds = min(seconds, max(left, LIMITS["trial"].value))
    return apart(f"{__name__}:look_here", path, dict(shapes), arrays, capture, seconds, seconds=2 * seconds)


def look_here(path: Path, shapes: Mapping[str, Shape], arrays: Path | None, capture: bool, seconds: float) -> Foreign:
    """Do the work of ``look`` in this process, which another one limits; a run may take ``seconds``."""
    file, asked = read_model(path), Asked(shapes, load_arrays(arrays) if arrays else {})
    subject = Subject(file.model, file.external, asked, partial(forked, seconds=seconds))
    try:
        trial = subject.trial
    except UserError as error:
        raise UserError(f"{path}: {error.message}", error.hint) from error
    if not trial.loads:
        raise UserError(f"{path}: {trial.outputs}", f"stn-export audit {typed(path)} says what else would run it")
    if isinstance(trial.outputs, str):
        raise UserError(f"{path} does not run on {trial.inputs}: {trial.outputs}", GIVE_SIZES)
    return Foreign(
        inputs=trial.inputs,
        outputs=trial.outputs,
        names=tuple(output.name for output in file.model.graph.output),
        steady=trial.steady,
        allowed=APART[least_exact(subject)],
        capturable=capture and audit(file.model, "cuda").capturable,
    )
