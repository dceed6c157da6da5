"""Defaults that all commands share; importing this does no I/O."""

import os
from pathlib import Path

from stn_export.errors import DEFAULT_RUN as DEFAULT_RUN

ARTIFACTS = DEFAULT_RUN.parent
DATA = Path("data")
FOLDER = "folder"  # the data set whose pictures the user brings


def state_directory() -> Path:
    """Return this user's folder for what commands remember: ``$XDG_STATE_HOME``, else ``~/.local/state``."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (state if state.is_absolute() else Path.home() / ".local" / "state") / "stn_export"


def run_for(dataset: str, data: Path | None, place: Path = ARTIFACTS) -> Path:
    """Return the default run directory of a training: ``<data set>``, or ``folder-<name of data>``."""
    own = f"-{data.resolve().name or 'root'}" if dataset == FOLDER and data else ""
    return place / f"{dataset}{own}"
