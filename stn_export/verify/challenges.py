"""Build the test inputs for verification: batches of every kind, and thetas that a trained network rarely predicts.

They depend only on a program's contract and its examples. Integer inputs come from the examples.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from stn_export.program.specs import BATCH, OPEN_SIZE, Batch, Contract, TensorSpec
from stn_export.run.examples import Examples

BATCHES = (1, 2, 3, 7, 64, 257)
NOISE_BATCHES = (1, 64)
GREYS = (0, 1, 127, 128, 254, 255)
MANY = 7  # batches up to this size are never too large
FAR = ("constants", "single pixels")  # far from the data: normalising almost no variance magnifies roundings
LARGEST = 2**24  # most numbers in the inputs of larger batches
QUARTERS = {"smaller size": 3, "larger size": 5}  # quarters of a dynamic size
CHANGES = 6  # combinations of dynamic sizes that are tried one against the others


def _rotation(degrees: float) -> list[list[float]]:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [[cos, sin, 0.0], [-sin, cos, 0.0]]


A_THIRD = "a third of a pixel right"
THETAS = {
    "identity": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
    "turned by 30°": _rotation(30),
    "turned by 90°": _rotation(90),
    "mirrored left to right": [[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
    "upside down": [[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]],
    "scale 0.1": [[0.1, 0.0, 0.0], [0.0, 0.1, 0.0]],
    "scale 10": [[10.0, 0.0, 0.0], [0.0, 10.0, 0.0]],
    "off the image": [[1.0, 0.0, 3.0], [0.0, 1.0, -3.0]],
    A_THIRD: [[1.0, 0.0, 1 / 3], [0.0, 1.0, 0.0]],  # the shift in pixels
    "halfway over the border": [[1.0, 0.0, 1.0], [0.0, 1.0, 0.7]],
    "sheared, not square": [[1.3, 0.4, 0.1], [-0.2, 0.6, -0.3]],
}


def theta_of(name: str, pixels_per_unit: float) -> Tensor:
    """Return one of ``THETAS``, 2×3 float32, for an image with ``pixels_per_unit`` pixels per unit of x."""
    theta = torch.tensor(THETAS[name])
    if name == A_THIRD:
        theta[0, 2] /= pixels_per_unit
    return theta


def challenges(contract: Contract, examples: Examples, most: int | None = None) -> dict[str, Batch]:
    """Return test batches by name: examples, noise, constants, single bright pixels, other sizes if sizes are dynamic.

    If the program's batch is static, each batch has that size; at most ``most`` examples are run at once.
    """
    random, fixed = torch.Generator().manual_seed(0), contract.batch
    batches = {
        f"examples ×{n}": examples.take(n) for n in ((fixed,) if fixed else BATCHES) if fixed or fits(examples, n, most)
    }
    if any(spec.is_float for spec in contract.inputs):
        for n in (fixed,) if fixed else NOISE_BATCHES:
            if fixed or fits(examples, n, most):
                batches[f"noise ×{n}"] = _noise(contract, examples, n, random)
    for name, batch in (_drawn(contract, examples) | _resized(contract, examples)).items():
        batches |= _as_batches(name, batch, contract)
    return batches


def fits(examples: Examples, count: int, most: int | None = None) -> bool:
    """Return whether ``count`` examples can be run at once in float64; at most ``most`` of them fit into memory."""
    if most is not None and count > max(MANY, most):
        return False
    return count <= MANY or count * sum(value.numel() for value in examples.take(1).values()) <= LARGEST


def _noise(contract: Contract, examples: Examples, count: int, random: torch.Generator) -> Batch:
    """Return examples with every float input replaced by uniform noise between its smallest and its largest value."""
    batch = dict(examples.take(count))
    for spec in contract.inputs:
        values = batch[spec.name]
        if spec.is_float and values.dtype == torch.uint8:
            batch[spec.name] = torch.randint(256, values.shape, generator=random, dtype=torch.uint8)
        elif spec.is_float:
            low, high = range_of(examples.inputs[spec.name])
            batch[spec.name] = (low + (high - low) * torch.rand(values.shape, generator=random)).to(values.dtype)
    return batch


def range_of(values: Tensor) -> tuple[float, float]:
    """Return the values that are black and white in an input."""
    return (0.0, 255.0) if values.dtype == torch.uint8 else (float(values.min()), float(values.max()))


def _drawn(contract: Contract, examples: Examples) -> dict[str, Batch]:
    """Return constant grey images, and black ones with one white pixel; nothing if no input is an image."""
    pictures = [spec for spec in contract.inputs if spec.is_picture and spec.is_float and spec.batched]
    if not pictures:
        return {}
    height, width = examples.inputs[pictures[0].name].shape[-2:]
    places = _places(height, width)
    greys, single = (dict(examples.take(count)) for count in (len(GREYS), len(places)))
    for spec in pictures:
        values = examples.inputs[spec.name]
        low, high = range_of(values)
        levels = low + (high - low) * torch.tensor(GREYS).double() / 255
        greys[spec.name] = torch.zeros_like(greys[spec.name]) + levels.view(-1, 1, 1, 1).to(values.dtype)
        single[spec.name] = torch.full_like(single[spec.name], low)
        height, width = values.shape[-2:]
        for picture, (y, x) in zip(single[spec.name], _places(height, width, len(places)), strict=True):
            picture[:, y, x] = high
    return dict(zip(FAR, (greys, single), strict=True))


def _places(height: int, width: int, count: int | None = None) -> list[tuple[int, int]]:
    """Return rows and columns of pixels at the edges and in the middle; ``count`` of them, cyclically, if given."""
    rows, columns = (
        dict.fromkeys(max(0, min(place, size - 1)) for place in places)
        for size, places in (
            (height, (0, 1, height // 2 - 1, height // 2, height - 1)),
            (width, (0, width // 2, width - 1)),
        )
    )
    places = [(y, x) for y in rows for x in columns]
    return places if count is None else [places[index % len(places)] for index in range(count)]


def _resized(contract: Contract, examples: Examples) -> dict[str, Batch]:
    """Return three examples with every dynamic size smaller, and larger."""
    if not contract.open_sizes:
        return {}
    return {
        name: {spec.name: _stretched(spec, examples.take(3)[spec.name], quarters) for spec in contract.inputs}
        for name, quarters in QUARTERS.items()
    }


def _stretched(spec: TensorSpec, values: Tensor, quarters: int) -> Tensor:
    for axis, name in enumerate(spec.shape):
        if isinstance(name, str) and not (spec.batched and axis == 0):
            size = values.shape[axis]
            side = max(2, size // 4 * quarters if size % 4 == 0 else round(size * quarters / 4))
            values = values.index_select(axis, torch.arange(side) * size // side)
    return values


def other_sizes(contract: Contract) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield sizes of the dynamic dimensions by name: all smaller, larger and odd, then some larger than the others.

    Those are the dimensions with the same place in their inputs, and each alone, at most ``CHANGES``.
    """
    names = contract.open_sizes
    if not names:
        return
    larger = OPEN_SIZE // 4 * QUARTERS["larger size"]
    yield from ((name, dict.fromkeys(names, OPEN_SIZE // 4 * quarters)) for name, quarters in QUARTERS.items())
    yield "odd size", dict.fromkeys(names, OPEN_SIZE + 1)
    for changed in [part for part in _changes(contract) if len(part) < len(names)][:CHANGES]:
        yield f"larger {', '.join(changed)}", {name: larger if name in changed else OPEN_SIZE for name in names}


def _changes(contract: Contract) -> list[tuple[str, ...]]:
    """Return the dynamic dimensions by their place, counted from the last one, then each alone."""
    names, places = contract.open_sizes, dict[int, dict[str, None]]()
    for spec in contract.inputs:
        for place, size in enumerate(reversed(spec.nchw)):
            if size in names:
                places.setdefault(place, {})[str(size)] = None
    together = [tuple(places[place]) for place in sorted(places, reverse=True)]
    return list(dict.fromkeys([*together, *((name,) for name in names)]))


def noise_of(contract: Contract, sizes: Mapping[str, int], seed: int = 0) -> Batch:
    """Draw two examples of these sizes: normal noise, and what ``Contract.random`` gives for bytes and integers."""
    random, batch = torch.Generator().manual_seed(seed), dict(contract.random(2, seed, sizes))
    for spec in contract.inputs:
        if spec.is_float and spec.pixels is None:
            batch[spec.name] = torch.randn(batch[spec.name].shape, generator=random).to(batch[spec.name].dtype)
    return batch


def sizes_of(batch: Batch, contract: Contract) -> tuple[int, ...]:
    """Return the sizes of a batch in the dynamic dimensions of a contract, each name once."""
    sizes = {
        name: size
        for spec in contract.inputs
        for name, size in zip(spec.nchw, batch[spec.name].shape, strict=False)  # the user may give others
        if isinstance(name, str) and name != BATCH
    }
    return tuple(sizes.values())


def _as_batches(name: str, batch: Batch, contract: Contract) -> dict[str, Batch]:
    """Return the batch, split into batches of the program's static size if it has one; the last one is padded."""
    size = size_of(batch, contract)
    if contract.batch in (None, size):
        return {name: batch}
    parts = [rows_of(batch, contract, rows) for rows, _ in filled(size, contract.batch)]
    return {name if len(parts) == 1 else f"{name} {part}": batch for part, batch in enumerate(parts, 1)}


def filled(count: int, size: int) -> Iterator[tuple[Tensor, int]]:
    """Yield the rows of batches of ``size`` that hold ``count`` examples, the last padded, and how many rows count."""
    for start in range(0, count, size):
        yield torch.arange(start, start + size) % count, min(size, count - start)


def size_of(batch: Batch, contract: Contract) -> int:
    """Return the number of examples in a batch; 1 if no input is batched."""
    return next((len(batch[spec.name]) for spec in contract.inputs if spec.batched), 1)


def rows_of(batch: Mapping[str, Tensor], contract: Contract, chosen: Tensor) -> Batch:
    """Return the chosen examples of a batch."""
    return {spec.name: batch[spec.name][chosen] if spec.batched else batch[spec.name] for spec in contract.inputs}
