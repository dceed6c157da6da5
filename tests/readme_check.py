"""``make readme-check``: the commands of README and docs, run where a reader would stand; those not run are named."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from stn_export import cli
from stn_export.errors import CheckFailedError
from stn_export.export import __main__ as export
from tests.runs import enter_networks
from tests.test_readme import commands

NOT_RUN = {  # a word of the command, and why
    "make": "`make help` lists them, and each is run by a test or takes long",
    "torchrun": "trains for long",
    "gain": "trains for minutes: tests/test_gain_command.py runs it",
    "pip": "changes the environment",
    "--search": "searches for minutes",
    "artifacts/digits": "serves until Ctrl-C",
    **dict.fromkeys(("cc", "ar", "rustc", "./main", "main.py"), "tests/test_native.py runs it"),
}
MODEL = "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 94, 2))\n"
FAILS = {"--require": 1}  # what is to be found out is that a node falls to the CPU


def prepare(place: Path) -> None:
    """Every file that the commands name."""
    run = enter_networks(place / "artifacts" / "digits")
    if cli.run(export.main, ["--run", str(run), "--brief"]):
        raise CheckFailedError("the run to stand on could not be exported")
    shutil.copytree(run, place / "artifacts" / "released")
    for name in ("model", "a", "b"):
        shutil.copy(run / "stn" / "affinegrid-fp32.onnx", place / f"{name}.onnx")
    (place / "plates").mkdir()
    for path, weights in (("model.py", "model.pt"), ("plates/model.py", "plates.pt")):
        (place / path).write_text(MODEL, encoding="utf-8")
        torch.save(nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 94, 2)).state_dict(), place / weights)
    (place / "crops").mkdir()
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (8, 24, 94, 3), np.uint8)):
        Image.fromarray(pixels).save(place / "crops" / f"{index}.png")
    (place / "labels.csv").write_text("".join(f"{index}.png,{index % 2}\n" for index in range(8)), encoding="utf-8")


def ran(words: list[str], place: Path) -> str:
    """What went wrong with a command; empty where nothing did."""
    words = [sys.executable, *words[1:]] if words[0] == "python" else words
    words = [sys.executable, "-m", "stn_export", *words[1:]] if words[0] == "stn-export" else words
    result = subprocess.run(words, cwd=place, capture_output=True, encoding="utf-8", env=os.environ, check=False)
    wanted = next((code for word, code in FAILS.items() if word in words), 0)
    return "" if result.returncode == wanted else f"exit {result.returncode}: {result.stderr.strip()[-300:]}"


def main() -> None:
    """Run them, each once, and say of each how it went.

    Raises:
        CheckFailedError: where one did not.
    """
    rows, failed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for words in sorted(dict.fromkeys(map(tuple, commands())), key=lambda words: "--only" in words):
            why = next((why for word, why in NOT_RUN.items() if word in words), "")
            started = time.perf_counter()
            wrong = "" if why else ran(list(words), Path(folder))
            said = f"not run: {why}" if why else wrong or f"{time.perf_counter() - started:.0f} s"
            rows.append((" ".join(words), said))
            failed += bool(wrong)
    cli.table("Commands of README and docs", ("command", "how it went"), rows)
    if failed:
        raise CheckFailedError(f"{failed} commands failed")


if __name__ == "__main__":
    sys.exit(cli.run(lambda _=None: main()))
