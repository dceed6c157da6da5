"""Gather the examples of an adopted network: tensors from a file, images from a folder, and labels."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from stn_export.adopt.network import tensors_of
from stn_export.errors import UserError
from stn_export.limits import archive, regular
from stn_export.program.specs import Contract, Pixels, TensorSpec, by, dtype_name
from stn_export.run.examples import MODES, Examples, random_examples, read_picture
from stn_export.run.store import load_arrays_as_tensors

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
MOST_PICTURES = 2000  # of a folder with any number of images
RANDOM, RANDOM_BYTES = 64, 2**26  # largest number and bytes of random examples
LABELS = "labels"
NUMBER = re.compile(r"[-+]?[\d.]+")  # a second cell of this form is no heading
LONGEST_LABEL = 9  # digits of a class number


def with_pixels(specs: Sequence[TensorSpec], pixels: Pixels) -> tuple[TensorSpec, ...]:
    """Return the specs with this normalisation of bytes set on the first image input.

    Raises:
        UserError: if no input is a floating-point image, or its number of channels differs.
    """
    picture = Contract(tuple(specs), ()).picture
    if picture is None or not picture.is_float:
        raise UserError("no input is a picture of floating-point numbers", "leave --mean and --std out")
    figures = (*pixels.mean, *pixels.std)
    fits = all(len(values) in (1, picture.shape[1]) for values in (pixels.mean, pixels.std))
    if not fits or min(pixels.std) <= 0 or not all(map(isfinite, figures)):
        raise UserError(f"{pixels} does not fit {picture.text}", "give one figure or one a channel; std is above 0")
    return tuple(replace(spec, pixels=pixels) if spec is picture else spec for spec in specs)


def gather(
    given: Path | Mapping[str, Tensor] | None,
    labels: Path | Tensor | None,
    specs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    seed: int = 0,
) -> tuple[Examples, dict[int, str]]:
    """Gather a network's examples, and the class names if the labels file has them.

    Args:
        given: an ``.npz`` or ``.pt`` file of tensors by input name, a folder of images, or tensors; random numbers by
            default.
        labels: a file, see ``read_labels``, or numbers; otherwise the tensor called ``labels`` among those given.
        specs: of the inputs.
        sizes: of dynamic dimensions, for random numbers and images.
        seed: of random numbers.

    Raises:
        UserError: if an input or a label is missing or does not fit.
    """
    if not given:
        if labels is not None:
            raise UserError("there are labels, but no examples", "give those with --examples")
        return _random(specs, sizes, seed), {}
    if isinstance(given, Mapping):
        values, names, source = dict(given), None, "in Python"
    elif given.is_dir():
        values, names, source = _pictures(given, specs, sizes)
    else:
        values, names, source = _tensors(given, specs), None, f"of {given.name}"
    numbers = values.pop(LABELS, None)
    classes: dict[int, str] = {}
    batched = tuple(spec.name for spec in specs if spec.batched)
    values = checked(values, specs)
    if isinstance(labels, Path):
        count = len(values[batched[0]]) if batched else 1
        numbers, classes = read_labels(labels, names or [str(index) for index in range(count)])
    elif labels is not None:
        numbers = labels
    if numbers is not None and not _are_labels(numbers):
        raise UserError("labels are not whole numbers from 0, one an example", "give class numbers")
    examples = Examples(values, batched, None if numbers is None else numbers.long())
    return replace(examples, source=source if names else f"{len(examples)} examples {source}"), classes


def _are_labels(numbers: Tensor) -> bool:
    plain = numbers.ndim == 1 and numbers.numel() > 0 and not (numbers.is_floating_point() or numbers.is_complex())
    return plain and int(numbers.min()) >= 0


def _random(specs: Sequence[TensorSpec], sizes: Mapping[str, int], seed: int) -> Examples:
    contract = Contract(tuple(specs), ())
    one = sum(value.nbytes for value in random_examples(contract, 1, seed, sizes).inputs.values())
    return random_examples(contract, max(2, min(RANDOM, RANDOM_BYTES // max(one, 1))), seed, sizes)


def checked(examples: Mapping[str, Tensor], specs: Sequence[TensorSpec]) -> dict[str, Tensor]:
    """Return the tensors converted to the dtypes of the inputs; bytes of images stay bytes.

    Raises:
        UserError: if an input is missing, has another kind of dtype or shape, or is not finite.
    """
    samples: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    for spec in specs:
        if spec.name not in examples:
            raise UserError(f"the examples lack input {spec.name}", _stored_by_name(spec, examples))
        value, dtype = examples[spec.name], getattr(torch, spec.dtype)
        if value.ndim == len(spec.shape) and not value.numel() and 0 not in spec.shape[1:]:
            raise UserError(f"the examples' {spec.name} is {by(value.shape)}: it is empty", "give one example or more")
        bytes_of_picture = spec.is_float and spec.is_picture and value.dtype == torch.uint8
        same_kind = value.is_floating_point() == spec.is_float
        opened = spec.opened()
        fits = opened.fits(tuple(value.shape)) and all(
            sizes.setdefault(name, size) == size
            for name, size in zip(opened.shape, value.shape, strict=True)
            if isinstance(name, str)
        )
        if not fits or not (same_kind or bytes_of_picture):
            raise UserError(
                f"the examples' {spec.name} is {by(value.shape)} {dtype_name(value)}, not {spec.text}",
                "give an input's examples one behind the other, as it takes them",
            )
        samples[spec.name] = value if bytes_of_picture else _converted(spec, value, dtype)
    return samples


def _stored_by_name(spec: TensorSpec, examples: Mapping[str, Tensor]) -> str:
    held = f"they hold {', '.join(examples) or 'nothing'}"
    return f"{held}; store each input under its name, as in numpy.savez(FILE, {spec.name}=...)"


def _converted(spec: TensorSpec, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert the examples of an input to its dtype.

    Raises:
        UserError: if they are not finite or the dtype cannot represent them.
    """
    result = value.to(dtype)
    if not value.isfinite().all():
        raise UserError(f"the examples' {spec.name} is not finite", "leave out those with NaN or infinity")
    fits = result.isfinite().all() if spec.is_float else (result.to(value.dtype) == value).all()
    if not fits:
        problem = f"the examples' {spec.name} holds numbers from {value.min().item()} to {value.max().item()}"
        raise UserError(f"{problem}, which {spec.dtype} cannot hold", f"give numbers that {spec.dtype} can hold")
    return result


def _tensors(path: Path, specs: Sequence[TensorSpec]) -> dict[str, Tensor]:
    archive(path, "name a folder of pictures, an .npz or a .pt with --examples")
    if path.suffix == ".npz":
        return load_arrays_as_tensors(path)
    content = tensors_of(path, "save a dictionary of tensors by input")
    content = {specs[0].name: content} if isinstance(content, Tensor) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no tensors by input", "save a dictionary of tensors, or one tensor")
    return content


def _pictures(
    folder: Path, specs: Sequence[TensorSpec], sizes: Mapping[str, int]
) -> tuple[dict[str, Tensor], tuple[str, ...], str]:
    picture = Contract(tuple(specs), ()).picture
    if picture is None or picture.shape[1] not in MODES or len(specs) > 1:
        raise UserError(
            f"a folder of pictures cannot fill {', '.join(spec.name for spec in specs)}", "give an .npz with all inputs"
        )
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{folder} holds no pictures", f"put {', '.join(SUFFIXES)} there")
    spread = range(0, len(files), -(-len(files) // MOST_PICTURES))
    chosen = [files[index] for index in spread]
    height, width = (size if isinstance(size, int) else sizes.get(size) for size in picture.shape[2:])
    images = []
    for path in chosen:
        images.append(read_picture(path, picture.shape[1], height, width))
        height, width = images[0].shape[1:]  # dynamic sizes are those of the first image
    count = str(len(chosen)) if len(chosen) == len(files) else f"{len(chosen)} of {len(files)}, evenly spread"
    names = tuple(path.relative_to(folder).as_posix() for path in chosen)
    return {picture.name: torch.stack(images)}, names, f"{count} pictures of {folder.name}, as {height}×{width}"


def read_labels(path: Path, names: Sequence[str]) -> tuple[Tensor, dict[int, str]]:
    """Read one label per example from lines of file name or index, class number and, optionally, class name.

    Raises:
        UserError: if the file cannot be read, two lines contradict each other, or an example has no label or several.
    """
    try:
        with regular(path, "json").open(newline="", encoding="utf-8") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}", "write lines of file name or index, and label") from error
    if rows and not NUMBER.fullmatch("".join(rows[0][1:2])):
        rows[0] = []  # a heading
    lines = [Label(number, *row[:2], *row[2:3]) for number, row in enumerate(rows, 1) if _is_label(path, number, row)]
    labels = _labels_by_name(path, lines)
    places = [_place_of(name, names, labels) for name in names]
    if missing := [name for name, place in zip(names, places, strict=True) if place is None]:
        raise UserError(f"{path} has no label for {missing[0]} ({len(missing)} such)", "give every example its label")
    return torch.tensor([labels[place].value for place in places if place is not None]), _classes(path, lines)


@dataclass(frozen=True)
class Label:
    """One line of a labels file: an example's path or index, its class number and, if given, the class name."""

    line: int
    name: str
    number: str
    class_name: str = ""

    @property
    def value(self) -> int:
        """Return the class number."""
        return int(self.number)


def _is_label(path: Path, number: int, row: Sequence[str]) -> bool:
    """Return whether a row is a label; False for an empty row.

    Raises:
        UserError: if the row is neither.
    """
    if not row:
        return False
    if len(row) < 2 or not (row[1].isascii() and row[1].isdecimal()) or len(row[1]) > LONGEST_LABEL:
        problem = f"{path}:{number} is {','.join(row)[:80]!r}"
        raise UserError(problem, f"write file name or index, and a whole number of at most {LONGEST_LABEL} digits")
    return True


def _labels_by_name(path: Path, lines: Sequence[Label]) -> dict[str, Label]:
    """Return the labels by example; a repeated line counts once.

    Raises:
        UserError: if an example has two labels; the message names both lines.
    """
    labels: dict[str, Label] = {}
    for label in lines:
        before = labels.setdefault(label.name, label)
        if before.value != label.value:
            lines_of = {before.line: before.value, label.line: label.value}
            raise _contradiction(f"{path} gives {label.name} two labels", lines_of)
    return labels


def _classes(path: Path, lines: Sequence[Label]) -> dict[int, str]:
    """Return the class names by number.

    Raises:
        UserError: if a class has two names; the message names both lines.
    """
    named: dict[int, Label] = {}
    for label in lines:
        before = named.setdefault(label.value, label) if label.class_name else label
        if before.class_name != label.class_name:
            lines_of = {before.line: before.class_name, label.line: label.class_name}
            raise _contradiction(f"{path} gives class {label.value} two names", lines_of)
    return {value: label.class_name for value, label in named.items()}


def _contradiction(message: str, by_line: Mapping[int, object]) -> UserError:
    """Build the error for lines that contradict each other, with the value in each."""
    values = ", ".join(f"{value} in line {line}" for line, value in by_line.items())
    return UserError(f"{message}: {values}", "leave one")


def _place_of(name: str, names: Sequence[str], labels: Mapping[str, Label]) -> str | None:
    """Return the name under which an example's label is listed: its path or, if that is unambiguous, its file name.

    Raises:
        UserError: if several examples share that file name.
    """
    short = Path(name).name
    if name in labels or short not in labels:
        return name if name in labels else None
    if twins := [other for other in names if Path(other).name == short and other != name]:
        problem = f"line {labels[short].line} of the labels says {short}, and there are {name} and {twins[0]}"
        raise UserError(problem, "write their paths from the folder of pictures")
    return short


def with_classes(examples: Examples, contract: Contract, classes: Mapping[int, str]) -> Examples:
    """Return the examples with the class names; a class without a name is called by its number.

    Raises:
        UserError: if no output has a column for every label.
    """
    if examples.labels is None:
        return examples
    outputs = [spec for spec in contract.outputs if spec.batched and spec.is_float and len(spec.shape) == 2]
    highest = int(examples.labels.max())
    if not outputs or not isinstance(outputs[0].shape[1], int) or highest >= outputs[0].shape[1]:
        raise UserError(
            f"label {highest} has no place in the outputs {', '.join(spec.text for spec in contract.outputs)}",
            "labels start at 0 and need an output of N×classes; leave them out for other networks",
        )
    return replace(examples, classes=tuple(classes.get(index, str(index)) for index in range(outputs[0].shape[1])))
