"""One rule chooses the lowering, by size and, where it was measured, by time; and what it weighed is said."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import stn_export
from stn_export.bench.targets import Network
from stn_export.export import __main__ as stage
from stn_export.export.destinations import choose as choose_for
from stn_export.export.rows import Source
from stn_export.play.__main__ import _best
from stn_export.results.card import Answer, by_word
from stn_export.results.choice import choose, lean
from stn_export.run.manifest import is_oversized, network_directories, preferred, size_words
from tests.bench_rows import FEW
from tests.made_records import timed
from tests.test_answer import content

MB = 10**6
LARGE, SMALL = FEW[1], ("stn", "matmul-fp32", "onnx", "m")  # folded, as in every run of these rows


class Plates(nn.Module):
    """Plates of 24×94, whose theta comes from 592 numbers: folded into the grid they make 592×4,512 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(3, 592)
        self.theta = nn.Linear(592, 6)

    def forward(self, images: Tensor) -> Tensor:
        theta = self.theta(self.features(images.mean((2, 3))).relu()).view(-1, 2, 3)
        grid = functional.affine_grid(theta, images.shape, align_corners=False)
        return functional.grid_sample(images, grid, align_corners=False).mean((2, 3))


@pytest.mark.parametrize(
    ("size", "other", "oversized"),
    [(10.7, 0.35, True), (0.37, 0.11, False), (3.0, 1.9, False), (2.1, 1.0, True), (1.0, 10.7, False)],
)
def test_a_file_is_oversized_that_is_twice_and_a_megabyte_as_large(size: float, other: float, oversized: bool):
    assert is_oversized(round(size * MB), round(other * MB)) == oversized


def test_without_times_the_oversized_come_last_and_that_is_said():
    sizes = {"decomposed": 350_000, "folded": 10_700_000, "matmul": 351_000}
    assert preferred(sizes) == ["matmul", "decomposed", "folded"]
    assert preferred(sizes | {"folded": 400_000}) == ["folded", "matmul", "decomposed"]
    assert size_words(sizes) == "folded takes 10.7 MB, decomposed 0.3 MB: the smaller file is taken"
    assert size_words({"folded": 400_000, "matmul": 350_000}) == size_words({}) == ""


@pytest.mark.parametrize(
    ("seconds", "taken"),
    [(1e-4, "matmul-fp32"), (0.98e-4, "matmul-fp32"), (0.6e-4, "folded-fp32")],
    ids=["as fast", "not measurably faster", "measurably faster"],
)
def test_with_times_an_oversized_file_must_be_measurably_faster(seconds: float, taken: str):
    large = timed(LARGE, seconds, file_bytes=10_700_000, lowering="folded")
    small = timed(SMALL, 1e-4, file_bytes=350_000, lowering="matmul")
    found = choose([large, small], {})
    assert found.row.artifact == taken
    assert [row.artifact for row in found.oversized] == ["folded-fp32"] * (taken == "matmul-fp32")
    assert choose([timed(LARGE, seconds, file_bytes=400_000, lowering="folded"), small], {}).oversized == ()


def test_only_files_that_differ_in_nothing_but_the_lowering_are_weighed_by_size():
    large = timed(LARGE, 1e-4, file_bytes=10_700_000, lowering="folded")
    elsewhere = timed(SMALL, 1e-4, file_bytes=350_000, lowering="matmul", runner="openvino-cpu")
    assert lean([large, elsewhere]) == [large, elsewhere]


def test_the_card_says_what_was_not_worth_its_size():
    rows = [timed(LARGE, 1e-4, file_bytes=10_850_000, lowering="folded")]
    rows += [timed(SMALL, 1.01e-4, file_bytes=350_000, lowering="matmul")]
    said = Answer(content())._rivals(choose(rows, {}))
    assert said == (
        "measurably faster than every other verified file but those below; not worth its size, and not measurably "
        "faster: folded-fp32 in onnxruntime-cpu (31.0 × as large)"
    )
    assert Answer(content())._rivals(choose(rows[1:], {})) == "the only verified file that was timed"


@pytest.mark.slow
def test_one_rule_in_check_export_bench_and_play(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.manual_seed(0)
    result = stn_export.check(Plates().eval(), torch.rand(4, 3, 24, 94), run=tmp_path / "checked")
    assert by_word(result.card)["file"].endswith("matmul-fp32.onnx")
    assert "folded takes 10.7 MB" in by_word(result.card)["note"]
    assert "not verified" not in str(result)
    assert result.model.ByteSize() < MB
    run = tmp_path / "run"
    stn_export.adopt(Plates().eval(), {"images": ("N", 3, 24, 94)}, run=run)
    [directory, *_] = network_directories(run)
    stage.export(Source(directory), [spec for spec in Source(directory).rows if spec.name == "folded-fp32"])
    assert Network(directory, directory.facts).best == "folded"  # the only one
    stage.export(Source(directory), [spec for spec in Source(directory).rows if spec.name == "matmul-fp32"])
    assert Network(directory, directory.facts).best == "matmul"
    assert _best(directory).name == "matmul-fp32"
    [spec] = stage._for(Source(directory), [choose_for("onnxruntime-cpu")])
    assert spec.name == "matmul-fp32"
    assert "for onnxruntime-cpu: matmul, as folded takes 10.7 MB" in capsys.readouterr().out
