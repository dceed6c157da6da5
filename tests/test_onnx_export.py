"""Anyone's transformer through every lowering, equal to eager PyTorch in ONNX Runtime."""

import functools
import json
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

import stn_export
from stn_export.errors import UserError
from stn_export.export.onnx import export_onnx
from stn_export.onnx_graph.lint import lint
from stn_export.onnx_graph.points import point_values, site_values, with_outputs
from stn_export.program.capture import capture
from stn_export.program.program import Program, contract_of
from tests.foreign import (
    FOREIGN,
    GreyDigits,
    PlateRectifier,
    Sampler,
    SharedGrid,
    ThinPlate,
    TwoInputs,
    TwoSteps,
    Volume,
)
from tests.sweeps import swept

LOWERINGS = ("matmul", "folded", "affinegrid", "decomposed", "gather")
FOLDABLE = (GreyDigits, PlateRectifier)  # theta comes straight from a linear layer and serves one grid only
TOLERANCE = 1e-5


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    return session.run(None, {i.name: value.numpy() for i, value in zip(session.get_inputs(), inputs, strict=True)})


def smooth(shape: tuple[int, ...], seed: int) -> Tensor:
    """A picture as cameras see them: on noise, one float32 rounding of a coordinate already costs 1e-5."""
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise, 5, stride=1, padding=2) if len(shape) == 4 else noise


@functools.cache
def foreign(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


@functools.cache
def exported(kind: type[nn.Module], lowering: str) -> onnx.ModelProto:
    return export_onnx(foreign(kind), kind.inputs, lowering=lowering)


@functools.cache
def program(kind: type[nn.Module]) -> Program:
    captured = capture(foreign(kind), kind.inputs, [("N", *each.shape[1:]) for each in kind.inputs])
    return Program(captured.exported, contract_of(captured.exported, captured.shapes))


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("kind", swept(FOREIGN, TwoSteps), ids=lambda kind: kind.__name__)
def test_a_foreign_module_equals_eager_in_its_outputs_and_at_every_site(kind: type[nn.Module], lowering: str):
    model, own = exported(kind, lowering), program(kind)
    shown = point_values(model)
    said = {prop.key: prop.value for prop in model.metadata_props}["sites"]
    assert json.loads(said) == site_values(model)  # nothing is named that is not there
    lost = {"site0/theta"} if lowering == "folded" and kind in FOLDABLE else set()
    assert set(shown) == {point for site in own.sites for point in site.nodes()} - lost
    session = session_of(with_outputs(model, list(shown.values())))
    names = [each.name for each in session.get_outputs()]
    for batch in (1, 2, 7):
        inputs = tuple(smooth((batch, *example.shape[1:]), batch) for example in kind.inputs)
        with torch.inference_mode():
            expected = foreign(kind)(*inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        actual, reference = dict(zip(names, run(session, inputs), strict=True)), own.points(inputs)
        for value, wanted in zip(actual.values(), expected, strict=False):  # the outputs come first
            np.testing.assert_allclose(value, wanted.numpy(), atol=TOLERANCE, rtol=0)
        for point, name in shown.items():
            np.testing.assert_allclose(actual[name], reference[point].numpy(), atol=TOLERANCE, rtol=0)


def test_values_that_are_several_points_and_inputs_and_outputs_keep_one_name():
    model = export_onnx(SharedGrid().eval(), SharedGrid.inputs, output_names=["first", "grid"])
    assert json.loads({prop.key: prop.value for prop in model.metadata_props}["sites"]) == [
        {"image": "images", "theta": "site0/theta", "grid": "grid", "warped": "site0/warped"},
        {"image": "site0/warped", "theta": "site0/theta", "grid": "grid", "warped": "first"},
    ]
    assert not [node for node in model.graph.node if node.domain]
    assert [each.domain for each in model.opset_import] == [""]


@pytest.mark.parametrize(
    ("kind", "folded"), [(PlateRectifier, "1 of 1"), (TwoSteps, "0 of 2"), (ThinPlate, "0 of 0"), (TwoInputs, "0 of 1")]
)
def test_folding_says_how_many_grids_it_folded(kind: type[nn.Module], folded: str):
    """Not those whose theta is composed, or read by something else, or given."""
    model = exported(kind, "folded")
    assert {prop.key: prop.value for prop in model.metadata_props}["affine_grids_folded"] == folded


def operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(
    ("lowering", "there", "gone"),
    [
        ("matmul", {"MatMul", "GridSample"}, {"AffineGrid", "ReduceSum"}),
        ("folded", {"Gemm", "GridSample"}, {"MatMul", "Transpose", "AffineGrid"}),
        ("affinegrid", {"AffineGrid", "GridSample"}, {"MatMul"}),
        ("decomposed", {"ReduceSum", "GridSample"}, {"AffineGrid"}),
        ("gather", {"Gather", "MatMul"}, {"GridSample", "AffineGrid"}),
    ],
)
def test_a_lowering_is_what_it_says(lowering: str, there: set[str], gone: set[str]):
    found = operators(exported(GreyDigits, lowering))
    assert there <= found
    assert not gone & found


MODES = ("bilinear", "nearest", "bicubic")
PADDINGS = ("zeros", "border", "reflection")


@functools.cache
def sampler(
    lowering: str, mode: str, padding: str, align_corners: bool
) -> tuple[nn.Module, onnxruntime.InferenceSession]:
    module = Sampler(mode, padding, align_corners).eval()
    return module, session_of(export_onnx(module, Sampler.inputs, lowering=lowering, dynamic_size=True))


@pytest.mark.slow
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(
    lowering=st.sampled_from(["matmul", "affinegrid", "gather"]),
    mode=st.sampled_from(MODES),
    padding=st.sampled_from(PADDINGS),
    align_corners=st.booleans(),
    size=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    batch=st.integers(1, 4),
    seed=st.integers(0, 2**16),
    zoom=st.floats(0.2, 3.0),
)
def test_any_sampler_at_any_size(
    lowering: str,
    mode: str,
    padding: str,
    align_corners: bool,
    size: tuple[int, int],
    batch: int,
    seed: int,
    zoom: float,
):
    module, session = sampler(lowering, mode, padding, align_corners)
    random = torch.Generator().manual_seed(seed)
    images = smooth((batch, 3, *size), seed)
    theta = torch.eye(2, 3) * zoom + 0.3 * torch.randn(batch, 2, 3, generator=random)
    expected = module(images, theta).numpy()
    [actual] = run(session, (images, theta))
    if mode == "nearest":  # a coordinate on the border between two pixels may round either way
        assert (np.abs(actual - expected) > TOLERANCE).mean() < 0.01
    else:
        np.testing.assert_allclose(actual, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("lowering", ["decomposed", "plain"])
def test_a_lowering_that_cannot_leave_sizes_open(lowering: str):
    with pytest.raises(UserError, match="cannot leave height and width open"):
        export_onnx(Sampler("bilinear", "zeros", False).eval(), Sampler.inputs, lowering=lowering, dynamic_size=True)


def test_export_onnx_is_the_packages_own():
    assert stn_export.export_onnx is export_onnx
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        stn_export.nonsense  # noqa: B018


def test_a_fixed_batch_is_fixed():
    model = export_onnx(foreign(TwoInputs), TwoInputs.inputs, dynamic_batch=False)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


def test_an_example_batch_of_one_is_refused():
    with pytest.raises(UserError, match="an example batch of 1"):
        export_onnx(foreign(TwoInputs), tuple(example[:1] for example in TwoInputs.inputs))


def test_volumes_go_through_at_opset_20_with_a_finding():
    model = export_onnx(Volume().eval(), Volume.inputs)
    assert model.opset_import[0].version == 20
    assert {"STN008", "STN001"} <= {each.rule for each in lint(model)}
    [actual] = run(session_of(model), Volume.inputs)
    np.testing.assert_allclose(actual, Volume()(*Volume.inputs).numpy(), atol=TOLERANCE, rtol=0)
    with pytest.raises(UserError, match="opset 18 samples no volumes"):
        export_onnx(Volume().eval(), Volume.inputs, opset=18)


def test_a_module_whose_shapes_decide_is_fixed_and_said_to_be():
    class Stubborn(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images * 2 if images.shape[0] == 2 else images

    with pytest.warns(UserWarning, match="Stubborn: batch of images is fixed at 2: Constraints violated"):
        model = export_onnx(Stubborn().eval(), torch.rand(2, 3, 8, 8))
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


class Warped(nn.Module):
    """Takes what it likes, in any way that PyTorch knows."""

    def forward(self, images: Tensor, theta: Tensor, scale: float = 1.0, *, mask: Tensor | None = None) -> Tensor:
        assert images.shape[0] < 9
        grid = F.affine_grid(theta, images.shape, align_corners=False)
        warped = scale * F.grid_sample(images, grid, align_corners=False)
        return warped if mask is None else warped * mask


IMAGES, THETA = torch.rand(2, 1, 8, 8), torch.rand(2, 2, 3)
UP_TO_8 = Dim("batch", max=8)


@pytest.mark.parametrize(
    ("dynamic", "sizes"),
    [
        ({"images": {0: UP_TO_8}, "theta": {0: UP_TO_8}, "mask": {0: UP_TO_8}}, ("batch", "batch", "batch")),
        (({0: Dim.DYNAMIC}, {0: Dim.AUTO}, (Dim.AUTO, None, None, None)), ("batch", "batch", "batch")),
        ({"images": None, "theta": None, "mask": None}, (2, 2, 2)),
    ],
)
def test_dynamic_shapes_are_pytorchs_own(dynamic: object, sizes: tuple[int | str, ...], recwarn: object):
    model = export_onnx(Warped().eval(), (IMAGES, THETA), {"mask": IMAGES}, dynamic_shapes=dynamic)
    session = session_of(model)
    assert tuple(each.shape[0] for each in session.get_inputs()) == sizes
    assert ["batch is at most 8" in str(each.message) for each in recwarn] == [True] * (sizes[0] == "batch")
    [actual] = run(session, (IMAGES, THETA, IMAGES))
    np.testing.assert_allclose(actual, Warped()(IMAGES, THETA, mask=IMAGES).numpy(), atol=TOLERANCE, rtol=0)


def test_dynamic_shapes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="do not fit the inputs images, theta"):
        export_onnx(Warped().eval(), (IMAGES, THETA), dynamic_shapes={"image": None})


class Failing(nn.Module):
    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = how


@pytest.mark.parametrize(
    ("module", "inputs", "message", "hint"),
    [
        (Failing(lambda x: x if x.sum() > 0 else -x), IMAGES, "cannot capture Failing", "torch.where"),
        (Failing(lambda x: torch.from_numpy(x.numpy() * 2)), IMAGES, "cannot capture Failing", "NumPy out of forward"),
        (Failing(lambda x: x @ x[:, :, :3]), IMAGES, "cannot capture Failing", "on these inputs first"),
        (Warped(), IMAGES, "missing a required argument: 'theta'", "what forward takes"),
        (Warped(), (IMAGES.numpy(), THETA), "given NumPy arrays", "torch.from_numpy"),
        (Failing(lambda x: x), (1.0,), "given no tensor", "as forward takes them"),
    ],
)
def test_every_cause_has_a_hint_of_its_own(module: nn.Module, inputs: object, message: str, hint: str):
    with pytest.raises(UserError, match=message) as found:
        export_onnx(module.eval(), inputs)
    assert hint in found.value.hint


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_is_refused():
    with pytest.raises(UserError, match="is TorchScript"):
        export_onnx(torch.jit.trace(nn.ReLU().eval(), IMAGES), IMAGES)
