"""Train a sweep of models and seeds: ``python -m stn_export.train``.

The first seed's models are in the run directory itself, those of every further seed in a run of their own beneath it
(``seed-1`` and so on). Under ``torchrun`` the ranks share the sweep:
``torchrun --nproc-per-node 2 -m -- stn_export.train --seeds 8`` (the ``--`` keeps torchrun from reading our options).
"""

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from itertools import groupby
from pathlib import Path

import msgspec
import torch

from stn_export import cli
from stn_export.errors import UserError, one_line
from stn_export.results.card import close
from stn_export.run.environment import describe, resolve_device
from stn_export.run.manifest import CHECKPOINT, CHECKPOINT_FILE, HISTORY_FILE, STATE_FILE, Artifact
from stn_export.run.store import alone, load_tensors, serialise, sha256_of, write_atomically
from stn_export.train.cuda_graph import CapturedSteps
from stn_export.train.data import Dataset, load_dataset, load_folder
from stn_export.train.handover import SIZES, contract_of, cost, enter_trained, save_checkpoint
from stn_export.train.outcomes import Group, read_training, write_trainings
from stn_export.train.recipes import ALIGN_CORNERS, FOLDER
from stn_export.train.sweep import (
    Board,
    Cell,
    Interrupts,
    Plan,
    World,
    grid,
    joined,
    measured_weights,
    refuse,
)
from stn_export.train.trainer import State, Trainer, advance, run_epoch

FIRST_STEP = "the first step is done"

Pair = tuple[Cell, Trainer]


def train_cells(
    cells: Sequence[Cell],
    dataset: Dataset,
    device: torch.device,
    interrupts: Interrupts,
    board: Board | None = None,
) -> None:
    """Train every cell to its recipe's last epoch, resuming where an earlier run stopped.

    Writes ``training.pt`` and ``history.jsonl`` after every epoch; at the end ``checkpoint.pt`` with its manifest
    entry, the program, the examples and ``training.json``.

    Raises:
        CheckFailedError: if a training diverges.
        KeyboardInterrupt: with a line on what was kept.
    """
    settings = [cell.settings for cell in cells]
    weights = measured_weights(settings, dataset, device)
    started = [(cell, start(cell, dataset, device)) for cell in cells]
    plan = Plan([trainer for _, trainer in started], weights)
    with cli.progress("images", word="training", unit="images") as bar:
        task = bar.add_task("training", total=plan.total, completed=plan.complete)

        def on_step(model: str, images: int) -> None:
            if plan.complete == plan.before:  # the first step of this run
                if device.type == "cuda":
                    torch.cuda.synchronize()
                cli.say(f"{model}: {FIRST_STEP}", target=bar.console)
            bar.update(task, completed=plan.advance(model, images), description=model)

        for cohort in cohorts(started, device):
            left = sum(cell.settings.recipe.epochs - trainer.epoch for cell, trainer in cohort) * len(dataset.train)
            with cli.measured(*pace_of(cohort[0][0], dataset, device), left):
                for _ in epochs(cohort, on_step, interrupts):
                    for cell, trainer in cohort:
                        cli.say(f"{epoch_line(trainer)}  {plan.eta()} left", target=bar.console)
                        if board:
                            board.epoch(cell, trainer)
            for cell, trainer in cohort:
                write_checkpoint(cell, trainer, dataset.source)
            enter_trained([cell for cell, _ in cohort], dataset)
            write_trainings(cohort[0][0].run)


def start(cell: Cell, dataset: Dataset, device: torch.device) -> Trainer:
    """Create the cell's trainer, restored from an earlier run with the same settings if there is one."""
    trainer = Trainer(cell.settings, dataset, device)
    path = cell.directory.path / STATE_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and _restored(trainer, path):
        cli.say(f"{cell}: going on after {_place(trainer)}")
    return trainer


def _restored(trainer: Trainer, path: Path) -> bool:
    """Restore the trainer from a file; return False if it was made with other settings.

    Raises:
        UserError: if the file is damaged, or another version wrote it.
    """
    state = load_tensors(path)
    try:
        return trainer.restore(state)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:  # PyTorch raises various errors
        damaged = f"{path} is damaged or of another version: {one_line(error)}"
        raise UserError(damaged, "delete it to train that network from its beginning") from error


def pace_of(cell: Cell, dataset: Dataset, device: torch.device) -> tuple[str, int]:
    """Return the name under which the pace of a training is kept, and the pixels of an image."""
    return f"train {cell.settings.model} on {device.type}", dataset.sizes.size**2


def cohorts(started: Sequence[Pair], device: torch.device) -> list[list[Pair]]:
    """Group the trainings that can advance in step: on CUDA all seeds of a model at the same step, else each alone."""
    if device.type != "cuda":
        return [[pair] for pair in started]

    def place(pair: Pair) -> tuple[str, int, int]:
        return pair[0].settings.model, pair[1].epoch, pair[1].position

    return [list(cohort) for _, cohort in groupby(sorted(started, key=place), key=place)]


def epochs(cohort: Sequence[Pair], on_step: Callable[[str, int], None], interrupts: Interrupts) -> Iterator[None]:
    """Train a cohort to the end; save after every epoch and where the user stops it. Yields after each epoch."""
    trainers = [trainer for _, trainer in cohort]
    captures = trainers[0].device.type == "cuda"
    step_all = CapturedSteps(trainers) if captures and not trainers[0].done else advance
    model = trainers[0].settings.model
    with interrupts.deferred():
        while not trainers[0].done:
            complete = run_epoch(trainers, partial(on_step, model), lambda: interrupts.requested, step_all)
            for cell, trainer in cohort:
                save(cell.directory.path, trainer)
            if complete:
                yield
            if interrupts.requested:
                raise KeyboardInterrupt(
                    f"while training {cohort[0][0]}: {_place(trainers[0])} is kept; run again to go on"
                )


def save(path: Path, trainer: Trainer) -> None:
    """Write the trainer's history, then its state to resume from, which must not be ahead of the history."""
    write_atomically(path / HISTORY_FILE, "".join(json.dumps(row) + "\n" for row in trainer.history).encode())
    write_atomically(path / STATE_FILE, serialise(trainer.state()))


def write_checkpoint(cell: Cell, trainer: Trainer, source: str) -> Artifact:
    """Write the checkpoint and its manifest entry, and delete the state to resume from."""
    trainer.finish()
    path = cell.directory.path / CHECKPOINT_FILE
    save_checkpoint(path, trainer.model, _meta(trainer))
    artifact = cell.directory.add(
        Artifact(
            name=CHECKPOINT,
            file=path.name,
            network=cell.directory.name,
            format="checkpoint",
            sha256=sha256_of(path),
            contract=contract_of(trainer.sizes),
            settings=cell.settings.as_dict(),
            details={"device": str(trainer.device), "data": source, "align_corners": ALIGN_CORNERS},
            environment=describe(),
        )
    )
    (cell.directory.path / STATE_FILE).unlink(missing_ok=True)
    cli.say(f"{cell}: wrote {path}; whatever was made from an older one is now stale")
    return artifact


def delete_states(cells: Sequence[Cell]) -> None:
    """Delete the states of finished trainings, which are left where a stop came between checkpoint and deletion."""
    for cell in cells:
        path = cell.directory.path / STATE_FILE
        with suppress(UserError, msgspec.ValidationError, ValueError):  # a damaged one may be of another training
            state = msgspec.convert(load_tensors(path), State) if path.exists() else None
            if state and json.loads(state["settings"]) == cell.settings.as_dict():
                path.unlink()


def _place(trainer: Trainer) -> str:
    if trainer.position:
        return f"step {trainer.position} of {trainer.steps_per_epoch} of epoch {trainer.epoch + 1}"
    return f"epoch {trainer.epoch} of {trainer.settings.recipe.epochs}"


def epoch_line(trainer: Trainer) -> str:
    """Return a line of text on the last complete epoch."""
    figures, count = trainer.history[-1], trainer.settings.recipe.epochs
    held_out = f"validation accuracy {figures['validation_accuracy']:.2%}  " if trainer.settings.validation else ""
    return (
        f"{trainer.settings.model} seed {trainer.settings.seed} epoch {figures['epoch']:>{len(str(count))}}/{count}  "
        f"train loss {figures['train_loss']:.4f}  test loss {figures['test_loss']:.4f}  {held_out}"
        f"test accuracy {figures['test_accuracy']:.2%}  {len(trainer.train) / figures['seconds']:,.0f} images/s"
    )


def _meta(trainer: Trainer) -> dict:
    """Return the checkpoint's metadata, without times, so that equal runs give equal bytes."""
    history = [{key: value for key, value in row.items() if key != "seconds"} for row in trainer.history]
    sizes = {SIZES: trainer.sizes.arguments} if trainer.sizes.arguments else {}
    return {
        "model": trainer.settings.model,
        "classes": list(trainer.classes),
        "settings": trainer.settings.as_dict(),
        "history": history,
    } | sizes


def print_summary(cells: Sequence[Cell]) -> None:
    """Print a row per model: its measured test accuracy over the seeds."""
    group = Group(cells[0].run.name, tuple(read_training(cell.directory) for cell in cells))
    rows = [
        (
            model,
            f"{group.models[model][0].facts.multiply_adds:,}",
            str(figure.count),
            f"{figure.mean:.2%}",
            cli.figure(100 * figure.deviation, ".2f"),
            f"{figure.low:.2%} to {figure.high:.2%}" if figure.count > 1 else cli.NONE,
        )
        for model, figure in group.estimates.items()
    ]
    columns = ("model", "multiply-adds", "seeds", "test accuracy", "sd, points", "95 % interval of the mean")
    cli.table(
        f"Test accuracy: {group.measure}", columns, rows, ("sd, points", "multiply-adds", "95 % interval of the mean")
    )


def dataset_of(options: Namespace) -> Dataset:
    """Load the data set that the command line names."""
    if options.dataset == FOLDER:
        return load_folder(options.data, options.size)
    return load_dataset(options.dataset, options.data)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train every cell of the sweep that is not up to date."""
    options = cli.parse("train", arguments)
    device = resolve_device(options.device)
    refuse(options, device)  # before loading the data set, which may take a while
    interrupts = Interrupts()
    with interrupts.installed(), joined(device) as world:
        dataset = dataset_of(options)
        cells = grid(options, dataset)
        with alone(cells[0].run, options.wait, make=True) if world.rank == 0 else nullcontext():
            _train(options, dataset, cells, device, interrupts, world)


def _train(
    options: Namespace,
    dataset: Dataset,
    cells: Sequence[Cell],
    device: torch.device,
    interrupts: Interrupts,
    world: World,
) -> None:
    board = Board(options.tensorboard) if options.tensorboard else None
    todo = [cell for cell in cells if not cell.up_to_date]
    world.wait()  # every rank must list the work before any rank does part of it
    if world.rank == 0:
        announce(cells, todo, dataset, device)
        finished = [cell for cell in cells if cell not in todo]
        delete_states(finished)
        enter_trained(finished, dataset)
    mine = world.share(todo, lambda cell: cost(cell.settings.model, dataset.sizes))
    try:
        train_cells(mine, dataset.to(device), device, interrupts, board)
        world.wait()
    finally:  # a stopped training is listed as unfinished
        if world.rank == 0:
            write_trainings(cells[0].run)
    if world.rank == 0:
        print_summary(cells)
        close(cells[0].run, "train")


def announce(cells: Sequence[Cell], todo: Sequence[Cell], dataset: Dataset, device: torch.device) -> None:
    """Print what is up to date and what is going to be trained, on which data and device."""
    for cell in cells:
        if cell not in todo:
            cli.say(f"{cell}: up to date ({cell.directory.path / CHECKPOINT_FILE})")
    if todo:
        recipe, precision = todo[0].settings.recipe, todo[0].settings.precision
        cli.say(
            f"training on {dataset.name} ({dataset.source}), recipe {recipe.name}, {recipe.epochs} epochs, "
            f"{precision}, on {device.type}"
        )
        if dataset.own:
            cli.say(dataset.spec.note)
        images = recipe.epochs * len(dataset.train)
        paces = [cli.Paces.read().of(*pace_of(cell, dataset, device)) for cell in todo]
        seconds = None if None in paces else images * sum(filter(None, paces))
        cli.say(f"train: {cli.forecast(f'{images * len(todo):,} images', seconds)}")
    for model in dict.fromkeys(cell.settings.model for cell in todo):
        seeds = [str(cell.settings.seed) for cell in todo if cell.settings.model == model]
        cli.say(f"{model}: seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
