"""One training: what a step sees, learning rates, precision, splitting over ranks."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stn_export.train import trainer as module
from stn_export.train.data import Dataset
from stn_export.train.distributed import World
from stn_export.train.networks import build_model
from stn_export.train.optimizers import learning_rate_share
from stn_export.train.recipes import RECIPES
from stn_export.train.trainer import Settings, Trainer, evaluate, run_epoch, set_precision
from tests.conftest import REPOSITORY

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
    assert World(1, 2, split=True).share(names, cost) == names


@pytest.mark.slow
def test_split_batches_give_the_whole_batchs_weights(tmp_path: Path, settings: Settings, small: Dataset):
    """Two ranks, 7 batches of 100 and one of 40, no dropout: what one process gives, within float tolerance."""
    recipe = replace(RECIPES["reference"], batch_size=100, dropout=0.0, label_smoothing=0.1)
    settings = replace(settings, recipe=recipe)
    torch.save({"settings": settings, "small": small}, tmp_path / "case.pt")
    script = tmp_path / "split.py"
    script.write_text(SPLIT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run(torchrun, cwd=REPOSITORY, env=environment, check=True)
    alone = Trainer(settings, small, CPU)
    run_epoch([alone])
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    torch.testing.assert_close(result["losses"], alone.losses, rtol=1e-4, atol=1e-5)
    for name, weights in alone.model.state_dict().items():
        torch.testing.assert_close(result["model"][name], weights, rtol=1e-3, atol=1e-4)


SPLIT = """
import sys
from pathlib import Path
import torch
from stn_export.train.distributed import SplitTrainer, joined
from stn_export.train.trainer import run_epoch

folder = Path(sys.argv[0]).parent
case = torch.load(folder / "case.pt", weights_only=False)
with joined(torch.device("cpu"), split=True) as world:
    trainer = SplitTrainer(case["settings"], case["small"], torch.device("cpu"), world)
    run_epoch([trainer])
    if world.rank == 0:
        torch.save({"model": trainer.model.state_dict(), "losses": trainer.losses}, folder / "result.pt")
"""


@pytest.mark.cuda
def test_training_on_cuda_learns(settings: Settings, small: Dataset):
    trainer = Trainer(settings, small, torch.device("cuda"))
    for _ in range(3):
        run_epoch([trainer])
    assert trainer.history[-1]["train_loss"] < trainer.history[0]["train_loss"]
    assert next(trainer.model.parameters()).device.type == "cuda"
