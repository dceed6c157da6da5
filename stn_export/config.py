"""The defaults that all commands share. Nothing here does any I/O."""

from pathlib import Path

ARTIFACTS = Path("artifacts")
DATA = Path("data")
DEFAULT_RUN = ARTIFACTS / "digits"
