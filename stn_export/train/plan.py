"""How much of a grid of trainings is done, and how long the rest takes.

Work is counted in images, each weighted by what a step of its model takes, so that a slow model before a quick one
does not mislead the estimate.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from stn_export.train.captured import CapturedSteps
from stn_export.train.data import Dataset
from stn_export.train.trainer import Settings, Trainer, advance

TRIAL_STEPS = 4


class Plan:
    """The work of these trainings; ``weights`` are by model."""

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
        """Count images that ``model`` was trained on; returns what is complete."""
        self.complete += self.weights[model] * images
        return self.complete

    def seconds_left(self) -> float:
        """What the rest takes at the pace so far."""
        return (self.clock() - self.started) * (self.total - self.complete) / max(self.complete - self.before, 1.0)

    def eta(self) -> str:
        """The same as hours, minutes and seconds."""
        minutes, seconds = divmod(round(self.seconds_left()), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _images_seen(trainer: Trainer) -> int:
    size = trainer.settings.recipe.batch_size
    return trainer.epoch * len(trainer.train) + min(trainer.position * size, len(trainer.train))


def measured_weights(settings: Sequence[Settings], dataset: Dataset, device: torch.device) -> dict[str, float]:
    """What a step of each model takes, in units of the first one's; measured only where there are several."""
    models = {item.model: item for item in settings}
    if len(models) < 2:
        return dict.fromkeys(models, 1.0)
    seconds = {model: _step_seconds(Trainer(item, dataset, device)) for model, item in models.items()}
    return {model: value / next(iter(seconds.values())) for model, value in seconds.items()}


def _step_seconds(trainer: Trainer) -> float:
    """The fastest of a few steps, captured where training captures them: interruptions only ever add."""
    step_all = CapturedSteps([trainer]) if trainer.device.type == "cuda" else advance
    trainer.begin_epoch()
    trials = []
    for position in range(min(TRIAL_STEPS, trainer.steps_per_epoch)):
        started = time.perf_counter()
        step_all([trainer])
        trainer.losses[position].item()  # waits for the device
        trials.append(time.perf_counter() - started)
    return min(trials)
