"""Labels and examples say what they mean, or are refused with the line that contradicts."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from stn_export.adopt.samples import checked, read_labels
from stn_export.errors import UserError
from stn_export.program.specs import TensorSpec
from stn_export.run.examples import read_picture

PATHS = ("cat/0.png", "dog/0.png", "dog/1.png")


def labels(folder: Path, text: str, names: tuple[str, ...] = PATHS) -> tuple[list[int], dict[int, str]]:
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    values, classes = read_labels(folder / "labels.csv", names)
    return values.tolist(), classes


def test_labels_are_matched_by_path_and_by_a_name_that_one_example_has(tmp_path: Path) -> None:
    text = "file,label\ncat/0.png,3,cat\n\ndog/0.png,5,dog\n1.png,5,dog\n"
    assert labels(tmp_path, text) == ([3, 5, 5], {3: "cat", 5: "dog"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.png,3\ndog/1.png,5\n", r"line 1 of the labels says 0\.png, and there are cat/0\.png and dog/0\.png"),
        ("cat/0.png,3\ndog/0.png,5\n1.png,5\ncat/0.png,4\n", "two labels: 3 in line 1, 4 in line 4"),
        ("cat/0.png,3,cat\ndog/0.png,3,dog\n1.png,5\n", "class 3 two names: cat in line 1, dog in line 2"),
        ("cat/0.png,3\ndog/0.png,999999999999999999999999999999\n1.png,5\n", r"labels\.csv:2 is"),
        ("cat/0.png,3\ndog/0.png\n", r"labels\.csv:2 is"),
        ("cat/0.png,3\n", r"no label for dog/0\.png \(2 such\)"),
    ],
)
def test_labels_that_contradict_name_their_lines(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        labels(tmp_path, text)


@pytest.mark.parametrize(
    ("dtype", "value", "kept"),
    [
        ("int8", torch.tensor([[127, -128]]), True),
        ("int8", torch.tensor([[300, 1]]), False),
        ("int64", torch.tensor([[300, 1]], dtype=torch.int32), True),
        ("uint8", torch.tensor([[-1, 1]]), False),
        ("float32", torch.tensor([[3.0e38, 1.0]], dtype=torch.float64), True),
        ("float32", torch.tensor([[1e300, 1.0]], dtype=torch.float64), False),
        ("float16", torch.tensor([[70000.0, 1.0]]), False),
        ("float32", torch.tensor([[float("nan"), 1.0]]), False),
    ],
)
def test_examples_are_looked_at_after_conversion(dtype: str, value: torch.Tensor, kept: bool) -> None:
    spec = TensorSpec("x", dtype, ("N", 2), batched=True)
    if kept:
        assert checked({"x": value}, [spec])["x"].double().flatten().tolist() == pytest.approx(
            value.double().flatten().tolist(), rel=1e-6
        )
    else:
        with pytest.raises(UserError, match=r"cannot hold|not finite"):
            checked({"x": value}, [spec])


def test_a_picture_of_another_program_is_not_opened(tmp_path: Path) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.eps")
    (tmp_path / "picture.eps").rename(tmp_path / "picture.png")
    with pytest.raises(UserError, match=r"is no PNG, .* picture"):
        read_picture(tmp_path / "picture.png", 3)
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.webp")
    assert read_picture(tmp_path / "picture.webp", 3).shape == (3, 4, 4)


@pytest.mark.skipif(not Path("/proc/kmsg").exists(), reason="the system has no /proc")
def test_a_file_of_the_kernel_is_not_waited_for() -> None:
    with pytest.raises(UserError, match="file of the kernel's"):
        read_labels(Path("/proc/kmsg"), PATHS)
