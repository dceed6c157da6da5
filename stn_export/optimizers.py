"""A recipe's optimiser and learning-rate schedule."""

import torch
from torch import nn

from stn_export.config import Recipe


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser, the transformer's parameters at ``localisation_scale`` times the learning rate."""
    parts = dict(model.named_children())
    groups = [
        {"params": list(part.parameters()), "lr": recipe.learning_rate * scale}
        for name, scale in (("transformer", recipe.localisation_scale), ("classifier", 1.0))
        if (part := parts.get(name)) is not None
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)


def build_scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The recipe's schedule, stepped once a batch: one cycle up and down, or constant."""
    if not recipe.one_cycle:
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    peaks = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=recipe.epochs * steps_per_epoch)
