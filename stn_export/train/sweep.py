"""Define the sweep of a command line: models by seeds, progress, interrupts, and sharing over devices."""

import os
import signal
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist

from stn_export.config import run_for
from stn_export.errors import UserError, require_choice
from stn_export.limits import require
from stn_export.program.specs import Pixels
from stn_export.run.manifest import CHECKPOINT, NetworkDirectory
from stn_export.train.cuda_graph import CapturedSteps
from stn_export.train.data import MEAN, STD, Dataset, normalise
from stn_export.train.recipes import DATASETS, FOLDER, KEEP, LEAST_STEPS, MODELS, PRECISIONS, RECIPES, Recipe
from stn_export.train.trainer import Settings, Trainer, advance

# Progress of a sweep.


TRIAL_STEPS = 4


class Plan:
    """The total work of some trainings, and how much is complete; ``weights`` are the cost of an image by model."""

    def __init__(
        self,
        trainers: Sequence[Trainer],
        weights: Mapping[str, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.weights, self.clock, self.started = weights, clock, clock()
        self.total = sum(weights[t.settings.model] * t.settings.recipe.epochs * len(t.train) for t in trainers)
        self.before = self.complete = sum(weights[t.settings.model] * _images_seen(t) for t in trainers)

    def advance(self, model: str, images: int) -> float:
        """Add the work of images that ``model`` was trained on; return the complete work."""
        self.complete += self.weights[model] * images
        return self.complete

    def seconds_left(self) -> float:
        """Estimate the seconds left at the pace so far."""
        return (self.clock() - self.started) * (self.total - self.complete) / max(self.complete - self.before, 1.0)

    def eta(self) -> str:
        """Return the estimated time left as hours, minutes and seconds."""
        minutes, seconds = divmod(round(self.seconds_left()), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _images_seen(trainer: Trainer) -> int:
    size = trainer.settings.recipe.batch_size
    return trainer.epoch * len(trainer.train) + min(trainer.position * size, len(trainer.train))


def measured_weights(settings: Sequence[Settings], dataset: Dataset, device: torch.device) -> dict[str, float]:
    """Measure the time of each model's step in units of the first model's; 1 if there is only one."""
    models = {item.model: item for item in settings}
    if len(models) < 2:
        return dict.fromkeys(models, 1.0)
    seconds = {model: step_seconds(Trainer(item, dataset, device)) for model, item in models.items()}
    return {model: value / next(iter(seconds.values())) for model, value in seconds.items()}


def step_seconds(trainer: Trainer) -> float:
    """Return the shortest of a few steps, since interruptions only add time; captured if training captures steps."""
    step_all = CapturedSteps([trainer]) if trainer.device.type == "cuda" else advance
    trainer.begin_epoch()
    trials = []
    for position in range(min(TRIAL_STEPS, trainer.steps_per_epoch)):
        started = time.perf_counter()
        step_all([trainer])
        trainer.losses[position].item()  # waits for the device
        trials.append(time.perf_counter() - started)
    return min(trials)


# SIGINT and SIGTERM: they interrupt at once, in training after the current step.


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Turn both signals into KeyboardInterrupt; while ``deferred``, the first one only sets ``requested``."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals in this block; outside the main thread, where Python allows no handlers, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let this block complete its step and look at ``requested``; a second signal interrupts at once."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._deferred or self.requested:
            raise KeyboardInterrupt
        self.requested = True


# Training on several devices or machines under ``torchrun``.


Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """The processes that train together; a single one without torchrun."""

    rank: int = 0
    size: int = 1

    def share(self, items: Sequence[Item], cost: Callable[[Item], int]) -> list[Item]:
        """Return this rank's part of a sweep: the most expensive item first, each to the rank with the least work."""
        if self.size == 1:
            return list(items)
        costs, loads = list(map(cost, items)), [0] * self.size
        mine = []
        for index in sorted(range(len(items)), key=lambda index: -costs[index]):
            rank = loads.index(min(loads))
            loads[rank] += costs[index]
            mine += [index] * (rank == self.rank)
        return [items[index] for index in sorted(mine)]

    def wait(self) -> None:
        """Wait until every rank has called this."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the world that torchrun started this process in, on CUDA with one GPU per rank."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Cell:
    """One training of the sweep and its place: ``run`` itself, or its seed's run beneath it."""

    settings: Settings
    directory: NetworkDirectory
    run: Path

    @property
    def up_to_date(self) -> bool:
        """Return whether it was trained with these settings and its checkpoint is unchanged."""
        return self.directory.holds(CHECKPOINT, None, self.settings.as_dict())

    def __str__(self) -> str:
        return f"{self.settings.model} seed {self.settings.seed}"


def recipe_for(dataset: str, name: str | None, epochs: int | None) -> Recipe:
    """Return the named recipe, or the data set's own, with its number of epochs replaced if given.

    Raises:
        UserError: for an unknown recipe or a number of epochs below 1.
    """
    name = name or DATASETS[require_choice("data set", dataset, list(DATASETS))].recipe
    recipe = RECIPES[require_choice("recipe", name, list(RECIPES))]
    if epochs is not None and epochs < 1:
        raise UserError(f"EPOCHS={epochs} trains nothing", "give 1 or more")
    return recipe if epochs is None else replace(recipe, epochs=epochs)


def run_of(options: Namespace) -> Path:
    """Return the run directory that the command line names."""
    return options.run or run_for(options.dataset, options.data)


def refuse(options: Namespace, device: torch.device) -> None:
    """Check all settings that do not depend on the data set, before any work.

    Raises:
        UserError: naming the setting that cannot be trained with.
    """
    recipe = recipe_for(options.dataset, options.recipe, options.epochs)
    _refuse_data(options)
    require("epochs", recipe.epochs, "EPOCHS")
    if not options.models:
        raise UserError("no model is named", f"choose of: {', '.join(MODELS)}")
    for model in options.models:
        require_choice("model", model, list(MODELS))
    if twice := [model for model in options.models if options.models.count(model) > 1]:
        raise UserError(f"model {twice[0]} is named twice", "name each once")
    require("seed", options.seed + options.seeds - 1, "SEED")
    if require_choice("precision", options.precision, PRECISIONS) == "tf32" and device.type == "cpu":
        raise UserError("TF32 exists on GPUs only", "use PRECISION=fp32 or bf16")
    if require_choice("checkpoint to keep", options.keep, KEEP) == "best" and not options.validation:
        raise UserError("--keep best needs held-out images", "add --validation 5000")
    if (run := run_of(options)).exists() and not run.is_dir():
        raise UserError(f"{run} is a file, no run directory", "name another with --run")


def _refuse_data(options: Namespace) -> None:
    """Check the options that only some data sets have.

    Raises:
        UserError: naming an option that has no effect, or one that is missing.
    """
    own, name = options.dataset == FOLDER, options.dataset
    if own and options.data is None:
        raise UserError("--dataset folder takes pictures of your own", "name their folder with --data DIR")
    if options.data is not None and not (own or name.startswith("cifar10")):
        problem = f"--data {options.data} has no effect: --dataset {name} takes no files"
        raise UserError(problem, "add --dataset folder to train on your own pictures, or leave out --data")
    if options.size is not None and not own:
        problem = f"--size {options.size} has no effect: the images of --dataset {name} have a size already"
        raise UserError(problem, "leave it out; it is of --dataset folder")


def _long_enough(recipe: Recipe, images: int) -> Recipe:
    """Return the recipe with as many epochs as ``LEAST_STEPS`` take: few pictures are few steps an epoch."""
    steps = -(-images // recipe.batch_size)
    return replace(recipe, epochs=max(recipe.epochs, -(-LEAST_STEPS // steps)))


def grid(options: Namespace, dataset: Dataset) -> list[Cell]:
    """Return a cell for every model and seed.

    Raises:
        UserError: for an unknown recipe, or if more images are to be held out than there are.
    """
    recipe = recipe_for(options.dataset, options.recipe, options.epochs)
    if not 0 <= options.validation < len(dataset.train):
        raise UserError(f"{options.validation} images cannot be held out of {len(dataset.train)}", "hold out fewer")
    if dataset.own and options.epochs is None:
        recipe = _long_enough(recipe, len(dataset.train) - options.validation)
    run = run_of(options)
    fixed = (dataset.name, dataset.fingerprint, options.precision, options.validation, options.keep)
    return [
        Cell(
            Settings(model, recipe, seed, *fixed),
            NetworkDirectory(seed_directory(run, options.seed, seed) / model),
            run,
        )
        for seed in range(options.seed, options.seed + options.seeds)
        for model in options.models
    ]


def seed_directory(run: Path, first: int, seed: int) -> Path:
    """Return the directory of a seed's models: the run for the first seed, a run of its own beneath it for others."""
    return run if seed == first else run / f"seed-{seed}"


# Output for TensorBoard; ``tensorboard`` is an extra.


PICTURES = 16


class Board:
    """Write losses, accuracies and seconds of every epoch to TensorBoard, and test images beside the warped ones."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.open, self.folder = SummaryWriter, folder
        self.writers: dict[str, SummaryWriter] = {}

    def epoch(self, cell: Cell, trainer: Trainer) -> None:
        """Write the epoch that the trainer has just finished; a resumed training appends."""
        writer = self.writers.setdefault(str(cell), self.open(self.folder / str(cell).replace(" ", "-")))
        row = trainer.history[-1]
        for name in row.keys() - {"epoch"}:
            writer.add_scalar(name, row[name], row["epoch"])
        if transformer := getattr(trainer.model, "transformer", None):
            images = trainer.test.images[:PICTURES]
            with torch.no_grad():
                warped = Pixels((MEAN,), (STD,)).denormalise(transformer(normalise(images)))
            writer.add_images("warped", torch.cat([images, warped], dim=3), row["epoch"])
        writer.flush()
