"""``export_onnx`` at sizes and precisions other than the example's: wrong files are refused, right ones are given."""

import warnings
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import stn_export
from stn_export.errors import UserError
from stn_export.export import running
from stn_export.export.onnx import export_onnx
from stn_export.program.capture import capture
from stn_export.program.program import Program, contract_of
from stn_export.program.specs import BATCH, Given, TensorSpec
from stn_export.program.state import mutations
from stn_export.verify.checks import _naming_size
from stn_export.verify.diagnosis import FROZEN, Scene, _usual
from stn_export.verify.oracle import Challenge

IMAGES = torch.rand(2, 1, 12, 14, generator=torch.Generator().manual_seed(0))
Pool = Callable[[Tensor], Tensor]
POOLS: dict[str, Pool] = {
    "adaptive": lambda features: F.adaptive_avg_pool2d(features, (3, 2)),
    "area": lambda features: F.interpolate(features, size=(3, 2), mode="area"),
}


class Rectifier(nn.Module):
    """Predicts theta from pooled features."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.linear, self.pool = nn.Conv2d(1, 4, 3, 2, 1), nn.Linear(24, 6), pool

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.convolution(images).relu())
        theta = self.linear(features.flatten(1)).view(-1, 2, 3)
        return F.grid_sample(images, F.affine_grid(theta, images.shape, align_corners=False), align_corners=False)


class Applied(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def plain(features: Tensor) -> Tensor:
    return F.avg_pool2d(features, (2, 3))[:, :, :3, :2]


def quietly(module: nn.Module, inputs: object, **options: object) -> None:
    """Export and require that nothing is said."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        export_onnx(module.eval(), inputs, **options)


def program_of(module: nn.Module, inputs: Tensor, shape: tuple[int | str, ...]) -> Program:
    captured = capture(module.eval(), (inputs,), [shape])
    return Program(captured.exported, contract_of(captured.exported, captured.shapes))


@pytest.mark.parametrize("pool", POOLS)
def test_a_size_that_the_file_freezes_is_refused(pool: str):
    with pytest.raises(UserError, match=r"as in PyTorch at images 2×1×12×14, but not at images 2×1×\d+×\d+: ") as found:
        export_onnx(Rectifier(POOLS[pool]).eval(), IMAGES, dynamic_size=True)
    assert "these sizes must be fixed: leave dynamic_size away" in found.value.hint
    assert "adaptive_avg_pool2d, which interpolate(mode='area') is too, at forward (test_export_sizes.py:" in (
        found.value.hint
    )
    quietly(Rectifier(POOLS[pool]), IMAGES)
    assert export_onnx(Rectifier(POOLS[pool]).eval(), IMAGES, dynamic_size=True, verify=False)


def test_sizes_of_dynamic_shapes_are_tried_too():
    dims = {2: Dim("rows", min=4), 3: Dim("columns", min=4)}
    with pytest.raises(UserError, match="but not at images") as found:
        export_onnx(Rectifier(POOLS["adaptive"]).eval(), IMAGES, dynamic_shapes={"images": dims})
    assert "leave them out of dynamic_shapes" in found.value.hint


def test_a_file_that_fails_at_another_size_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(running, "TRIES", running.TRIES[2:])
    with pytest.raises(UserError, match=r"not at images 2×1×24×28: ONNX Runtime fails on it"):
        export_onnx(Rectifier(POOLS["adaptive"]).eval(), IMAGES, dynamic_size=True)


def test_files_that_are_right_at_every_size_are_given():
    quietly(nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1)), IMAGES, dynamic_size=True)
    quietly(nn.PixelUnshuffle(4), torch.rand(2, 1, 8, 16), dynamic_shapes=({2: Dim.AUTO, 3: Dim.AUTO},))


def test_sizes_that_the_module_does_not_take_are_left_out_and_that_is_said():
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(168, 2))
    program = program_of(nn.ReLU(), IMAGES, (BATCH, 1, "H", "W"))
    copies = running.Copies(fixed)
    example = running.Tried(((IMAGES,), {}), (IMAGES,))
    found = running._at_other_sizes(running.Sides(None, copies, program), example)
    assert not found.reason
    assert found.notes == ("it took no other size that was tried: the file was compared at the example's only",)


def test_other_shapes_are_smaller_odd_and_larger():
    program = program_of(nn.ReLU(), IMAGES, (BATCH, 1, "H", "W"))
    first = [candidates[0] for candidates in running.other_shapes(program, (IMAGES,))]
    assert first == [((2, 1, 9, 10),), ((2, 1, 15, 19),), ((2, 1, 24, 28),)]
    assert running.resized(IMAGES, (2, 1, 24, 14)).equal(IMAGES.repeat_interleave(2, 2))
    fixed = program_of(nn.ReLU(), IMAGES, (BATCH, 1, 12, 14))
    assert running.other_shapes(fixed, (IMAGES,)) == []


def test_other_shapes_keep_to_what_is_declared():
    half = Dim("half", min=5, max=7)
    dims = [{2: 2 * half, 3: Dim("columns", max=15)}]
    captured = capture(nn.ReLU().eval(), (IMAGES,), [(2, 1, "2*half", "columns")], dims)
    program = Program(captured.exported, contract_of(captured.exported, captured.shapes))
    every = [shape for candidates in running.other_shapes(program, (IMAGES,)) for (shape,) in candidates]
    assert every == [(2, 1, 10, 10), (2, 1, 10, 7), (2, 1, 14, 15)]


class Halves(Rectifier):
    """Predicts theta in half precision and samples in float32."""

    def __init__(self) -> None:
        super().__init__(plain)
        self.convolution.half()
        self.linear.half()

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.convolution(images.half()).relu())
        theta = self.linear(features.flatten(1)).view(-1, 2, 3).float()
        return F.grid_sample(images, F.affine_grid(theta, images.shape, align_corners=False), align_corners=False)


def scaled(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Let every file to come answer a multiple."""
    own = running._run
    monkeypatch.setattr(running, "_run", lambda *given: [(value * factor).astype(value.dtype) for value in own(*given)])


def test_roundings_of_half_precision_are_no_fault_of_a_file(monkeypatch: pytest.MonkeyPatch):
    counted, rounded = [], running._rounded
    monkeypatch.setattr(running, "_rounded", lambda *given: counted.append(rounded(*given)) or counted[-1])
    quietly(Halves(), IMAGES)
    scaled(monkeypatch, 1.01)
    with pytest.raises(UserError, match=r"answers otherwise than in PyTorch: output is 0\.0\d+ off"):
        export_onnx(Halves().eval(), IMAGES)
    assert counted[-1] is False


def test_roundings_explain_only_what_the_captured_graph_gives_too():
    program = program_of(Halves(), IMAGES, (BATCH, 1, 12, 14))
    tried = running.Tried(((IMAGES,), {}), (IMAGES,))
    exact = program.exact.points((IMAGES,), kinds=())["grid_sampler"].numpy()
    eager = Halves().eval()(IMAGES).detach().numpy()
    assert 1e-5 < np.abs(eager - exact).max() < 1e-2
    assert running._rounded(program, tried, 0, exact.astype(np.float32), eager)
    assert not running._rounded(program, tried, 0, exact + 20 * (eager - exact), eager)
    assert not running._rounded(program, tried, 0, eager * 1.01, eager * 1.01)  # the module is not what was captured
    wide = program_of(Rectifier(plain), IMAGES, (BATCH, 1, 12, 14))
    assert not running._rounded(wide, tried, 0, exact, eager)


class Brain(nn.Module):
    """Takes and gives bfloat16, and computes in float32, as far as ONNX Runtime goes on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() * 2.5 + 0.3).bfloat16()


def test_bfloat16_is_compared_where_onnx_runtime_runs_it(monkeypatch: pytest.MonkeyPatch):
    inputs = torch.rand(2, 9).bfloat16()
    quietly(Brain(), inputs)
    scaled(monkeypatch, 1.3)  # ten roundings of 8 bits, 8 %, are allowed
    with pytest.raises(UserError, match="answers otherwise than in PyTorch"):
        export_onnx(Brain().eval(), inputs)


class Sampled(nn.Module):
    def forward(self, images: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(images, grid, align_corners=False)


def test_bfloat16_is_written_and_the_operator_without_kernel_is_named():
    inputs = (IMAGES.bfloat16(), torch.zeros(2, 5, 5, 2).bfloat16())
    with pytest.warns(UserWarning, match="ONNX Runtime cannot run .* no kernel of GridSample .* bfloat16 among them"):
        export_onnx(Sampled().eval(), inputs)
    model = export_onnx(Rectifier(plain).eval().bfloat16(), IMAGES.bfloat16(), verify=False)
    assert model.opset_import[0].version == 22
    with pytest.raises(UserError, match="opset 18 has not all of its operators in bfloat16"):
        export_onnx(Rectifier(plain).eval().bfloat16(), IMAGES.bfloat16(), opset=18)


def test_bfloat16_is_a_tensor_and_no_array():
    spec = TensorSpec("x", "bfloat16", (2,))
    assert spec.tensor(torch.tensor([1.0, 2.5])).equal(torch.tensor([1.0, 2.5]).bfloat16())
    with pytest.raises(UserError, match="x is bfloat16, which NumPy lacks"):
        spec.array(torch.zeros(2))


def test_what_is_not_finite_in_pytorch_is_said_of_the_module():
    module = Rectifier(plain).eval()
    module.convolution.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="Rectifier itself gives output that is NaN everywhere") as found:
        export_onnx(module, IMAGES)
    assert found.value.hint == "convolution.weight is not finite: load other weights"


def test_what_is_not_finite_in_one_place_is_counted(monkeypatch: pytest.MonkeyPatch):
    own = running._run
    monkeypatch.setattr(running, "_run", lambda *given: [np.nan_to_num(value) for value in own(*given)])
    with pytest.raises(UserError, match="output: 2 of 6 elements are finite where nan is expected"):
        export_onnx(Applied(lambda x: x.index_fill(1, torch.tensor([1]), float("nan"))).eval(), torch.rand(2, 3))


def test_inputs_and_parameters_on_meta_are_refused():
    module, inputs = Rectifier(plain).eval(), IMAGES.to("meta")
    calls: list[Callable[[nn.Module, Tensor], object]] = [
        export_onnx,
        lambda *given: mutations(given[0], given[1:]),
        lambda *given: stn_export.adopt(given[0], Given.of(given[1])),
        lambda *given: stn_export.adopt(given[0], {"images": given[1]}),
    ]
    for call in calls:
        with pytest.raises(UserError, match="is given inputs on the device meta, which hold no numbers"):
            call(module, inputs)
        with pytest.raises(UserError, match=r"convolution\.weight of Rectifier is on the device meta"):
            call(Rectifier(plain).eval().to("meta"), IMAGES)


class Around(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) * 2


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:Around keeps attribute part.forward")
@pytest.mark.parametrize("dynamic", [True, False])
def test_a_part_that_is_torchscript_is_named(dynamic: bool):
    inputs = torch.rand(2, 4)
    for part in (torch.jit.script(nn.Linear(4, 4)), torch.jit.trace(nn.Linear(4, 4), inputs)):
        with pytest.raises(UserError, match=r"part is TorchScript, which torch\.export does not take") as found:
            export_onnx(Around(part).eval(), inputs, dynamic_batch=dynamic)
        assert found.value.hint == "give Around the module that part was made from"
    assert export_onnx(Around(torch.jit.trace(nn.ReLU(), inputs)).eval(), inputs, dynamic_batch=dynamic)


def test_an_empty_batch_is_no_batch_of_one():
    with pytest.raises(UserError, match=r"an example of shape 0×1×12×14 is empty: its batch is 0") as found:
        export_onnx(Rectifier(plain).eval(), IMAGES[:0])
    assert found.value.hint == "give example inputs of batch 2 or more"
    with pytest.raises(UserError, match="an example height of 1 would be taken for a constant"):
        export_onnx(nn.ReLU().eval(), IMAGES[:, :, :1], dynamic_size=True)
    with pytest.raises(UserError, match="the examples' images is 0×1×12×14: it is empty"):
        stn_export.adopt(Rectifier(plain).eval(), Given.of(IMAGES[:0]))


def test_a_runner_that_fails_at_another_size_is_told_at_which():
    message = "at a larger size ValueError: no; usually a size frozen in the file"
    with pytest.raises(RuntimeError, match=message), _naming_size("larger size"):
        raise ValueError("no")
    with pytest.raises(ValueError, match="no"), _naming_size("examples ×2"):
        raise ValueError("no")


def test_a_difference_at_another_size_only_is_not_put_down_to_weights():
    program = program_of(Rectifier(POOLS["adaptive"]), IMAGES, (BATCH, 1, "H", "W"))
    point = SimpleNamespace(name="grid_sampler", site=None, kind="output")

    def usual(images: Tensor) -> list[str]:
        challenge = Challenge({"images": images}, {"grid_sampler": images.numpy()}, {}, {})
        return list(_usual(Scene(point, challenge, program, images.numpy())))

    assert usual(IMAGES[:, :, :9, :10]) == [FROZEN, "precision"]
    assert usual(IMAGES[:1]) == ["the weights behind the samplers", "precision"]
