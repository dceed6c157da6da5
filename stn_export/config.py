"""Defaults that all commands share; importing this does no I/O."""

from pathlib import Path

ARTIFACTS = Path("artifacts")
DATA = Path("data")
FOLDER = "folder"  # the data set whose pictures the user brings
DEFAULT_RUN = ARTIFACTS / "digits"


def run_for(dataset: str, data: Path | None, place: Path = ARTIFACTS) -> Path:
    """Return the default run directory of a training: ``<data set>``, or ``folder-<name of data>``."""
    own = f"-{data.resolve().name or 'root'}" if dataset == FOLDER and data else ""
    return place / f"{dataset}{own}"
