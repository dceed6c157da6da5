"""Training on more than one device or machine under ``torchrun``: a grid of models and seeds, shared out."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """The processes that train together; without torchrun a single one."""

    rank: int = 0
    size: int = 1

    def share(self, items: Sequence[Item], cost: Callable[[Item], int]) -> list[Item]:
        """This rank's part of a grid: the dearest first, each to the rank that has least to do."""
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
        """Until every rank has come this far."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world that torchrun started this process in, each rank on a GPU of its own where ``device`` is CUDA."""
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
