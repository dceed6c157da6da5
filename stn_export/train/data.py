"""Load data sets as uint8 NCHW tensors, decoded once and cached under ``data/cache``, and augment images.

A folder of one's own pictures holds strangers' files: only formats of an allow-list are decoded, within limits of bytes
and pixels, and no symbolic link leads out of the folder.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.error import URLError

import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10

from stn_export import cli
from stn_export.config import DATA
from stn_export.errors import UserError, require_choice
from stn_export.limits import require
from stn_export.run.examples import FORMATS, read_picture
from stn_export.run.store import fingerprint, serialise, write_atomically
from stn_export.train.digits import draw_digits
from stn_export.train.networks import checked_sizes
from stn_export.train.recipes import (
    ALIGN_CORNERS,
    CIFAR10_SIZES,
    DATASETS,
    FOLDER,
    MEAN,
    STD,
    AffineRange,
    DatasetSpec,
    Sizes,
)

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
    """uint8 images N×3×S×S and int64 labels N."""

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
    """A data set in memory; ``fingerprint`` is the sha256 of its pixels and labels.

    ``own`` describes the user's own pictures; the others are described in ``DATASETS``.
    """

    name: str
    train: Split
    test: Split
    fingerprint: str
    source: str
    own: DatasetSpec | None = None

    @property
    def spec(self) -> DatasetSpec:
        """Return its classes, default recipe and description."""
        return self.own or DATASETS[self.name]

    @property
    def sizes(self) -> Sizes:
        """Return what the layers of a network for it follow from."""
        return Sizes(self.train.images.shape[-1], len(self.spec.classes))

    def to(self, device: torch.device) -> "Dataset":
        """Return the data set on ``device``."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def normalise(images: Tensor) -> Tensor:
    """Convert uint8 images of any shape to float32 in [-1, 1]: (x / 255 - MEAN) / STD; ``Pixels`` does the same."""
    return images.float().div_(255 * STD).sub_(MEAN / STD)


def load_dataset(name: str, data: Path | None = None) -> Dataset:
    """Load ``digits`` (drawn here) or ``cifar10`` (from ``data``, else from ``data/``, else downloaded).

    The user's own pictures are loaded by ``load_folder``.

    For a variant with an affine range, test images are warped here with a fixed seed, and training images each time
    they are used (``seen_in_training``).

    Raises:
        UserError: for an unknown name, or if CIFAR-10 cannot be found, downloaded or read.
    """
    require_choice("data set", name, [dataset for dataset in DATASETS if dataset != FOLDER])
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
        pictures = sorted((folder / label).glob("*.png"))
        if not pictures:
            raise UserError(f"{folder / label} is missing or holds no .png", "every class needs its own directory")
        files += pictures
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


# A folder of one's own pictures: DIR/{train,test}/<class>/* or DIR/<class>/*.


TEST_SHARE, SPLIT_SEED = 0.2, 0  # of each class's pictures, where the folder does not divide them itself
SPLITS = ("train", "test")
MOST_NAMED = 3  # unreadable pictures that an error names
LAYOUT = "make it DIR/{train,test}/<class>/* or DIR/<class>/*"
SUFFIXES = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
Files = dict[str, list[Path]]  # pictures by class, both in label order


def load_folder(data: Path, size: int | None = None) -> Dataset:
    """Load the user's own pictures as RGB images of ``size`` pixels a side; by default as many as CIFAR-10 has.

    Where there is no ``train/`` and ``test/``, ``TEST_SHARE`` of each class is drawn for testing with a fixed seed.
    Hidden files are no pictures; every other file in a class's folder must be one.

    Raises:
        UserError: naming the folder, class or picture that cannot be used.
    """
    if not data.is_dir():
        raise UserError(f"{data} is not a directory", f"name a folder of pictures: {LAYOUT}")
    parts, divided = _divided(data)
    classes = tuple(parts[0])
    sizes = checked_sizes(Sizes(CIFAR10_SIZES.size if size is None else size, len(classes)))
    files = {split: _shuffled(part) for split, part in zip(SPLITS, parts, strict=True)}
    count = sum(map(len, files.values()))
    require("dataset", count * math.prod(sizes.image), f"{count:,} pictures of {data} at --size {sizes.size}")
    counts = " and ".join(f"{len(those):,} for {split}ing" for split, those in files.items())
    note = (
        f"pictures of {data.resolve().name}: {len(classes)} classes, {counts}, {divided}; each as RGB, on white where "
        f"transparent, resized to {sizes.size}×{sizes.size} bilinearly whatever its proportions"
    )
    stamp = " ".join((PIL.__version__, repr(sizes), _stamp([file for split in SPLITS for file in files[split]])))
    loaded = _cached(FOLDER, str(data), stamp, partial(_read_all, files, classes, sizes))
    return replace(loaded, own=replace(DATASETS[FOLDER], classes=classes, note=note))


def _divided(data: Path) -> tuple[tuple[Files, Files], str]:
    """Return the pictures for training and testing, and how they were divided, in words.

    Raises:
        UserError: where one of the two is missing, their classes differ, or a class is too small to divide.
    """
    there = [split for split in SPLITS if (data / split).is_dir()]
    if not there:
        return _drawn(data, _by_class(data, data)), f"{TEST_SHARE:.0%} of each class drawn with seed {SPLIT_SEED}"
    if len(there) == 1:
        [missing] = set(SPLITS) - set(there)
        hint = f"add it, or name {data / there[0]}: {TEST_SHARE:.0%} of each class is then drawn for testing"
        raise UserError(f"{data} holds {there[0]}/ and no {missing}/", hint)
    train, test = (_by_class(data / split, data) for split in SPLITS)
    only = {
        split: sorted(names) for split, names in zip(SPLITS, (train.keys() - test, test.keys() - train), strict=True)
    }
    if any(only.values()):
        differing = "; ".join(f"only in {split}/: {', '.join(names)}" for split, names in only.items() if names)
        raise UserError(f"the classes of {data} differ: {differing}", "give both the same folders")
    others = [path.name for path in _visible(data) if path.is_dir() and path.name not in SPLITS]
    return (train, test), "as its folders divide them" + (f" ({', '.join(others)} not used)" if others else "")


def _drawn(data: Path, files: Files) -> tuple[Files, Files]:
    """Divide each class's pictures at random, for training and for testing.

    Raises:
        UserError: where a class holds one picture.
    """
    random = torch.Generator().manual_seed(SPLIT_SEED)
    train, test = Files(), Files()
    for name, those in files.items():
        if len(those) < 2:
            problem = f"{data / name} holds one picture, which cannot be both trained on and tested"
            raise UserError(problem, "add pictures of that class, or remove its folder")
        order = torch.randperm(len(those), generator=random).tolist()
        count = max(1, round(TEST_SHARE * len(those)))
        test[name] = [those[index] for index in order[:count]]
        train[name] = [those[index] for index in order[count:]]
    return train, test


def _by_class(folder: Path, root: Path) -> Files:
    """List the pictures of a folder by class; the names of the classes' folders are sorted.

    Raises:
        UserError: where there are fewer than two classes, a class is empty, or a picture lies elsewhere.
    """
    there = _visible(folder)
    files = {path.name: _pictures(path, root) for path in there if path.is_dir()}
    if beside := [path for path in there if path.suffix.lower() in SUFFIXES and path.is_file()]:
        raise UserError(f"{beside[0]} lies in no class's folder", LAYOUT)
    if not files:
        raise UserError(f"{folder} holds no folders of pictures", LAYOUT)
    if len(files) == 1:
        raise UserError(f"{folder} holds one class, {next(iter(files))}: nothing can be told apart", "add another")
    if empty := [name for name, those in files.items() if not those]:
        raise UserError(f"{folder} holds no picture of {', '.join(empty)}", "add pictures, or remove the empty folder")
    return files


def _pictures(folder: Path, root: Path) -> list[Path]:
    files = [_inside(path, root) for path in _visible(_inside(folder, root))]
    if nested := [path for path in files if path.is_dir()]:
        raise UserError(f"{nested[0]} is a folder inside a class's", "put pictures straight into their class's folder")
    return files


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _inside(path: Path, root: Path) -> Path:
    """Return a path that leads nowhere out of ``root``.

    Raises:
        UserError: where it is: a stranger's folder could take in any picture of this machine.
    """
    place = Path(os.path.realpath(path))  # unlike ``Path.resolve``, this takes links that lead round in a circle
    if not place.is_relative_to(os.path.realpath(root)):
        raise UserError(f"{path} leads out of {root} by a symbolic link", "put the pictures themselves there")
    return path


def _shuffled(files: Files) -> list[Path]:
    """Return all pictures in an order of which any prefix is a fair sample."""
    whole = [path for those in files.values() for path in those]
    return [whole[index] for index in torch.randperm(len(whole), generator=torch.Generator().manual_seed(SPLIT_SEED))]


def _read_all(files: Files, classes: Sequence[str], sizes: Sizes) -> tuple[Split, Split]:
    """Read the pictures of both splits, with a progress bar.

    Raises:
        UserError: naming pictures that cannot be read.
    """
    images = {split: torch.empty(len(those), *sizes.image, dtype=torch.uint8) for split, those in files.items()}
    jobs = [(split, index, path) for split, those in files.items() for index, path in enumerate(those)]
    unread: list[str] = []
    with cli.progress(word="reading", unit="pictures") as bar:
        task = bar.add_task("reading", total=len(jobs))
        for split, index, path in jobs:
            try:
                images[split][index] = read_picture(path, *sizes.image)
            except UserError as error:
                unread.append(error.message)
            bar.update(task, advance=1)
    if unread:
        named = "; ".join(unread[:MOST_NAMED]) + "; …" * (len(unread) > MOST_NAMED)
        raise UserError(f"{len(unread)} of {len(jobs)} pictures cannot be used: {named}", "mend or remove them")
    labels = {split: torch.tensor([classes.index(path.parent.name) for path in files[split]]) for split in files}
    train, test = (Split(images[split], labels[split]) for split in SPLITS)
    return train, test
