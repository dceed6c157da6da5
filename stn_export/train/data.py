"""Load data sets as uint8 NCHW tensors, decoded once and cached under ``data/cache``, and augment images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10

from stn_export.config import DATA
from stn_export.errors import UserError, require_choice
from stn_export.run.store import fingerprint, serialise, write_atomically
from stn_export.train.digits import draw_digits
from stn_export.train.recipes import ALIGN_CORNERS, DATASETS, MEAN, STD, AffineRange

# Augmentation of a batch of images on its own device.


def flip_and_crop(images: Tensor, flip: bool, crop: int) -> Tensor:
    """Mirror half of the images at random, if ``flip``, and shift each by up to ``crop`` pixels; borders are black."""
    if not flip and not crop:
        return images
    count, channels, height, width = images.shape
    shifts = torch.randint(2 * crop + 1, (2, count, 1), device=images.device)
    rows = torch.arange(height, device=images.device) + shifts[0]
    columns = torch.arange(width, device=images.device) + shifts[1]
    if flip:
        columns = torch.where(torch.rand(count, 1, device=images.device) < 0.5, columns.flip(1), columns)
    padded = F.pad(images, (crop,) * 4).flatten(2)
    pixels = rows[:, :, None] * (width + 2 * crop) + columns[:, None, :]  # N×H×W, into each padded plane
    return padded.gather(2, pixels.view(count, 1, -1).expand(-1, channels, -1)).view(images.shape)


def random_affine(images: Tensor, limits: AffineRange, generator: torch.Generator | None = None) -> Tensor:
    """Rotate, scale and shift each image about its centre, with bilinear sampling; black outside the image."""
    theta = affine_matrices(len(images), limits, images.shape[-1], images.device, generator)
    grid = F.affine_grid(theta, list(images.shape), align_corners=ALIGN_CORNERS)
    warped = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=ALIGN_CORNERS)
    return warped.round_().to(torch.uint8)


def affine_matrices(
    count: int, limits: AffineRange, size: int, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Draw random maps from output to input coordinates, N×2×3, in units of half the image's ``size`` in pixels."""
    turn, zoom, right, down = torch.rand(4, count, device=device, generator=generator)
    angle = math.radians(limits.degrees) * (2 * turn - 1)
    low, high = limits.scale
    inverse = 1 / (low + (high - low) * zoom)  # an object half as large is sampled twice as wide
    cosine, sine = inverse * angle.cos(), inverse * angle.sin()
    dx, dy = ((2 * part - 1) * 2 * limits.shift / size for part in (right, down))
    linear = torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2)
    return torch.cat([linear, torch.bmm(linear, torch.stack([dx, dy], dim=1)[..., None])], dim=2)


PICKLED_CIFAR10 = "cifar-10-batches-py"
DIGITS_TRAIN, DIGITS_TEST = 10_000, 2_000
WARP_SEED = 0
CACHE_VERSION = "1"  # increased whenever a decoder or the drawing of digits changes


@dataclass(frozen=True)
class Split:
    """uint8 images N×3×32×32 and int64 labels N."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Split":
        """Return the split on ``device``."""
        return Split(self.images.to(device), self.labels.to(device))

    def __getitem__(self, part: slice) -> "Split":
        return Split(self.images[part], self.labels[part])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set in memory; ``fingerprint`` is the sha256 of its pixels and labels."""

    name: str
    train: Split
    test: Split
    fingerprint: str
    source: str

    def to(self, device: torch.device) -> "Dataset":
        """Return the data set on ``device``."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def normalise(images: Tensor) -> Tensor:
    """Convert uint8 images of any shape to float32 in [-1, 1]: (x / 255 - MEAN) / STD; ``Pixels`` does the same."""
    return images.float().div_(255 * STD).sub_(MEAN / STD)


def load_dataset(name: str, data: Path | None = None) -> Dataset:
    """Load ``digits`` (drawn here) or ``cifar10`` (from ``data``, else from ``data/``, else downloaded).

    For a variant with an affine range, test images are warped here with a fixed seed, and training images each time
    they are used (``seen_in_training``).

    Raises:
        UserError: for an unknown name, or if CIFAR-10 cannot be found, downloaded or read.
    """
    require_choice("data set", name, list(DATASETS))
    dataset = _load_digits() if name == "digits" else _load_cifar10(data)
    limits = DATASETS[name].affine
    return dataset if limits is None else _with_warped_test(dataset, name, limits)


def _with_warped_test(dataset: Dataset, name: str, limits: AffineRange) -> Dataset:
    warped = random_affine(dataset.test.images, limits, torch.Generator().manual_seed(WARP_SEED))
    digest = fingerprint([dataset.fingerprint.encode(), warped.numpy().tobytes()])
    return replace(dataset, name=name, test=Split(warped, dataset.test.labels), fingerprint=digest)


def seen_in_training(dataset: Dataset, count: int) -> Tensor:
    """Return the first ``count`` training images, uint8, warped as in training, but not flipped or cropped."""
    images, limits = dataset.train.images[:count], DATASETS[dataset.name].affine
    return images if limits is None else random_affine(images, limits, torch.Generator().manual_seed(WARP_SEED))


def _load_digits() -> Dataset:
    def draw() -> tuple[Split, Split]:
        images, labels = draw_digits(DIGITS_TRAIN + DIGITS_TEST, seed=0)
        return Split(images[:DIGITS_TRAIN], labels[:DIGITS_TRAIN]), Split(images[DIGITS_TRAIN:], labels[DIGITS_TRAIN:])

    return _cached("digits", "drawn from matplotlib's fonts", str(DIGITS_TRAIN), draw)


def _load_cifar10(data: Path | None) -> Dataset:
    if data is not None and not data.is_dir():
        raise UserError(
            f"DATA={data} is not a directory", "name one that holds cifar-10-batches-py or train/ and test/"
        )
    for folder in [data] if data is not None else [DATA]:
        if (folder / "train").is_dir() and (folder / "test").is_dir():
            return _load_tree(folder)
        if (folder / PICKLED_CIFAR10).is_dir():
            return _load_pickled(folder)
    if data is not None:
        raise UserError(f"{data} holds neither {PICKLED_CIFAR10} nor train/ and test/", "point DATA= at one of them")
    return _download()


def _download() -> Dataset:
    try:
        CIFAR10(DATA, download=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"CIFAR-10 is neither in {DATA}/ nor could it be downloaded ({error})",
            "give DATA=<directory>, or connect to the network, or use DATASET=digits, which needs neither",
        ) from error
    return _load_pickled(DATA)


def _load_pickled(folder: Path) -> Dataset:
    def read(train: bool) -> Split:
        try:
            part = CIFAR10(folder, train=train)
        except (RuntimeError, OSError, EOFError) as error:
            raise UserError(f"{folder / PICKLED_CIFAR10} is incomplete or corrupted", "fetch it again") from error
        return Split(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))

    files = sorted((folder / PICKLED_CIFAR10).iterdir())
    return _cached("cifar10", str(folder), _stamp(files), lambda: (read(True), read(False)))


def _load_tree(folder: Path) -> Dataset:
    files = {split: _tree_files(folder / split) for split in ("train", "test")}

    def decode(split: str) -> Split:
        classes = DATASETS["cifar10"].classes
        images = torch.stack([_decode(file) for file in files[split]])
        return Split(images, torch.tensor([classes.index(file.parent.name) for file in files[split]]))

    stamp = _stamp(files["train"] + files["test"])
    return _cached("cifar10", str(folder), stamp, lambda: (decode("train"), decode("test")))


def _tree_files(folder: Path) -> list[Path]:
    """List every PNG of ``<folder>/<class>/``, shuffled with a fixed seed so that any prefix is a fair sample."""
    files = []
    for label in DATASETS["cifar10"].classes:
        found = sorted((folder / label).glob("*.png"))
        if not found:
            raise UserError(f"{folder / label} is missing or holds no .png", "every class needs its own directory")
        files += found
    return [files[index] for index in torch.randperm(len(files), generator=torch.Generator().manual_seed(0))]


def _decode(file: Path) -> Tensor:
    """Decode an RGB PNG as uint8 3×32×32."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            kind, pixels = (*image.size, image.mode), bytearray(image.tobytes())
    except (OSError, SyntaxError) as error:  # Pillow reports a broken PNG as either
        raise UserError(f"{file} cannot be decoded: {error}", "replace the file") from error
    if kind != (32, 32, "RGB"):
        raise UserError(f"{file} is {kind[0]}×{kind[1]} {kind[2]}, not 32×32 RGB", "replace the file")
    return torch.frombuffer(pixels, dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1)


def _stamp(files: list[Path]) -> str:
    """Return a fingerprint that changes if a file is added, removed, resized or rewritten."""
    return fingerprint(f"{file} {stat.st_size} {stat.st_mtime_ns}".encode() for file in files for stat in [file.stat()])


def _cached(name: str, source: str, stamp: str, build: Callable[[], tuple[Split, Split]]) -> Dataset:
    """Return the data set that ``build`` makes, from the cache if it was built with the same stamp before."""
    key = fingerprint(part.encode() for part in (CACHE_VERSION, torch.__version__, name, source, stamp))
    path = DATA / "cache" / f"{name}-{key[:16]}.pt"
    if path.exists():
        try:
            content = torch.load(path, weights_only=True, mmap=True)
            return _dataset(name, source, content["tensors"], content["fingerprint"])
        except Exception:  # a damaged cache is rebuilt
            path.unlink()
    train, test = build()
    tensors = [train.images, train.labels, test.images, test.labels]
    digest = fingerprint(tensor.numpy().tobytes() for tensor in tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, serialise({"tensors": tensors, "fingerprint": digest}))
    return _dataset(name, source, tensors, digest)


def _dataset(name: str, source: str, tensors: Sequence[Tensor], digest: str) -> Dataset:
    train_images, train_labels, test_images, test_labels = tensors
    return Dataset(name, Split(train_images, train_labels), Split(test_images, test_labels), digest, source)
