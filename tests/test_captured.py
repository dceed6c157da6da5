"""Recorded steps are the plain ones: bit for bit with a faked recording on the CPU, within float error on CUDA."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stn_export.train.cuda_graph import WARM_UP_STEPS, CapturedSteps
from stn_export.train.data import Dataset
from stn_export.train.optimizers import learning_rate_share, set_learning_rates
from stn_export.train.recipes import RECIPES, Recipe
from stn_export.train.trainer import Settings, Trainer, advance, get_generators, run_epoch

CPU = torch.device("cpu")
FULL_BATCHES = 3  # and one of 24 images
PLAIN = replace(RECIPES["reference"], dropout=0.0)


class Recording:
    """Stands in for a CUDA graph: warms up as one does, then calls the same function again and counts."""

    def __init__(self) -> None:
        self.replays = 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        for _ in range(WARM_UP_STEPS):
            work()

        def replay() -> None:
            self.replays += 1
            work()

        return replay


@pytest.fixture
def uneven(small: Dataset) -> Dataset:
    """216 images to train on: three batches of 64 and a smaller one."""
    return replace(small, train=small.train[:216])


def trainers_for(settings: Settings, dataset: Dataset, device: torch.device = CPU, seeds: int = 1) -> list[Trainer]:
    return [Trainer(replace(settings, seed=seed), dataset, device) for seed in range(seeds)]


def run(trainers: Sequence[Trainer], step_all: Callable[[Sequence[Trainer]], None], epochs: int = 2) -> list[Tensor]:
    """Train for whole epochs; each one's losses by trainer, on the CPU."""
    losses = []
    for _ in range(epochs):
        run_epoch(trainers, step_all=step_all)
        losses.append(torch.stack([trainer.losses.cpu() for trainer in trainers]))
    return losses


def everything(trainer: Trainer) -> list[Tensor]:
    """What training has changed: weights, the optimiser's tensors, generators."""
    moments = [tensor for state in trainer.optimizer.state.values() for tensor in state.values()]
    return [*trainer.model.state_dict().values(), *moments, *get_generators(trainer.device).values()]


def assert_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Bit for bit, one by one."""
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("seeds", [1, 3])
def test_recorded_steps_are_the_plain_ones(recipe: str, seeds: int, settings: Settings, uneven: Dataset):
    settings = replace(settings, recipe=RECIPES[recipe], model="cnn" if seeds > 1 else "stn")
    plain, recorded = (trainers_for(settings, uneven, seeds=seeds) for _ in range(2))
    expected = run(plain, advance)
    torch.manual_seed(99)  # an epoch's numbers depend on nothing that was drawn before it
    found = run(recorded, CapturedSteps(recorded, Recording()))
    assert_equal(found, expected)
    for ours, theirs in zip(recorded, plain, strict=True):
        assert_equal(everything(ours), everything(theirs))


def test_every_step_but_a_smaller_batch_is_replayed(settings: Settings, small: Dataset, uneven: Dataset):
    for dataset, replays in ((uneven, FULL_BATCHES), (small, 10), (replace(small, train=small.train[:40]), 0)):
        recording = Recording()
        trainers = trainers_for(settings, dataset)
        run(trainers, CapturedSteps(trainers, recording), epochs=1)
        assert recording.replays == replays


@pytest.mark.parametrize("recipe", RECIPES)
def test_recording_leaves_no_trace(recipe: str, settings: Settings, uneven: Dataset):
    """In the midst of a training, after a test pass: weights, moments and generators stand where they stood."""
    (trainer,) = trainers_for(replace(settings, recipe=RECIPES[recipe]), uneven)
    run([trainer], advance, epochs=1)
    before = [tensor.clone() for tensor in everything(trainer)]
    assert not trainer.model.training
    CapturedSteps([trainer], Recording())
    assert_equal(everything(trainer), before)


def test_moments_that_warming_up_makes_start_from_zero(settings: Settings, uneven: Dataset):
    (trainer,) = trainers_for(settings, uneven)
    assert not trainer.optimizer.state
    CapturedSteps([trainer], Recording())
    moments = [tensor for state in trainer.optimizer.state.values() for tensor in state.values()]
    assert len(moments) == 3 * len(list(trainer.model.parameters()))
    assert not any(tensor.any() for tensor in moments)


def test_dropout_is_recorded_switched_on(settings: Settings, uneven: Dataset):
    (trainer,) = trainers_for(settings, uneven)
    run([trainer], advance, epochs=1)
    modes = []

    def record(work: Callable[[], None]) -> Callable[[], None]:
        modes.append(trainer.model.training)
        return work

    CapturedSteps([trainer], record)
    assert modes == [True]


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_graph_holds_stays_where_it_is(recipe: str, settings: Settings, uneven: Dataset):
    """A graph reads and writes addresses: a tensor replaced by a new one would silently be left behind."""
    trainers = trainers_for(replace(settings, recipe=RECIPES[recipe]), uneven, seeds=2)
    steps = CapturedSteps(trainers, Recording())

    def addresses() -> list[int]:
        held = [tensor for trainer in trainers for tensor in everything(trainer)[:-1]]  # generators are copies
        return [tensor.data_ptr() for tensor in held + steps.chosen + steps.losses]

    before = addresses()
    run(trainers, steps)
    assert addresses() == before


def test_learning_rates_in_tensors_are_written_in_place():
    recipe = RECIPES["tuned"]
    rate = torch.tensor(0.3)
    optimizer = torch.optim.SGD([{"params": [torch.zeros(2, requires_grad=True)], "lr": rate, "peak": 0.3}])
    for step in (0, 5, 19):
        share = learning_rate_share(recipe, step, 20)
        set_learning_rates(optimizer, share)
        assert rate.item() == pytest.approx(0.3 * share)
    assert optimizer.param_groups[0]["lr"] is rate


def how_to_step(trainer: Trainer) -> list[dict]:
    """The optimiser's settings by group."""
    groups = trainer.optimizer.param_groups
    return [{name: value for name, value in group.items() if name != "params"} for group in groups]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_state_from_cuda_goes_on_with_an_optimiser_for_the_cpu(recipe: str, settings: Settings, uneven: Dataset):
    (first,), (second,) = (trainers_for(replace(settings, recipe=RECIPES[recipe]), uneven) for _ in range(2))
    run([first], advance, epochs=1)
    state = deepcopy(first.state())
    for group in state["optimizer"]["param_groups"]:  # as CUDA has them
        group |= {"lr": torch.tensor(9.0), "fused": True, "foreach": False, "capturable": True}
    expected = how_to_step(second)
    assert second.restore(state)
    assert how_to_step(second) == expected
    assert_equal(run([second], advance, epochs=1), run([first], advance, epochs=1))


CUDA = torch.device("cuda")
FLOAT_ERROR = {
    "rtol": 3e-4,
    "atol": 0.0,
}  # weights changed by 3e-7 of themselves change a loss by up to 4e-5 in 100 steps


def losses_on_cuda(settings: Settings, dataset: Dataset, seeds: int, captured: bool) -> Tensor:
    """Ten epochs' losses by trainer, seeds × steps: in batches of 64 a hundred steps."""
    trainers = trainers_for(settings, dataset.to(CUDA), CUDA, seeds)
    step_all = CapturedSteps(trainers) if captured else advance
    return torch.cat(run(trainers, step_all, epochs=10), dim=1)


def without_noise(recipe: Recipe) -> Recipe:
    """No dropout and no augmentation: nothing random but the order, which is drawn on the CPU."""
    return replace(recipe, dropout=0.0, flip=False, crop=0)


@pytest.mark.cuda
@pytest.mark.parametrize("model", ["stn", "cnn"])
def test_a_hundred_captured_steps_give_the_plain_loops_losses(model: str, settings: Settings, small: Dataset):
    settings = replace(settings, model=model, recipe=PLAIN)
    plain, captured = (losses_on_cuda(settings, small, 1, captured) for captured in (False, True))
    assert plain.shape == (1, 100)
    torch.testing.assert_close(captured, plain, **FLOAT_ERROR)


@pytest.mark.cuda
@pytest.mark.parametrize("recipe", ["quick", "tuned"])
def test_momentum_and_adam_are_captured_with_their_learning_rates(recipe: str, settings: Settings, small: Dataset):
    """Ten steps, for with these rates float error grows faster than losses fall."""
    settings = replace(settings, recipe=without_noise(RECIPES[recipe]))
    plain, captured = (losses_on_cuda(settings, small, 1, captured)[:, :10] for captured in (False, True))
    torch.testing.assert_close(captured, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.cuda
def test_seeds_captured_together_train_as_each_alone(settings: Settings, uneven: Dataset):
    settings = replace(settings, recipe=PLAIN)
    together = losses_on_cuda(settings, uneven, 3, captured=True)
    alone = losses_on_cuda(settings, uneven, 3, captured=False)
    torch.testing.assert_close(together, alone, **FLOAT_ERROR)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.cuda
def test_dropout_differs_from_replay_to_replay_and_follows_the_seed(settings: Settings, small: Dataset):
    """One batch again and again at a learning rate of nothing: only dropout can change its loss."""
    settings = replace(settings, model="cnn", recipe=replace(RECIPES["reference"], learning_rate=0.0))
    steps = CapturedSteps(trainers_for(settings, small.to(CUDA), CUDA))

    def losses(seed: int) -> Tensor:
        torch.manual_seed(seed)
        found = []
        for _ in range(5):
            steps.replay()
            found.append(steps.losses[0].item())
        return torch.tensor(found)

    first, again, other = losses(1), losses(1), losses(2)
    assert first.std() > 1e-4
    torch.testing.assert_close(again, first)
    assert not torch.allclose(other, first)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_lower_precisions_are_captured_and_learn(precision: str, settings: Settings, small: Dataset):
    losses = losses_on_cuda(replace(settings, recipe=RECIPES["tuned"], precision=precision), small, 1, captured=True)
    assert losses.isfinite().all()
    assert losses[:, -10:].mean() < losses[:, :10].mean()
