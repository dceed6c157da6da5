"""Convert a captured program to a runtime's own format: ``python convert.py FORMAT PROGRAM.pt2 INPUTS.npz FILE``.

Imports nothing of this package, like ``serve``: it runs in the runtime's environment, which also sees this one's
PyTorch.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

Inputs = tuple[Tensor, ...]


class Flat(nn.Module):
    """A program with its outputs as a flat tuple, marked as in evaluation mode, which a captured graph lacks."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.training = module, False

    def train(self, mode: bool = True) -> "Flat":
        """Do nothing: a captured graph has no modes."""
        return self

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors in the program's outputs."""
        return tuple(leaf for leaf in _pytree.tree_leaves(self.module(*inputs)) if isinstance(leaf, Tensor))


def executorch(module: nn.Module, inputs: Inputs, out: Path) -> None:
    """Convert to ExecuTorch, with what XNNPACK supports delegated to it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(module, inputs)
    out.write_bytes(to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)


def litert(module: nn.Module, inputs: Inputs, out: Path) -> None:
    """Convert to LiteRT."""
    import litert_torch

    litert_torch.convert(module, inputs).export(str(out))


def main(name: str, program: str, inputs: str, out: str) -> None:
    """Convert one program and write the file."""
    converter: Callable[[nn.Module, Inputs, Path], None] = globals()[name]
    with np.load(inputs) as content:
        tensors = tuple(torch.from_numpy(content[key]) for key in content.files)
    converter(Flat(torch.export.load(program).module()), tensors, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
