"""Train a model step by step; its state can be saved and restored between any two steps.

Random numbers are seeded from (seed, epoch) at every epoch's start, and a state contains the generators, so that an
interrupted and resumed run is, byte for byte on the CPU, the uninterrupted one.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypedDict

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_export.errors import CheckFailedError
from stn_export.train.data import Dataset, Split, flip_and_crop, normalise, random_affine
from stn_export.train.networks import build_model
from stn_export.train.optimizers import build_optimizer, learning_rate_share, set_learning_rates
from stn_export.train.recipes import DATASETS, Recipe

EVALUATION_BATCH = 1000
IN_BFLOAT16 = ("transformer.localisation", "classifier")  # theta, grid and sampler stay in float32


@dataclass(frozen=True)
class Settings:
    """Everything that determines a checkpoint's bytes on one machine.

    ``validation`` images are held out of the training set; ``keep`` is ``last``, or ``best`` for the epoch with the
    highest accuracy on them.
    """

    model: str
    recipe: Recipe
    seed: int
    dataset: str
    dataset_fingerprint: str
    precision: str = "fp32"
    validation: int = 0
    keep: str = "last"

    def as_dict(self) -> dict:
        """Convert to JSON-ready values, as stored in the manifest and the checkpoint."""
        return asdict(self)


def layout_of(precision: str, device: torch.device) -> torch.memory_format:
    """Return the memory layout: channels last is 1.5 times faster on a CPU, and what tensor cores need."""
    on_cores = device.type == "cpu" or precision != "fp32"
    return torch.channels_last if on_cores else torch.contiguous_format


class State(TypedDict):
    """A trainer's saved state: returned by ``Trainer.state``, accepted by ``Trainer.restore``."""

    settings: str
    history: str
    model: dict[str, Tensor]
    optimizer: dict
    best: dict[str, Tensor]
    position: int
    elapsed: float
    losses: Tensor
    generators: dict[str, Tensor] | None


class Trainer:
    """One model in training; ``history`` has a row for each complete epoch, ``position`` counts steps of the next."""

    def __init__(self, settings: Settings, dataset: Dataset, device: torch.device) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.device = settings, device
        self.sizes, self.classes = dataset.sizes, dataset.spec.classes
        model = build_model(settings.model, settings.recipe.dropout, **self.sizes.arguments).to(device)
        self.model = model.to(memory_format=layout_of(settings.precision, device))
        set_precision(self.model, settings.precision, device)
        self.affine = DATASETS[settings.dataset].affine
        cut = len(dataset.train) - settings.validation
        whole = dataset.train.to(device)
        self.train, self.held_out, self.test = whole[:cut], whole[cut:], dataset.test.to(device)
        self.steps_per_epoch = math.ceil(len(self.train) / settings.recipe.batch_size)
        self.optimizer = build_optimizer(self.model, settings.recipe)
        self.history: list[dict] = []
        self.best: dict[str, Tensor] = {}
        self.position = 0
        self.losses = torch.full((self.steps_per_epoch,), math.nan, device=device)
        self.generators: dict[str, Tensor] | None = None  # of a state saved within an epoch
        self.started = self.elapsed = 0.0  # elapsed: seconds of the epoch before it was interrupted

    @property
    def epoch(self) -> int:
        """Return the number of complete epochs."""
        return len(self.history)

    @property
    def done(self) -> bool:
        """Return whether the recipe's last epoch is complete."""
        return self.epoch >= self.settings.recipe.epochs

    def begin_epoch(self) -> None:
        """Draw the epoch's order of images; in a restored epoch, also set the generators as they were."""
        self.started, self.elapsed = time.perf_counter() - self.elapsed, 0.0
        allow_tf32(self.settings.precision == "tf32", self.device)  # another trainer may have changed it
        self.model.train()
        torch.manual_seed(self.settings.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.train)).to(self.device)  # drawn on the CPU: the same order on every device
        self.batches = order.split(self.settings.recipe.batch_size)
        if self.generators is not None:
            set_generators(self.generators)
            self.generators = None

    def next_batch(self) -> Tensor:
        """Set the next step's learning rate; return the indices of its images, fewer for an epoch's last batch."""
        set_learning_rates(self.optimizer, self._learning_rate_share(self.position))
        return self.batches[self.position]

    def _learning_rate_share(self, position: int) -> float:
        """Return the learning rate at a step of the current epoch as a share of its peak."""
        recipe, steps = self.settings.recipe, self.steps_per_epoch
        return learning_rate_share(recipe, self.epoch * steps + position, recipe.epochs * steps)

    def step(self, chosen: Tensor) -> Tensor:
        """Run one optimisation step on the training images at these indices; return their mean loss."""
        images = self.train.images[chosen]
        if self.affine is not None:
            images = random_affine(images, self.affine)
        images = flip_and_crop(images, self.settings.recipe.flip, self.settings.recipe.crop)
        self.optimizer.zero_grad()
        loss = self.loss(normalise(images), self.train.labels[chosen])
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return loss_of(self.model(images), labels, self.settings.recipe.label_smoothing)

    def note(self, loss: Tensor) -> None:
        """Record a step's loss, which the device may still be computing, and advance to the next step."""
        self.losses[self.position] = loss
        self.position += 1

    def check(self) -> None:
        """Check that every loss of this epoch so far is finite.

        Raises:
            CheckFailedError: with the first step where it is not, its learning rate and what is kept.
        """
        finite = self.losses[: self.position].isfinite()
        if finite.all():
            return
        step = int(finite.logical_not().nonzero()[0])
        rate = self.settings.recipe.learning_rate * self._learning_rate_share(step)
        kept = f"the last good state, after epoch {self.epoch}, is kept" if self.epoch else "nothing was complete"
        raise CheckFailedError(
            f"{self.settings.model} (seed {self.settings.seed}) diverged in epoch {self.epoch + 1} at step {step + 1} "
            f"of {self.steps_per_epoch} (loss {self.losses[step].item()}, learning rate {rate:g}); {kept}"
        )

    def finish_epoch(self) -> None:
        """Evaluate after an epoch's last step, and record the epoch's figures.

        Raises:
            CheckFailedError: if a loss was not finite.
        """
        self.check()
        sizes = torch.tensor([len(batch) for batch in self.batches], device=self.device)
        figures = {"epoch": self.epoch + 1, "train_loss": (self.losses * sizes).sum().item() / len(self.train)}
        for name, split in (("validation", self.held_out), ("test", self.test)):
            if len(split):
                figures[f"{name}_loss"], figures[f"{name}_accuracy"] = evaluate(self.model, split)
        if self.settings.keep == "best" and self._is_best(figures):
            self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.history.append(figures | {"seconds": time.perf_counter() - self.started})
        self.position = 0

    def _is_best(self, figures: dict) -> bool:
        return all(figures["validation_accuracy"] > row["validation_accuracy"] for row in self.history)

    def finish(self) -> None:
        """Load the weights to keep into ``model``: the best epoch's if requested, else the last one's."""
        if self.best:
            self.model.load_state_dict(self.best)

    def state(self) -> dict:
        """Return the state that ``restore`` accepts."""
        return {
            "settings": json.dumps(self.settings.as_dict()),
            "history": json.dumps(self.history),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "position": self.position,
            "elapsed": time.perf_counter() - self.started if self.position else 0.0,
            "losses": self.losses,
            "generators": get_generators(self.device) if self.position else None,
        }

    def restore(self, content: object) -> bool:
        """Restore a ``State``; return False, and change nothing, if it was made with other settings.

        Raises:
            ValueError: if it is no such state, or is beyond the epoch's end.
        """
        state = msgspec.convert(content, State)
        if json.loads(state["settings"]) != self.settings.as_dict():
            return False
        history = json.loads(state["history"])
        fits = state["losses"].shape == self.losses.shape and 0 <= state["position"] < self.steps_per_epoch
        if not fits or [row["epoch"] for row in history] != list(range(1, len(history) + 1)):
            raise ValueError(f"step {state['position']} of {self.steps_per_epoch} after {len(history)} epochs")
        self.model.load_state_dict(state["model"])
        ours = self.optimizer.state_dict()["param_groups"]  # options such as ``fused`` depend on the device
        self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": ours})
        self.history = history
        self.best, self.position, self.generators = state["best"], state["position"], state["generators"]
        self.elapsed = state["elapsed"]
        self.losses.copy_(state["losses"])
        return True


def loss_of(log_probs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Return the negative log-likelihood of labels, or their cross-entropy if they are smoothed."""
    if not smoothing:
        return F.nll_loss(log_probs, labels)
    return F.cross_entropy(log_probs, labels, label_smoothing=smoothing)  # normalises by itself


def advance(trainers: Sequence[Trainer]) -> None:
    """Run one step of each trainer, one after the other."""
    for trainer in trainers:
        trainer.note(trainer.step(trainer.next_batch()))


def run_epoch(
    trainers: Sequence[Trainer],
    on_step: Callable[[int], None] = lambda images: None,
    stopped: Callable[[], bool] = lambda: False,
    step_all: Callable[[Sequence[Trainer]], None] = advance,
) -> bool:
    """Finish the current epoch of all trainers in step; ``on_step`` gets the number of images of each step.

    Returns:
        Whether the epoch is complete: False if ``stopped`` returned True after a step.

    Raises:
        CheckFailedError: if a loss was not finite.
    """
    for trainer in trainers:
        trainer.begin_epoch()
    first = trainers[0]
    while first.position < first.steps_per_epoch:
        images = len(first.batches[first.position])
        step_all(trainers)
        on_step(images * len(trainers))
        if stopped() and first.position < first.steps_per_epoch:
            for trainer in trainers:
                trainer.check()
            return False
    for trainer in trainers:
        trainer.finish_epoch()
    return True


def set_precision(model: nn.Module, precision: str, device: torch.device) -> None:
    """Train ``model`` in ``fp32``, ``tf32`` (a CUDA setting for the whole process) or ``bf16``."""
    allow_tf32(precision == "tf32", device)
    parts = dict(model.named_modules()) if precision == "bf16" else {}
    for part in (parts[name] for name in IN_BFLOAT16 if name in parts):
        part.forward = partial(_autocast, part, part.forward, device.type)


def allow_tf32(allowed: bool, device: torch.device) -> None:
    """Set whether float32 products may be rounded to TF32 on CUDA, for the whole process."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def _autocast(part: nn.Module, forward: Callable[[Tensor], Tensor], device: str, images: Tensor) -> Tensor:
    with torch.autocast(device, torch.bfloat16, enabled=part.training):
        return forward(images).float()


def get_generators(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the random generators that training on ``device`` uses."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_generators(states: dict[str, Tensor]) -> None:
    """Set the random generators to these states."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


@torch.inference_mode()
def evaluate(model: nn.Module, split: Split) -> tuple[float, float]:
    """Return mean negative log-likelihood and accuracy in [0, 1] over a split, in evaluation mode."""
    model.eval()
    loss = torch.zeros((), device=split.labels.device)
    correct = torch.zeros((), device=split.labels.device)
    for images, labels in zip(split.images.split(EVALUATION_BATCH), split.labels.split(EVALUATION_BATCH), strict=True):
        log_probs = model(normalise(images))
        loss += F.nll_loss(log_probs, labels, reduction="sum")
        correct += (log_probs.argmax(1) == labels).sum()
    return loss.item() / len(split), correct.item() / len(split)
