"""What verification itself could get wrong: errors that it must see, and right files that it must not call wrong."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_export.errors import UserError
from stn_export.export.marks import marked_program
from stn_export.export.onnx import to_onnx
from stn_export.program.specs import Arrays
from stn_export.results.tolerances import OUTPUT, RESAMPLED, TOLERANCES, WARPED, Bound, compare
from stn_export.run.manifest import Artifact
from stn_export.run.records import Check
from stn_export.runners import RUNNERS, OnnxRuntime
from stn_export.runners.external import RefusedError
from stn_export.runners.pytorch import Captured
from stn_export.verify import oracle, search
from stn_export.verify.__main__ import Verification, _without_jobs
from stn_export.verify.checks import check_artifact
from stn_export.verify.diagnosis import diagnose
from stn_export.verify.oracle import Reference, reference_of
from stn_export.verify.points import output_kinds
from stn_export.verify.search import Noisy
from tests.captured_modules import examples_of, program_of

ONNX, PT2 = (next(spec for spec in RUNNERS if spec.name == f"{name}-cpu") for name in ("onnxruntime", "pt2"))
FP32 = TOLERANCES["fp32"]
Change = Callable[[Arrays], None]


class Warp(nn.Module):
    """Samples pictures by a given theta, and gives their mean too."""

    def __init__(self, align: bool = False, overwritten: bool = False) -> None:
        super().__init__()
        self.align, self.overwritten = align, overwritten

    def forward(self, images: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        grid = F.affine_grid(theta, images.shape, align_corners=self.align)
        warped = F.grid_sample(images, grid, align_corners=False)
        if self.overwritten:
            warped[warped < 0.5] = 0
            warped[warped > 0] = 1
        return warped.mean((2, 3)), warped.amax((2, 3))


SHAPES = {"images": ("N", 1, 8, 10), "theta": ("N", 2, 3)}


@pytest.fixture(autouse=True)
def _few_challenges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "challenges", lambda contract, examples, most: {"examples ×4": examples.take(4)})
    monkeypatch.setattr(oracle, "THETAS", {name: oracle.THETAS[name] for name in ("upside down", "scale 10")})


def warp(**options: bool) -> Reference:
    theta = torch.eye(2, 3) * 0.9 + 0.05 * torch.rand(12, 2, 3, generator=torch.Generator().manual_seed(3))
    program = program_of(Warp(**options), SHAPES, ["mean", "most"])
    return reference_of(program, examples_of(12, images=(1, 8, 10), theta=theta))


def judged(known: Reference, path: Path, runner: type, form: str = "onnx") -> Check:
    content = to_onnx(marked_program(known.program), "matmul").SerializeToString() if form == "onnx" else None
    path = path / f"file.{form}"
    path.write_bytes(content or known.program.to_bytes({}))
    artifact = Artifact("matmul-fp32", path.name, "warp", form, "0", known.contract)
    return check_artifact(artifact, path, replace(ONNX if form == "onnx" else PT2, load=runner), known)


def changed(change: Change, where: type = Captured) -> type:
    """A runner whose points are changed in place."""

    class Changed(where):
        def points(self, feeds: Arrays) -> Arrays:
            found = {name: value.copy() for name, value in super().points(feeds).items()}
            change(found)
            return found

        infer = points

    return Changed


def test_every_theta_is_forced_in_onnx_runtime(tmp_path: Path):
    known = warp()
    check = judged(known, tmp_path, OnnxRuntime)
    assert not check.failure
    assert set(check.comparisons) == {"examples ×4", "theta upside down", "theta scale 10"}
    assert all("site0/grid" in results for results in check.comparisons.values())
    challenge = known.challenges["theta upside down"]
    site, theta = challenge.forced
    runner = ONNX.open(tmp_path / "file.onnx", known.contract)
    feeds = known.contract.arrays(challenge.batch)
    forced = runner.forced_points(feeds, site.name, theta.numpy(), None)
    usual = runner.points(feeds)
    np.testing.assert_array_equal(forced["site0/theta"], np.broadcast_to(theta.numpy(), (len(feeds["theta"]), 2, 3)))
    for name in ("site0/grid", "mean"):
        assert np.abs(forced[name] - usual[name]).max() > 0.01, f"{name} is as it was without theta"


@pytest.mark.parametrize(("runner", "form"), [(OnnxRuntime, "onnx"), (Captured, "pt2")])
def test_a_runner_that_forces_nothing_fails(runner: type, form: str, tmp_path: Path):
    class Unforced(runner):
        def forced_points(self, *_: object, **__: object) -> None:
            return None

    class Pretending(runner):
        def forced_points(self, feeds: Arrays, *_: object, **__: object) -> Arrays:
            return self.points(feeds)

    said = judged(warp(), tmp_path, Unforced, form)
    assert said.failure == "theta upside down: theta was not forced, though the file shows where"
    assert "theta upside down: first wrong at theta" in judged(warp(), tmp_path, Pretending, form).failure


def test_a_file_that_shows_no_grid_notes_what_was_not_forced(tmp_path: Path):
    class Closed(OnnxRuntime):
        def points(self, feeds: Arrays) -> Arrays:
            return self.infer(feeds)

        def forced_points(self, *_: object, **__: object) -> None:
            return None

    check = judged(warp(), tmp_path, Closed)
    assert not check.failure
    assert check.notes == tuple(
        f"theta {name}: not forced, the file does not show where" for name in ("upside down", "scale 10")
    )


def test_the_worst_grid_error_is_that_of_all_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(oracle, "PART", 4)
    known, moved = warp(), {0: 0.5, 4: 2.0, 8: 1.0}  # pixels, by the first example of a part

    def move(found: Arrays) -> None:
        for start, part in zip(moved, known.parts, strict=True):
            if len(found["site0/theta"]) == 4 and np.allclose(found["site0/theta"], part["site0/theta"], atol=1e-5):
                found["site0/grid"][0, 0, 0, 0] += np.float32(moved[start] / 5)  # 5 pixels in one unit of x

    check = judged(known, tmp_path, changed(move), "pt2")
    assert check.grid_pixels["site0"].worst == pytest.approx(2.0, rel=1e-3)
    assert check.grid_pixels["site0"].mean == pytest.approx(3.5 / (12 * 80), rel=1e-2)


@pytest.mark.parametrize("name", ["mean", "most"])
def test_a_search_looks_at_every_output(name: str, tmp_path: Path):
    known = warp()
    off = 300 * FP32.output.absolute * known.points[name].scale  # far more than the other output strays
    (tmp_path / "file.pt2").write_bytes(known.program.to_bytes({}))
    spoilt = changed(lambda found: found[name].__iadd__(np.float32(off)))(tmp_path / "file.pt2", "cpu", known.contract)
    found = search.search(spoilt, known, FP32, seconds=60, examples=1)
    assert found.failure
    assert 250 < found.excess < 350  # of a black picture, which the relative part adds nothing to
    good = Captured(tmp_path / "file.pt2", "cpu", known.contract)
    assert search._Hunt(good, known, FP32, 60).run((Noisy(0, 30, 1),))[0] < 1


@pytest.mark.parametrize("align", [True, False])
def test_the_align_corners_that_the_file_has_is_named(align: bool, tmp_path: Path):
    known, other = warp(align=align), warp(align=not align)
    (tmp_path / "file.pt2").write_bytes(other.program.to_bytes({}))
    artifact = Artifact("matmul-fp32", "file.pt2", "warp", "pt2", "0", known.contract)
    check = check_artifact(artifact, tmp_path / "file.pt2", PT2, known)
    assert check.failure.endswith(f"; align_corners is {not align}")
    assert "first wrong at grid" in check.failure


def test_a_point_is_what_it_was_before_it_was_overwritten(tmp_path: Path):
    known = warp(overwritten=True)
    images, theta = torch.rand(3, 1, 8, 10), (0.9 * torch.eye(2, 3)).expand(3, 2, 3)
    before = images.clone()
    true = F.grid_sample(images, F.affine_grid(theta, images.shape, align_corners=False), align_corners=False)
    for points in (known.program.points((images, theta)), known.program.exact.points((images, theta))):
        torch.testing.assert_close(points["site0/warped"].float(), true)
        assert set(points["most"].unique().tolist()) <= {0.0, 1.0}
    assert images.equal(before)
    assert not judged(known, tmp_path, OnnxRuntime).failure
    forced = known.program.points((images, theta), {"site0/warped": torch.full((1, 1, 8, 10), 0.7)})
    assert forced["site0/warped"].unique().tolist() == [np.float32(0.7)]


class Resized(nn.Module):
    """A picture resized behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(self.conv(images), size=(20, 21), mode="bilinear", align_corners=False)


def resized() -> Reference:
    program = program_of(Resized(), {"images": ("N", 1, 8, 9)}, ["large"])
    return reference_of(program, examples_of(12, images=(1, 8, 9)))


def test_resized_images_have_a_tolerance_of_their_own(tmp_path: Path):
    known = resized()
    point = known.points["large"]
    assert (point.kind, point.side, point.scale) == (RESAMPLED, 21, point.magnitude)
    check = judged(known, tmp_path, OnnxRuntime)
    assert not check.failure

    def shift(found: Arrays) -> None:
        found["large"] += np.float32(1e-3)

    failure = judged(known, tmp_path, changed(shift), "pt2").failure
    assert "first wrong at large" in failure
    assert "; usually the weights, where pixels lie in a resized image (align_corners, half a pixel), pr" in failure


class Shapes(nn.Module):
    """An image and a vector of four dimensions behind a sampler, a resized vector, and one behind nothing."""

    def forward(self, images: Tensor, theta: Tensor) -> tuple[Tensor, ...]:
        grid = F.affine_grid(theta, images.shape, align_corners=False)
        warped = F.grid_sample(images, grid, align_corners=False)
        nearest = F.interpolate(images, scale_factor=2.0, mode="nearest")
        return 2 * warped, warped.mean((1, 2), keepdim=True), images + 1, nearest, images > 0.5


def test_what_an_output_is_follows_from_the_graph():
    names = ["warped", "vector", "plain", "nearest", "mask"]
    kinds = output_kinds(program_of(Shapes(), SHAPES, names))
    assert {name: each.kind for name, each in kinds.items()} == {
        "warped": WARPED,
        "vector": OUTPUT,
        "plain": OUTPUT,
        "nearest": OUTPUT,
        "mask": "count",
    }


class Plain(nn.Module):
    """Neither samples nor has weights or classes."""

    def forward(self, values: Tensor) -> Tensor:
        return values.exp()


def test_a_diagnosis_names_only_what_the_network_has():
    known = reference_of(program_of(Plain(), {"values": ("N", 3, 5)}, ["y"]), examples_of(values=(3, 5)))
    challenge = known.challenges["examples ×4"]
    odd = challenge.true["y"] + np.linspace(0, 1, 60).reshape(4, 3, 5) ** 2
    assert diagnose(known.points["y"], odd, challenge, known.program) == "usually precision"


class Masked(nn.Module):
    """Masked logits, an inverse, NaN, a mask."""

    def forward(self, values: Tensor) -> tuple[Tensor, ...]:
        masked = values.masked_fill(values < 0.5, float("-inf"))
        return masked, 1 / values.floor(), (values - 0.5).sqrt(), values > 0.5, (values * 1.5e19) ** 2


NOT_FINITE = ["masked", "inverse", "root", "mask", "overflow"]


@pytest.fixture
def masked() -> Reference:
    program = program_of(Masked(), {"values": ("N", 6)}, NOT_FINITE)
    return reference_of(program, examples_of(12, values=torch.linspace(0, 2.9, 72).view(6, 12).T.contiguous()))


def test_equal_places_that_are_not_finite_are_equal(masked: Reference, tmp_path: Path):
    assert set(masked.challenges["examples ×4"].true) == set(NOT_FINITE)
    assert np.isinf(masked.eager(masked.challenges["examples ×4"].batch)["overflow"]).any()
    assert np.isfinite(masked.challenges["examples ×4"].true["overflow"]).all()
    for form, runner in (("pt2", Captured), ("onnx", OnnxRuntime)):
        check = judged(masked, tmp_path, runner, form)
        assert not check.failure
        assert check.deterministic
        assert set(check.errors) == set(NOT_FINITE)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("masked", -1e30, "of 24 elements are finite where -inf is expected"),
        ("inverse", -np.inf, "elements are not finite"),
        ("root", 0.0, "finite where nan is expected"),
    ],
)
def test_other_places_that_are_not_finite_differ(name: str, value: float, says: str, masked: Reference, tmp_path: Path):
    def put(found: Arrays) -> None:
        found[name][~np.isfinite(found[name])] = value

    assert says in judged(masked, tmp_path, changed(put), "pt2").failure


@pytest.mark.parametrize("name", ["masked", "inverse", "root"])
def test_what_is_finite_beside_an_infinity_is_compared(name: str, masked: Reference, tmp_path: Path):
    def move(found: Arrays) -> None:
        found[name] += np.float32(1e-4)

    assert "1.00e-04 off" in judged(masked, tmp_path, changed(move), "pt2").failure
    assert np.isfinite(masked.points[name].scale)


def test_a_wrong_mask_is_told_without_a_traceback(masked: Reference, tmp_path: Path):
    def turn(found: Arrays) -> None:
        found["mask"][:, 0] ^= True

    failure = judged(masked, tmp_path, changed(turn), "pt2").failure
    assert "first wrong at mask: element (0, 0) is 1.00e+00 off" in failure
    assert "a tie or a threshold decided otherwise" in failure


def test_infinities_in_arrays():
    one, inf = np.array([1.0, np.inf, np.nan, -np.inf]), Bound(1e-3)
    assert compare(one, one, inf)
    assert compare(one + np.array([1e-4, 0, 0, 0]), one, inf).max_abs == pytest.approx(1e-4)
    assert not compare(one + np.array([2e-3, 0, 0, 0]), one, inf)
    assert not compare(-one, one, Bound(10.0))
    assert (
        compare(np.full(3, np.inf), np.full(3, np.inf), inf).reason
        == "there was nothing to compare: no element is finite"
    )
    large = np.array([2**53 + 1, 5])
    assert not compare(large, np.array([2**53, 5]), Bound(0.5))  # float64 cannot tell them apart
    assert not compare(np.array([1.0, 2.0]), np.array([1.0, 2.5]), Bound(0.0))
    assert compare(np.array([1.0, 2.0]), np.array([1.0, 2.0]), Bound(0.0))


@pytest.mark.parametrize("error", [SystemExit(0), BaseException("odd"), GeneratorExit()])
def test_whatever_a_module_raises_is_a_failed_check(error: BaseException, tmp_path: Path):
    class Leaving(OnnxRuntime):
        def infer_impl(self, feeds: Arrays) -> Arrays:
            raise error

    assert judged(warp(), tmp_path, Leaving).failure.startswith(type(error).__name__)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_networks_of_other_precisions_are_verified(dtype: torch.dtype, tmp_path: Path):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(0.5, 2, 5).to(dtype))

        def forward(self, values: Tensor) -> Tensor:
            return values * self.weight + 1

    values = torch.rand(12, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    known = reference_of(
        program_of(Scaled(), {"values": ("N", 5)}, ["y"], values=values[:2]), examples_of(values=values)
    )
    for form, runner in (("pt2", Captured), ("onnx", OnnxRuntime)):
        assert not judged(known, tmp_path, runner, form).failure


def test_an_output_that_is_never_finite_is_not_called_equal(tmp_path: Path):
    class Lost(nn.Module):
        def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
            return values + 1, (values - 5).sqrt()

    known = reference_of(program_of(Lost(), {"values": ("N", 5)}, ["y", "lost"]), examples_of(values=(5,)))
    failure = judged(known, tmp_path, Captured, "pt2").failure
    assert failure == "lost: there was nothing to compare, it is empty or not finite in PyTorch itself"


def test_what_torch_compile_cannot_compile_is_left_out_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def uncompilable(*_: object) -> None:
        raise torch._dynamo.exc.Unsupported("generators are not supported\nfrom user code: ...")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: uncompilable)
    known = warp()
    (tmp_path / "program.pt2").write_bytes(known.program.to_bytes({}))
    artifact = Artifact("program", "program.pt2", "warp", "pt2", "0", known.contract)
    compiled = next(spec for spec in RUNNERS if spec.name == "compiled-cpu")
    with pytest.raises(RefusedError, match="cannot compile it: Unsupported: generators are not supported"):
        check_artifact(artifact, tmp_path / "program.pt2", compiled, known)
    jobs = [(artifact, tmp_path / "program.pt2", spec) for spec in (compiled, PT2)]
    network = Verification(SimpleNamespace(facts=SimpleNamespace(multiply_adds=1)), jobs, [])
    network.__dict__["reference"] = known
    assert [(check.runner, check.failure) for check in network.run()] == [("pt2-cpu", "")]
    assert list(network.refused) == ["warp/program in compiled-cpu"]


def test_names_that_nothing_was_checked_of_are_told():
    spec = SimpleNamespace(name="pt2-cpu")
    network = SimpleNamespace(jobs=[(Artifact("a", "a", "net", "pt2", "0", warp().contract), Path("a"), spec)])
    assert _without_jobs([network], ["a", "net/a", "pt2-cpu", "compiled-cuda", "b"]) == ["compiled-cuda", "b"]


class Brain(nn.Module):
    """Computes in bfloat16."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.inside, self.weight = inside, nn.Parameter(torch.linspace(0.5, 2, 5).bfloat16())

    def forward(self, values: Tensor) -> Tensor:
        scaled = values.bfloat16() * self.weight
        return scaled.float() if self.inside else scaled


def test_bfloat16_is_verified_inside_a_network_and_refused_at_its_ends(tmp_path: Path):
    inside, outside = (program_of(Brain(each), {"values": ("N", 5)}, ["y"]) for each in (True, False))
    assert not judged(reference_of(inside, examples_of(values=(5,))), tmp_path, Captured, "pt2").failure
    with pytest.raises(UserError, match="y is bfloat16, which NumPy cannot hold"):
        reference_of(outside, examples_of(values=(5,)))
