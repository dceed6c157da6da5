"""What a training gives, epoch by epoch, for TensorBoard; ``tensorboard`` is an extra."""

from pathlib import Path

import torch

from stn_export.program.specs import Pixels
from stn_export.train.cells import Cell
from stn_export.train.data import MEAN, STD, normalise
from stn_export.train.trainer import Trainer

PICTURES = 16


class Board:
    """Losses, accuracies and seconds of every epoch, and test images beside what the transformer makes of them."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.open, self.folder = SummaryWriter, folder
        self.writers: dict[str, SummaryWriter] = {}

    def epoch(self, cell: Cell, trainer: Trainer) -> None:
        """The epoch that the trainer has just tested; a training that goes on writes on."""
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
