"""The grid of trainings that a command line asks for: models by seeds."""

from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from stn_export.artifacts.manifest import CHECKPOINT, NetworkDirectory
from stn_export.config import ARTIFACTS
from stn_export.errors import UserError, require_choice
from stn_export.limits import require
from stn_export.train.data import Dataset
from stn_export.train.recipes import DATASETS, KEEP, MODELS, PRECISIONS, RECIPES, Recipe
from stn_export.train.trainer import Settings


@dataclass(frozen=True)
class Cell:
    """One training of the grid and where it goes: into ``run`` itself or a run of its seed's own beneath it."""

    settings: Settings
    directory: NetworkDirectory
    run: Path

    @property
    def up_to_date(self) -> bool:
        """Whether it was trained with these settings before and its checkpoint is as it was."""
        return self.directory.holds(CHECKPOINT, None, self.settings.as_dict())

    def __str__(self) -> str:
        return f"{self.settings.model} seed {self.settings.seed}"


def recipe_for(dataset: str, name: str | None, epochs: int | None) -> Recipe:
    """The named recipe, or the data set's own, with its epochs replaced where given.

    Raises:
        UserError: for an unknown recipe or a count of epochs below 1.
    """
    name = name or DATASETS[require_choice("data set", dataset, list(DATASETS))].recipe
    recipe = RECIPES[require_choice("recipe", name, list(RECIPES))]
    if epochs is not None and epochs < 1:
        raise UserError(f"EPOCHS={epochs} trains nothing", "give 1 or more")
    return recipe if epochs is None else replace(recipe, epochs=epochs)


def run_of(options: Namespace) -> Path:
    """The run directory that the command line means."""
    return options.run or ARTIFACTS / options.dataset


def refuse(options: Namespace, device: torch.device) -> None:
    """Say before any work what cannot be trained with, as far as that does not depend on the data set.

    Raises:
        UserError: naming the setting.
    """
    recipe = recipe_for(options.dataset, options.recipe, options.epochs)
    require("epochs", recipe.epochs, "EPOCHS")
    if not options.models:
        raise UserError("no model is named", f"choose of: {', '.join(MODELS)}")
    for model in options.models:
        require_choice("model", model, list(MODELS))
    if twice := [model for model in options.models if options.models.count(model) > 1]:
        raise UserError(f"model {twice[0]} is named twice", "name each once")
    require("seed", options.seed + options.seeds - 1, "SEED")
    if require_choice("precision", options.precision, PRECISIONS) == "tf32" and device.type == "cpu":
        raise UserError("tf32 is a GPU's way to multiply: a CPU has none", "use PRECISION=fp32 or bf16")
    if require_choice("checkpoint to keep", options.keep, KEEP) == "best" and not options.validation:
        raise UserError("the best epoch cannot be told without held-out images", "add --validation 5000")
    if (run := run_of(options)).exists() and not run.is_dir():
        raise UserError(f"{run} is a file, no run directory", "name another with --run")


def grid(options: Namespace, dataset: Dataset) -> list[Cell]:
    """Every model with every seed.

    Raises:
        UserError: for settings that cannot be trained with.
    """
    recipe = recipe_for(options.dataset, options.recipe, options.epochs)
    if not 0 <= options.validation < len(dataset.train):
        raise UserError(f"{options.validation} images cannot be held out of {len(dataset.train)}", "hold out fewer")
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
    """Where a seed's models lie: the first one's in the run itself, any other's in a run of its own beneath it."""
    return run if seed == first else run / f"seed-{seed}"
