"""Picture files as the input that a network takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stn_export.artifacts.examples import Examples, picture_of
from stn_export.artifacts.pictures import read_picture
from stn_export.errors import UserError
from stn_export.program.specs import Batch, Contract

BATCH = 256


@dataclass(frozen=True)
class Feeder:
    """What a network is fed: ``pictures`` (uint8 N×C×H×W) as its input ``name``, others as in the first example."""

    name: str
    pictures: Tensor
    examples: Examples

    @property
    def others(self) -> list[str]:
        """The inputs that do not come from the pictures."""
        return [name for name in self.examples.inputs if name != self.name]

    def rows(self, chosen: Tensor) -> Batch:
        """A batch of some of the pictures."""
        return self.examples.rows(torch.zeros_like(chosen)) | {self.name: self.pictures[chosen]}

    def parts(self, contract: Contract, chosen: Sequence[int] | None = None) -> list[tuple[int, Batch]]:
        """Batches of all or some pictures, filled up where the contract fixes their size, with the number in each.

        Where an input or output has no batch, pictures go one by one.
        """
        picture = next(spec for spec in contract.inputs if spec.name == self.name)
        own = picture.shape[0]
        wanted = contract.batch if picture.batched else own if isinstance(own, int) else None
        single = not all(spec.batched for spec in (picture, *contract.outputs))
        parts = torch.tensor(chosen or range(len(self.pictures))).split(1 if single else wanted or BATCH)
        return [(len(part), self.rows(part[torch.arange(wanted or len(part)) % len(part)])) for part in parts]


def feeder_of(contract: Contract, examples: Examples, paths: Sequence[Path]) -> tuple[Feeder, dict[Path, str]]:
    """The pictures of ``paths`` as an artifact's input, and why some of them are not among them.

    Raises:
        UserError: where it takes no pictures, or no file is one.
    """
    spec, (channels, height, width) = picture_of(contract, examples)
    pictures: list[Tensor] = []
    unread: dict[Path, str] = {}
    for path in paths:
        try:
            pictures.append(read_picture(path, channels, height, width))
        except UserError as error:
            if len(paths) == 1:
                raise
            unread[path] = error.message
    if not pictures:
        raise UserError(f"none of {len(paths)} files can be read: {next(iter(unread.values()))}", "name pictures")
    return Feeder(spec.name, torch.stack(pictures), examples), unread
