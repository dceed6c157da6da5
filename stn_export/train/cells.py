"""The grid of trainings that a command line asks for: models by seeds."""

from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

from stn_export.artifacts.manifest import CHECKPOINT, NetworkDirectory
from stn_export.config import ARTIFACTS
from stn_export.errors import UserError, require_choice
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


def grid(options: Namespace, dataset: Dataset) -> list[Cell]:
    """Every model with every seed.

    Raises:
        UserError: for settings that cannot be trained with.
    """
    recipe = recipe_for(options.dataset, options.recipe, options.epochs)
    precision = require_choice("precision", options.precision, PRECISIONS)
    if options.seeds < 1:
        raise UserError(f"SEEDS={options.seeds} trains nothing", "give 1 or more")
    if not 0 <= options.validation < len(dataset.train):
        raise UserError(f"{options.validation} images cannot be held out of {len(dataset.train)}", "hold out fewer")
    if require_choice("checkpoint to keep", options.keep, KEEP) == "best" and not options.validation:
        raise UserError("the best epoch cannot be told without held-out images", "add --validation 5000")
    run = options.run or ARTIFACTS / options.dataset
    fixed = (dataset.name, dataset.fingerprint, precision, options.validation, options.keep)
    return [
        Cell(
            Settings(require_choice("model", model, list(MODELS)), recipe, seed, *fixed),
            NetworkDirectory(seed_directory(run, options.seed, seed) / model),
            run,
        )
        for seed in range(options.seed, options.seed + options.seeds)
        for model in options.models
    ]


def seed_directory(run: Path, first: int, seed: int) -> Path:
    """Where a seed's models lie: the first one's in the run itself, any other's in a run of its own beneath it."""
    return run if seed == first else run / f"seed-{seed}"
