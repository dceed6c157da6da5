"""The command ``gain``: does a spatial transformer help on one's own pictures, and what does it cost?

    stn-export gain --data DIR

Trains the transformer, the plain CNN and the CNN of equal cost over several seeds, exports one ONNX file of each,
verifies and times them, and writes the report: every stage in a process of its own, as in ``stn-export all``. An
interrupted one goes on when the same command is given again.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from stn_export import cli
from stn_export.cli.everything import Work, chain
from stn_export.cli.tables import FORMS
from stn_export.config import ARTIFACTS, run_for
from stn_export.errors import CheckFailedError, UserError
from stn_export.results.card import Answer
from stn_export.results.contents import Held, held
from stn_export.results.text import percent
from stn_export.run.environment import resolve_device
from stn_export.run.manifest import PLAIN
from stn_export.run.schemas import ModelComparison
from stn_export.train.__main__ import dataset_of
from stn_export.train.data import Dataset
from stn_export.train.outcomes import TRANSFORMER
from stn_export.train.recipes import MODELS
from stn_export.train.sweep import Cell, grid, refuse, step_seconds
from stn_export.train.trainer import Trainer, evaluate

FILES = ("matmul-fp32", "plain-fp32")  # one ONNX file of a network that samples, one of a network that does not
SUITES = "latency,request,overhead"
BUDGET = 60.0  # seconds of timing
OTHERS = 40.0  # seconds of exporting, verifying and reporting; most of it is importing PyTorch, once a stage
OF_TRAINING = ("dataset", "data", "size", "recipe", "epochs", "seed", "seeds", "precision", "device")
CHANCE = 3.0  # standard deviations above guessing, from which a network has learned something


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages, and end with the answer in one paragraph.

    Raises:
        CheckFailedError: at the end, naming every stage in which a check failed, and its failures.
        SystemExit: with the exit code of a stage that could not run to its end.
        UserError: for options or pictures that cannot be trained on.
    """
    parsed = cli.parse("gain", arguments)
    if parsed.format != FORMS[0]:
        raise UserError(
            f"--format {parsed.format} is of single stages", "leave it out; RUN/training.json is the answer"
        )
    run = parsed.run or run_for(parsed.dataset, parsed.data, ARTIFACTS / "gain")
    options = Namespace(**vars(parsed) | {"run": run, "models": tuple(MODELS), "validation": 0, "keep": "last"})
    device = resolve_device(options.device)
    refuse(options, device)
    dataset = dataset_of(options)
    cli.say(dataset.spec.note)
    cells = grid(options, dataset)
    todo = [cell for cell in cells if not cell.up_to_date]
    cli.say(estimate(todo, dataset, device))
    failed = chain(stages(options, run), work(todo, dataset), "gain")
    cli.say(f"the report is {run / 'report.html'}")
    cli.card([("answer", answer(held(run), dataset))])
    if failed:
        raise CheckFailedError(*(line for text in failed for line in text.split("\n")))


def stages(options: Namespace, run: Path) -> dict[str, list[str]]:
    """Return the stages with their options."""
    place = ["--run", str(run), "--brief"]
    pairs = [(f"--{name}", getattr(options, name)) for name in OF_TRAINING]
    training = [word for name, value in pairs if value is not None for word in (name, str(value))]
    timing = ["--device", options.device, "--suites", SUITES, "--budget", f"{BUDGET:g}s"]
    return {
        "train": [*place, *training, "--models", ",".join(options.models)],
        "export": [*place, "--only", *FILES],
        "verify": place,
        "bench": [*place, *timing],
        "report": place,
    }


def work(todo: Sequence[Cell], dataset: Dataset) -> dict[str, Work]:
    """Count the work of each stage: networks, in training the pictures that they see."""
    seen = sum(len(dataset.train) * cell.settings.recipe.epochs for cell in todo)
    training = Work(f"gain, train {dataset.sizes.size} pixels a side", max(1, seen))
    return {"train": training} | {
        stage: Work(f"gain, {stage}", len(MODELS)) for stage in ("export", "verify", "bench", "report")
    }


def estimate(todo: Sequence[Cell], dataset: Dataset, device: torch.device) -> str:
    """Say how long the stages take, after trying a few steps of every model that is to be trained."""
    others = cli.duration(OTHERS + BUDGET)
    if not todo:
        return f"about {others}: all networks are trained already"
    models = {cell.settings.model: cell for cell in todo}
    per_epoch = {model: _epoch_seconds(Trainer(cell.settings, dataset, device)) for model, cell in models.items()}
    seconds = sum(per_epoch[cell.settings.model] * cell.settings.recipe.epochs for cell in todo)
    trainings = f"{len(todo)} training{'s' * (len(todo) > 1)} of {todo[0].settings.recipe.epochs} epochs"
    whole = cli.duration(seconds + OTHERS + BUDGET)
    parts = f"{trainings} in {cli.duration(seconds)}, export, verify, bench and report in {others}"
    return f"about {whole} if this machine has nothing else to do: {parts}"


def _epoch_seconds(trainer: Trainer) -> float:
    step = step_seconds(trainer)
    few = trainer.test[: trainer.settings.recipe.batch_size]
    started = time.perf_counter()
    evaluate(trainer.model, few)
    testing = (time.perf_counter() - started) * len(trainer.test) / len(few)
    return step * trainer.steps_per_epoch + testing


def answer(content: Held, dataset: Dataset) -> str:
    """Say what the transformer gains, with its interval, and what it costs, in one paragraph."""
    one = content.trainings[0]
    sentences = (gains(one), learned(one, dataset), costs(one, content), tested(dataset))
    return " ".join(filter(None, sentences))


def gains(one: ModelComparison) -> str:
    """State the transformer's accuracy, and its gain over each other network."""
    ours = one.models[TRANSFORMER]
    against = [
        f"against the {difference.label} ({percent(one.models[model].mean)}) {difference.sentence}"
        for model, difference in one.differences.items()
    ]
    return f"Test accuracy with the spatial transformer: {percent(ours.mean)}; {'; '.join(against)}."


def learned(one: ModelComparison, dataset: Dataset) -> str:
    """Warn where no network does better than answering the largest class; empty where one does."""
    labels = dataset.test.labels
    guess = labels.bincount().max().item() / len(labels)
    best = max(model.mean for model in one.models.values())
    if best > guess + CHANCE * (guess * (1 - guess) / len(labels)) ** 0.5:
        return ""
    return f"No network learned more than to guess ({percent(guess)}), so that this says nothing: give more --epochs."


def costs(one: ModelComparison, content: Held) -> str:
    """State the transformer's parameters, multiply-adds and measured overhead against the plain network."""
    ours, plain = one.models[TRANSFORMER], next(model for model in one.models.values() if model.role == PLAIN)
    size = f"{ours.parameters:,} parameters instead of {plain.parameters:,}"
    work = f"{ours.multiply_adds / plain.multiply_adds:.2f} × the multiply-adds"
    measured = Answer(content)
    overhead = measured.overhead()
    cost = f"{overhead}, measured on {measured.deploy()}" if overhead else "a latency that was not measured"
    return f"It costs {size}, {work} and {cost}."


def tested(dataset: Dataset) -> str:
    """Say what the intervals do not cover: which pictures are tested."""
    count = len(dataset.test)
    share = f"{100 / count:.2g} of a percentage point"
    return f"The intervals are over seeds, on the same {count:,} test pictures, each of them {share}."


if __name__ == "__main__":
    sys.exit(cli.run(main))
