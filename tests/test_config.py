"""The tables are complete: every row can be written, run and judged."""

import pytest

from stn_export.bench.plan import GRIDS
from stn_export.cli.options import parse
from stn_export.config import ARTIFACTS, DEFAULT_RUN, FOLDER
from stn_export.export.lowerings import LOWERINGS, Lowering
from stn_export.export.rows import CONTRACTS, EXPORTS, FORMATS, ExportSpec
from stn_export.export.writing import WRITERS
from stn_export.results.tolerances import REQUIRED_RUNNERS, TOLERANCES
from stn_export.run import manifest
from stn_export.run.manifest import DEFAULT_EXPORT
from stn_export.runners import RUNNERS
from stn_export.train.handover import CONTRACT
from stn_export.train.recipes import DATASETS, MODELS, RECIPES


@pytest.mark.parametrize("spec", EXPORTS, ids=lambda spec: spec.name)
def test_every_export_can_be_written_run_and_judged(spec: ExportSpec):
    assert spec.format in WRITERS
    assert spec.format in FORMATS
    assert spec.format in {runner.format for runner in RUNNERS}
    assert spec.precision in TOLERANCES
    assert spec.contract in CONTRACTS
    assert any(spec.applies_to(samples, CONTRACT) for samples in (False, True))
    assert (spec.lowering in {*LOWERINGS, DEFAULT_EXPORT}) == (spec.format == "onnx")


def test_every_lowering_has_a_place_in_the_order_of_what_to_deploy():
    assert sorted(manifest.PREFERRED) == sorted(LOWERINGS)


def test_names_are_unique_within_a_network():
    for samples in (False, True):
        names = [spec.name for spec in EXPORTS if spec.applies_to(samples, CONTRACT)]
        assert len(names) == len(set(names))
    assert len({runner.name for runner in RUNNERS}) == len(RUNNERS)


@pytest.mark.parametrize("rule", LOWERINGS.values(), ids=LOWERINGS)
def test_a_lowerings_own_opset_is_one_it_can_have(rule: Lowering):
    assert rule.default_opset in rule.opsets


def test_every_runner_runs_something_that_is_exported():
    assert {runner.format for runner in RUNNERS} == {spec.format for spec in EXPORTS} | {"pt2"}


def test_every_format_has_a_runner_that_it_must_go_through():
    formats = {runner.name: runner.format for runner in RUNNERS}
    assert {formats[name]: name for name in REQUIRED_RUNNERS.values()} == REQUIRED_RUNNERS
    assert set(REQUIRED_RUNNERS) == set(formats.values())


def test_every_data_set_has_a_recipe():
    assert all(spec.recipe in RECIPES for spec in DATASETS.values())
    assert {name: len(spec.classes) for name, spec in DATASETS.items() if len(spec.classes) != 10} == {FOLDER: 0}


def test_what_is_trained_by_default_is_what_other_stages_look_at():
    trained = parse("train", [])
    assert ARTIFACTS / trained.dataset == DEFAULT_RUN
    assert [MODELS[name].role for name in trained.models] == ["subject", "plain"]


def test_the_reference_recipe_is_untouched():
    recipe = RECIPES["reference"]
    assert (recipe.optimizer, recipe.learning_rate, recipe.batch_size, recipe.epochs) == ("sgd", 0.01, 64, 50)
    assert (recipe.weight_decay, recipe.one_cycle, recipe.localisation_scale) == (0.0, False, 1.0)


def test_grids_time_larger_batches_than_one():
    for grid in GRIDS.values():
        assert all(min(pick.batches) > 1 for pick in grid.throughput)
        assert any(1 in pick.batches for pick in grid.overhead)
