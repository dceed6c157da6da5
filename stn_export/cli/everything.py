"""``stn-export all``: the stages one after the other over one run, each in a process of its own."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from stn_export import cli
from stn_export.cli.options import PARSERS
from stn_export.config import ARTIFACTS, DEFAULT_RUN
from stn_export.errors import EXIT_OK


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all stages.

    Raises:
        SystemExit: with the exit code of a stage that failed.
    """
    options, of_training = PARSERS["all"]().parse_known_args(arguments)
    trained = PARSERS["train"]().parse_args(of_training)  # refused before anything is started
    run = options.run or (ARTIFACTS / trained.dataset if of_training else DEFAULT_RUN)
    trusted = ["--trust"] if options.trust else []  # remembered from the first stage on
    place = ["--run", str(run), *([] if options.verbose else ["--brief"])]
    stages = {
        "train": [*place, "--device", options.device, *of_training],
        "export": [*place, *trusted],
        "verify": place,
        "bench": [*place, "--device", options.device, "--grid", options.grid],
        "report": place,
    }
    if not of_training and adopted(run):
        del stages["train"]
    for number, (stage, given) in enumerate(stages.items(), 1):
        cli.say(f"{stage} ({number} of {len(stages)})", "bold")
        code = subprocess.run([sys.executable, "-m", f"stn_export.{stage}", *given], check=False).returncode
        if code != EXIT_OK:
            raise SystemExit(code)


def adopted(run: Path) -> bool:
    """Whether the run holds networks that were not trained here."""
    return any(run.glob("*/program.pt2")) and not any(run.glob("*/checkpoint.pt"))
