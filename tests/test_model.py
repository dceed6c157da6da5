import pytest
import torch

from stn_export.errors import UserError
from stn_export.train import handover
from stn_export.train.networks import SpatialTransformer, build_model


@pytest.mark.parametrize(("name", "parameters"), [("stn", 39_884), ("cnn", 31_340)])
def test_parameter_counts(name: str, parameters: int):
    assert sum(parameter.numel() for parameter in build_model(name).parameters()) == parameters


@pytest.mark.parametrize(("name", "cost"), [("stn", 2_088_076), ("cnn", 1_113_500), ("cnn-matched", 2_064_000)])
def test_the_wider_classifier_costs_what_the_transformer_does(name: str, cost: int):
    assert handover.cost(name) == cost


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 1, 32, 32), (3, 32, 32), (2, 32, 32, 3)])
@pytest.mark.parametrize("name", ["stn", "cnn"])
def test_other_shapes_are_refused_with_the_shape(name: str, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="×".join(map(str, shape))):
        build_model(name)(torch.zeros(shape))


def test_unknown_model():
    with pytest.raises(UserError, match="unknown model 'resnet'"):
        build_model("resnet")


def test_a_fresh_transformer_changes_nothing():
    images = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(SpatialTransformer()(images), images, atol=1e-5, rtol=0)


def test_theta_maps_output_to_input_with_x_first():
    transformer = SpatialTransformer()
    transformer.regressor[-1].bias.data[2] = 2 * 5 / 32  # sample 5 pixels further right
    images = torch.rand(1, 3, 32, 32)
    shifted = transformer(images)
    torch.testing.assert_close(shifted[..., :27], images[..., 5:], atol=1e-5, rtol=0)
    assert shifted[..., 27:].abs().max() < 1e-4  # zeros from beyond the edge


def test_outputs_are_log_probabilities():
    log_probs = build_model("stn").eval()(torch.rand(5, 3, 32, 32))
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(5))
