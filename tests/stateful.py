"""Small networks that keep something between calls, write into what they are given, or break off, as people's do."""

import sys
from collections import deque

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Queue(nn.Module):
    """Differences of neighbouring frames of a video, the last frame of the call before among them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(1, 3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.last, x])
        self.last = both[-1:].clone()
        grid = F.affine_grid(torch.eye(2, 3, dtype=x.dtype)[None], (1, 1, 8, 8), align_corners=False)
        return F.grid_sample(both[:-1] - both[1:], 0.9 * grid.expand(x.shape[0], -1, -1, -1), align_corners=False)


class InPlaceBuffer(nn.Module):
    """Adds how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x + self.calls


class RunningMean(nn.Module):
    """Takes a mean away that it keeps, a part of each batch's mixed in."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.mean[:] = 0.99 * self.mean + 0.01 * x.mean(0)
        return x - self.mean


class Counter(nn.Module):
    """Multiplies by how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class History(nn.Module):
    """Gives how many it has seen; a part of a part keeps the list."""

    class Memory(nn.Module):
        """The part."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x.detach())
            return x * len(self.seen)

    def __init__(self) -> None:
        super().__init__()
        self.memory = self.Memory()

    def forward(self, x: Tensor) -> Tensor:
        return self.memory(x)


class Window(nn.Module):
    """A mean over the last calls, in a deque."""

    def __init__(self) -> None:
        super().__init__()
        self.window: deque[Tensor] = deque([torch.zeros(3)] * 2, maxlen=2)

    def forward(self, x: Tensor) -> Tensor:
        self.window.append(x.mean(0))
        return x - (self.window[0] + self.window[1]) / 2


class ArrayState(nn.Module):
    """Keeps a number in a NumPy array."""

    def __init__(self) -> None:
        super().__init__()
        self.array = np.ones(2)

    def forward(self, x: Tensor) -> Tensor:
        self.array *= 2
        return x * float(self.array[0])


class HalvedWeight(nn.Module):
    """Changes its own parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.mul_(0.5)
        return x * self.weight


class LooksBack(nn.Module):
    """Keeps what it saw and gives nothing of it: answers do not depend on it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention: Tensor | None = None
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.attention = x.softmax(1)
        self.seen += 1
        return self.attention @ torch.ones(3, 2)


class CachedGrid(nn.Module):
    """Makes its grid once for each size of picture."""

    def __init__(self) -> None:
        super().__init__()
        self.grids: dict[tuple[int, int], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2], x.shape[-1]
        if size not in self.grids:
            self.grids[size] = F.affine_grid(0.8 * torch.eye(2, 3)[None], (1, 1, *size), align_corners=False)
        return F.grid_sample(x, self.grids[size].expand(x.shape[0], -1, -1, -1), align_corners=False)


class WritesInput(nn.Module):
    """Works in the memory of what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        x[:, 0] = 1
        return x + 1


class WritesColumn(nn.Module):
    """Writes into a part of what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 1
        return x + 1


class Held:
    """Something that cannot be copied."""

    def __deepcopy__(self, memo: object) -> "Held":
        raise TypeError("cannot pickle a file that is open")


class Uncopyable(nn.Module):
    """A queue that cannot be copied."""

    def __init__(self, keeps: bool = False) -> None:
        super().__init__()
        self.file, self.keeps, self.calls = Held(), keeps, 0
        self.layer = nn.Linear(3, 3)
        self.register_buffer("last", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.keeps:
            self.calls += 1
            self.last = self.last + 1
            self.layer.bias.data.add_(1)
        return self.layer(x) + self.last


class Exits(nn.Module):
    """Ends the program, as scripts do."""

    def forward(self, x: Tensor) -> Tensor:
        sys.exit(0)


class Odd(BaseException):
    """Not even an Exception."""


class RaisesOdd(nn.Module):
    """Raises what hardly anybody catches."""

    def forward(self, x: Tensor) -> Tensor:
        raise Odd("of a library's own")


class Column(nn.Module):
    """One column of a million beside random ones."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([1e6 * x[:, :1], torch.rand_like(x)], 1)


class Truths(nn.Module):
    """Gives reference values beside numbers."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x > 0, x * 2


class NotNumbers(nn.Module):
    """Gives what is no number for some of what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).log()


KEEPS = (  # what each keeps, and where its line is found
    (Queue, (2, 3, 8, 8), "buffer last"),
    (InPlaceBuffer, (2, 3), "buffer calls"),
    (RunningMean, (2, 3), "buffer mean"),
    (Counter, (2, 3), "attribute calls"),
    (History, (2, 3), "attribute memory.seen"),
    (Window, (2, 3), "attribute window"),
    (ArrayState, (2, 3), "attribute array"),
    (HalvedWeight, (2, 3), "parameter weight"),
)


class Masked(nn.Module):
    """Warps a picture by a flow; a mask between the two may be left out."""

    def forward(self, image: Tensor, mask: Tensor | None = None, flow: Tensor | None = None) -> Tensor:
        if mask is not None:
            image = image * mask[:, :1]
        if flow is None:
            return image
        grid = F.affine_grid(torch.eye(2, 3)[None], (1, 1, *image.shape[2:]), align_corners=False)
        return F.grid_sample(image, grid + flow.permute(0, 2, 3, 1), align_corners=False)


class Nested(nn.Module):
    """Takes a pair, a dictionary and a flag."""

    def forward(self, pair: list[Tensor], more: dict[str, Tensor], *, scale: float, turn: bool = False) -> Tensor:
        found = scale * (pair[0] - pair[1]) + more["bias"]
        return found.flip(1) if turn else found


class Siamese(nn.Module):
    """Joins two pictures, looks at both at once, and takes them apart again."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        one, other = self.features(torch.cat([first, second])).chunk(2)
        return (one * other).flatten(2).sum(-1)


class Half(nn.Module):
    """A layer of half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2).half()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class OtherOperator(nn.Module):
    """Uses an operator of a package that is somebody else's."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.other_operators.double(x) + 1
