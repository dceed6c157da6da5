"""One training: what a step sees, learning rates, precision, splitting over ranks."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from stn_export.errors import CheckFailedError
from stn_export.train import trainer as module
from stn_export.train.data import Dataset, Split, normalise
from stn_export.train.networks import build_model
from stn_export.train.optimizers import learning_rate_share
from stn_export.train.recipes import DATASETS, RECIPES
from stn_export.train.sweep import World
from stn_export.train.trainer import Settings, Trainer, evaluate, loss_of, run_epoch, set_precision

CPU = torch.device("cpu")


def test_a_state_of_other_settings_is_not_gone_on_with(settings: Settings, small: Dataset):
    trainer = Trainer(settings, small, CPU)
    run_epoch([trainer])
    other = Trainer(replace(settings, seed=9), small, CPU)
    assert not other.restore(trainer.state())
    assert other.epoch == 0


def test_an_epoch_resumed_in_its_middle_counts_all_its_seconds(settings: Settings, small: Dataset):
    trainer = Trainer(settings, small, CPU)
    run_epoch([trainer], stopped=lambda: trainer.position == 3)
    state = trainer.state()
    assert 0 < state["elapsed"] < 1000
    resumed = Trainer(settings, small, CPU)
    assert resumed.restore(state | {"elapsed": 1000.0})
    run_epoch([resumed])
    run_epoch([resumed])
    assert [row["seconds"] > 1000 for row in resumed.history] == [True, False]


def test_an_epoch_that_was_interrupted_goes_on_to_the_same_bytes(settings: Settings, small: Dataset):
    settings = replace(settings, recipe=replace(settings.recipe, flip=True, crop=2))
    whole, first, second = (Trainer(settings, small, CPU) for _ in range(3))
    seen: list[int] = []
    assert run_epoch([whole], seen.append)
    assert seen == [64] * 10
    assert not run_epoch([first], stopped=lambda: first.position == 3)
    assert (first.position, first.epoch, first.done) == (3, 0, False)
    assert second.restore(first.state())
    torch.rand(7)  # others draw too
    assert run_epoch([second])
    for trainer in (whole, second):
        trainer.history[0].pop("seconds")
    assert second.history == whole.history
    assert second.losses.equal(whole.losses)
    for name, value in whole.model.state_dict().items():
        assert second.model.state_dict()[name].equal(value), name
    again = Trainer(settings, small, CPU)
    assert again.restore(second.state())  # between two epochs
    run_epoch([again])
    run_epoch([whole])
    assert again.history[1]["train_loss"] == whole.history[1]["train_loss"]


def test_of_trainers_in_step_the_images_of_all_are_counted(settings: Settings, small: Dataset):
    seen: list[int] = []
    settings = replace(settings, recipe=replace(settings.recipe, batch_size=600))
    run_epoch([Trainer(replace(settings, seed=seed), small, CPU) for seed in range(2)], seen.append)
    assert seen == [1200, 80]


def test_a_state_between_epochs_holds_no_position(settings: Settings, small: Dataset):
    trainer = Trainer(settings, small, CPU)
    state = trainer.state()
    assert (state["position"], state["elapsed"], state["generators"], trainer.done) == (0, 0.0, None, False)
    trainer.history = [{}] * 3
    assert trainer.done


def test_all_learn_at_the_rate_of_their_step(settings: Settings, small: Dataset):
    trainer = Trainer(settings, small, CPU)
    trainer.history, trainer.position = [{}], 4
    trainer.begin_epoch()
    trainer.next_batch()
    share = learning_rate_share(settings.recipe, 14, 30)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx(
        [share * group["peak"] for group in trainer.optimizer.param_groups]
    )


@pytest.mark.parametrize(
    ("complete", "kept"), [(0, "nothing was complete"), (2, "the last good state, after epoch 2, is kept")]
)
def test_a_training_that_diverges_names_its_first_bad_step(
    settings: Settings, small: Dataset, complete: int, kept: str
):
    trainer = Trainer(settings, small, CPU)
    trainer.history, trainer.position = [{}] * complete, 5
    trainer.losses[:] = torch.tensor([1.0, 2.0, torch.inf, 1.0, torch.nan, 0, 0, 0, 0, 0])
    rate = 3e-3 * learning_rate_share(settings.recipe, 10 * complete + 2, 30)
    with pytest.raises(CheckFailedError) as caught:
        trainer.check()
    where = f"stn (seed 1) diverged in epoch {complete + 1} at step 3 of 10"
    assert str(caught.value) == f"{where} (loss inf, learning rate {rate:g}); {kept}"
    trainer.position = 2
    trainer.check()


def test_a_loss_that_is_none_ends_an_epoch_that_is_stopped(settings: Settings, small: Dataset):
    trainer = Trainer(settings, small, CPU)

    def broken(trainers: list[Trainer]) -> None:
        trainers[0].note(torch.tensor(torch.nan))

    with pytest.raises(CheckFailedError, match="diverged in epoch 1 at step 1"):
        run_epoch([trainer], stopped=lambda: True, step_all=broken)
    with pytest.raises(CheckFailedError, match="diverged in epoch 1 at step 1"):
        run_epoch([Trainer(settings, small, CPU)], step_all=broken)


def test_an_epoch_whose_last_step_was_done_is_finished_though_it_is_to_stop(settings: Settings, small: Dataset):
    trainer = Trainer(replace(settings, recipe=replace(settings.recipe, batch_size=640)), small, CPU)
    assert run_epoch([trainer], stopped=lambda: True)
    assert (trainer.epoch, trainer.position) == (1, 0)


@pytest.mark.parametrize(("accuracies", "best"), [([0.4, 0.7, 0.7, 0.2], 1), ([0.4, 0.3], 0), ([0.1, 0.2], 1)])
def test_the_first_of_the_best_epochs_is_kept(
    settings: Settings, small: Dataset, monkeypatch: pytest.MonkeyPatch, accuracies: list[float], best: int
):
    trainer = Trainer(replace(settings, validation=40, keep="best"), small, CPU)
    said = iter(accuracies)
    monkeypatch.setattr(module, "evaluate", lambda model, split: (0.0, next(said) if len(split) == 40 else 0.5))
    bias = trainer.model.classifier.head[-1].bias
    for epoch in range(len(accuracies)):
        trainer.begin_epoch()
        trainer.losses[:] = 0
        with torch.no_grad():
            bias.fill_(epoch)
        trainer.finish_epoch()
    trainer.finish()
    assert set(bias.flatten().tolist()) == {best}


def test_the_last_epoch_is_kept_unless_the_best_was_asked_for(settings: Settings, small: Dataset):
    trainer = Trainer(replace(settings, validation=40), small, CPU)
    trainer.begin_epoch()
    trainer.losses[:] = 0
    trainer.finish_epoch()
    assert trainer.best == {}
    trainer.finish()
    assert list(trainer.history[0]) == [
        "epoch", "train_loss", "validation_loss", "validation_accuracy", "test_loss", "test_accuracy", "seconds"
    ]  # fmt: skip


def test_losses_are_the_likelihood_or_the_smoothed_cross_entropy():
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]).log()
    labels = torch.tensor([0, 1])
    plain = -torch.tensor([0.7, 0.3]).log()
    assert loss_of(scores, labels, 0.0).item() == pytest.approx(plain.mean().item())
    smoothed = 0.7 * plain - 0.3 * scores.mean(1)
    assert loss_of(scores, labels, 0.3).item() == pytest.approx(smoothed.mean().item())


def test_accuracy_and_loss_by_hand(small: Dataset, monkeypatch: pytest.MonkeyPatch):
    class Brightness(torch.nn.Module):
        """The brighter the image, the larger the label; loud while it is trained."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not self.training
            guess = ((images.mean((1, 2, 3)) * 0.5 + 0.5) * 255 - 74.5).div(10).round().clamp(0, 9).long()
            return F.one_hot(guess, 10).float().log_softmax(1)

    monkeypatch.setattr(module, "EVALUATION_BATCH", 70)
    split = Split(small.test.images, small.test.labels.clone())
    split.labels[:20] = (split.labels[:20] + 1) % 10
    loss, accuracy = evaluate(Brightness(), split)
    right, wrong = (-F.one_hot(torch.tensor(0), 10).float().log_softmax(0)[:2]).tolist()
    assert accuracy == pytest.approx(0.9)
    assert loss == pytest.approx(0.9 * right + 0.1 * wrong)


def test_images_are_augmented_as_the_recipe_and_the_data_set_say(
    settings: Settings, small: Dataset, monkeypatch: pytest.MonkeyPatch
):
    calls: list[tuple] = []
    monkeypatch.setattr(module, "random_affine", lambda images, affine: calls.append(("affine", affine)) or images)
    monkeypatch.setattr(
        module, "flip_and_crop", lambda images, flip, crop: calls.append(("flip", flip, crop)) or images
    )
    settings = replace(settings, recipe=replace(settings.recipe, flip=True, crop=3))
    for name in ("digits", "cifar10-affine"):
        trainer = Trainer(replace(settings, dataset=name), small, CPU)
        trainer.begin_epoch()
        loss = trainer.step(torch.arange(8))
        assert not loss.requires_grad
    assert calls == [("flip", True, 3), ("affine", DATASETS["cifar10-affine"].affine), ("flip", True, 3)]


def test_a_step_goes_down_the_gradient_of_its_own_images(settings: Settings, small: Dataset):
    settings = replace(settings, recipe=replace(RECIPES["reference"], dropout=0.0, learning_rate=0.5))
    trainer, twin = (Trainer(settings, small, CPU) for _ in range(2))
    chosen = torch.tensor([5, 600, 33])
    trainer.begin_epoch()
    for _ in range(2):  # the first gradient is not left over in the second
        trainer.next_batch()
        loss = trainer.step(chosen)
        twin.model.train()
        own = loss_of(twin.model(normalise(small.train.images[chosen])), small.train.labels[chosen], 0.0)
        gradients = torch.autograd.grad(own, list(twin.model.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(twin.model.parameters(), gradients, strict=True):
                weight -= 0.5 * gradient
        assert loss.item() == pytest.approx(own.item())
    for one, other in zip(trainer.model.parameters(), twin.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_every_image_is_seen_once_and_the_last_batch_is_kept(settings: Settings, small: Dataset):
    trainer = Trainer(replace(settings, recipe=replace(settings.recipe, batch_size=100)), small, CPU)
    trainer.begin_epoch()
    assert [len(batch) for batch in trainer.batches] == [100] * 6 + [40]
    assert torch.cat(trainer.batches).sort().values.equal(torch.arange(640))


def test_the_order_changes_from_epoch_to_epoch(settings: Settings, small: Dataset):
    trainer = Trainer(settings, small, CPU)
    trainer.begin_epoch()
    first = torch.cat(trainer.batches)
    run_epoch([trainer])
    trainer.begin_epoch()
    assert not first.equal(torch.cat(trainer.batches))


def test_the_localisation_network_learns_at_its_own_rate_and_biases_do_not_decay(settings: Settings, small: Dataset):
    groups = Trainer(settings, small, CPU).optimizer.param_groups
    assert [group["peak"] for group in groups] == pytest.approx([9e-4, 9e-4, 3e-3, 3e-3])
    assert [group["weight_decay"] for group in groups] == [1e-4, 0, 1e-4, 0]
    assert all(parameter.ndim == 1 for group in groups[1::2] for parameter in group["params"])


@pytest.mark.parametrize("steps", [10, 101, 900])
def test_the_one_cycle_is_pytorchs(steps: int):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    recipe = RECIPES["tuned"]
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=steps, pct_start=recipe.warm_up, cycle_momentum=False
    )
    for step in range(steps):
        share = learning_rate_share(recipe, step, steps)
        assert share == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        if step < steps - 1:
            cycle.step()


def test_every_step_of_a_short_training_has_a_rate():
    assert all(0 < learning_rate_share(RECIPES["tuned"], step, 3) <= 1 for step in range(3))
    assert {learning_rate_share(RECIPES["reference"], step, 5) for step in range(5)} == {1.0}


def test_evaluation_weighs_images_not_batches(settings: Settings, small: Dataset, monkeypatch: pytest.MonkeyPatch):
    model = Trainer(settings, small, CPU).model
    whole = evaluate(model, small.test)
    monkeypatch.setattr(module, "EVALUATION_BATCH", 70)
    assert evaluate(model, small.test) == pytest.approx(whole)


def test_the_mean_loss_weighs_images_not_batches(settings: Settings, small: Dataset):
    trainer = Trainer(replace(settings, recipe=replace(settings.recipe, batch_size=600)), small, CPU)
    run_epoch([trainer])
    first, last = trainer.losses.tolist()
    assert trainer.history[0]["train_loss"] == pytest.approx((600 * first + 40 * last) / 640)


def test_bfloat16_leaves_theta_grid_and_evaluation_in_float32():
    model, images = build_model("stn", dropout=0).eval(), torch.rand(4, 3, 32, 32)
    torch.nn.init.normal_(model.transformer.regressor[-1].weight, std=0.1)
    exact, theta = model(images), model.transformer.theta(images)
    set_precision(model, "bf16", CPU)
    assert model(images).equal(exact)
    model.train()
    assert 0 < (model(images) - exact).abs().max() < 0.1
    assert 0 < (model.transformer.theta(images) - theta).abs().max() < 0.02
    assert model.transformer(images).dtype == model.transformer.theta(images).dtype == torch.float32


def test_held_out_images_are_not_trained_on(settings: Settings, small: Dataset):
    trainer = Trainer(replace(settings, validation=40), small, CPU)
    assert trainer.train.labels.equal(small.train.labels[:600])
    assert trainer.held_out.labels.equal(small.train.labels[600:])
    run_epoch([trainer])
    assert set(trainer.history[0]) >= {"validation_accuracy", "test_accuracy"}


def test_ranks_share_a_grid_by_cost():
    names, costs = ["stn 0", "cnn 0", "matched 0", "stn 1"], [20, 11, 19, 20]
    cost = dict(zip(names, costs, strict=True)).get
    shares = [World(rank, 2).share(names, cost) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(names)
    assert shares == [["stn 0", "matched 0"], ["cnn 0", "stn 1"]]
    assert World().share(names, cost) == names


@pytest.mark.cuda
def test_training_on_cuda_learns(settings: Settings, small: Dataset):
    trainer = Trainer(settings, small, torch.device("cuda"))
    for _ in range(3):
        run_epoch([trainer])
    assert trainer.history[-1]["train_loss"] < trainer.history[0]["train_loss"]
    assert next(trainer.model.parameters()).device.type == "cuda"
