"""Defaults that all commands share; importing this does no I/O."""

from pathlib import Path

ARTIFACTS = Path("artifacts")
DATA = Path("data")
DEFAULT_RUN = ARTIFACTS / "digits"
