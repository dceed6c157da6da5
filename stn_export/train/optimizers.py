"""Build a recipe's optimiser, and set its learning rate at every step."""

import math
from itertools import chain

import torch
from torch import Tensor, nn

from stn_export.train.recipes import Recipe


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the recipe's optimiser; on CUDA one that a graph can capture, with its learning rates in tensors."""
    on_cuda = next(model.parameters()).is_cuda
    groups = list(chain.from_iterable(_groups(part, name, recipe) for name, part in model.named_children()))
    for group in groups:
        group["peak"] = group["lr"]
        group["lr"] = torch.tensor(group["lr"], device="cuda") if on_cuda else group["lr"]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, fused=on_cuda, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    return torch.optim.AdamW(groups, fused=on_cuda, capturable=on_cuda)  # a capture fails without it


def _groups(part: nn.Module, name: str, recipe: Recipe) -> list[dict]:
    """Return parameter groups for the weights and the biases of the transformer or the classifier."""
    rate = recipe.learning_rate * (recipe.localisation_scale if name == "transformer" else 1)
    weights = [parameter for parameter in part.parameters() if parameter.ndim > 1]
    biases = [parameter for parameter in part.parameters() if parameter.ndim == 1]
    return [
        {"params": weights, "lr": rate, "weight_decay": recipe.weight_decay},
        {"params": biases, "lr": rate, "weight_decay": 0.0},
    ]


def learning_rate_share(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate at ``step`` (from 0) of ``steps`` as a share of its peak; 1 without a cycle.

    The cycle is ``torch.optim.lr_scheduler.OneCycleLR``'s: cosines from 1/25 up to 1 and down to 1/250,000.
    """
    if not recipe.one_cycle:
        return 1.0
    top = recipe.warm_up * steps - 1
    if step < top:
        return _cosine(1 / 25, 1.0, step / top)
    return _cosine(1.0, 1 / 250_000, (step - top) / (steps - 1 - top))


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set the learning rate of every group to this share of its peak."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(share * group["peak"])
        else:
            group["lr"] = share * group["peak"]
