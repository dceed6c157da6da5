"""Training on more than one device or machine under ``torchrun``: a grid shared out, or batches split (DDP)."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from stn_export.train.data import Dataset
from stn_export.train.trainer import Settings, Trainer, loss_of

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """The processes that train together; without torchrun a single one. ``split``: they share each batch."""

    rank: int = 0
    size: int = 1
    split: bool = False

    @property
    def writes(self) -> bool:
        """Whether this rank writes files: ranks that share batches hold the same weights."""
        return self.rank == 0 or not self.split

    def share(self, items: Sequence[Item], cost: Callable[[Item], int]) -> list[Item]:
        """This rank's part of a grid: the dearest first, each to the rank that has least to do."""
        if self.split or self.size == 1:
            return list(items)
        costs, loads = list(map(cost, items)), [0] * self.size
        mine = []
        for index in sorted(range(len(items)), key=lambda index: -costs[index]):
            rank = loads.index(min(loads))
            loads[rank] += costs[index]
            mine += [index] * (rank == self.rank)
        return [items[index] for index in sorted(mine)]

    def agreed(self, stop: bool) -> bool:
        """Whether any rank wants to stop; ranks that share batches have to stop after the same step."""
        if not self.split:
            return stop
        flag = torch.tensor(float(stop))
        dist.all_reduce(flag)
        return bool(flag)

    def wait(self) -> None:
        """Until every rank has come this far."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


@contextmanager
def joined(device: torch.device, split: bool) -> Iterator[World]:
    """The world that torchrun started this process in, each rank on a GPU of its own where ``device`` is CUDA."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), split)
    finally:
        dist.destroy_process_group()


class SplitTrainer(Trainer):
    """A trainer that takes its rank's part of every batch and averages gradients with the other ranks."""

    def __init__(self, settings: Settings, dataset: Dataset, device: torch.device, world: World) -> None:
        super().__init__(settings, dataset, device)
        self.world = world
        self.network = DistributedDataParallel(self.model)
        self.whole = 0

    def begin_epoch(self) -> None:
        super().begin_epoch()
        if self.world.rank:  # dropout and augmentation of its own
            torch.manual_seed(hash((self.settings.seed, self.epoch, self.position, self.world.rank)))

    def step(self, chosen: Tensor) -> Tensor:
        self.whole = len(chosen)
        loss = super().step(chosen.tensor_split(self.world.size)[self.world.rank]) / self.world.size
        dist.all_reduce(loss)
        return loss

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """This rank's share of the whole batch's mean, times the ranks: DDP averages over them."""
        total = loss_of(self.network(images), labels, self.settings.recipe.label_smoothing, reduction="sum")
        return total * self.world.size / self.whole
