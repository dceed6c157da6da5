"""What artifacts are verified on, made of any contract and its examples."""

import pytest
import torch

from stn_export.program.specs import Contract, Pixels, TensorSpec
from stn_export.run.examples import Examples
from stn_export.verify.challenges import BATCHES, GREYS, THETAS, challenges, fits, size_of, theta_of

GREY = TensorSpec("images", "float32", ("N", 1, 6, 8), pixels=Pixels())
BARE = TensorSpec("maps", "float32", ("N", 2, "H", "W"))
POSE = TensorSpec("pose", "float32", ("N", 3))
INDEX = TensorSpec("index", "int64", ("N",))
INPUTS = {
    "images": torch.arange(10 * 48).remainder(251).to(torch.uint8).view(10, 1, 6, 8),
    "maps": torch.linspace(-3, 5, 10 * 2 * 8 * 10).view(10, 2, 8, 10),
    "pose": torch.linspace(2, 4, 30).view(10, 3),
    "index": torch.arange(10),
}


def made(*specs: TensorSpec) -> dict[str, dict[str, torch.Tensor]]:
    names = tuple(spec.name for spec in specs)
    return challenges(Contract(specs, ()), Examples({name: INPUTS[name] for name in names}, names))


def test_pictures_of_any_size_get_every_kind_of_picture():
    found = made(GREY)
    examples = [f"examples ×{n}" for n in BATCHES]
    assert list(found) == [*examples, "noise ×1", "noise ×64", "constants", "single pixels"]
    assert all(batch["images"].dtype == torch.uint8 for batch in found.values())
    assert found["constants"]["images"].view(6, -1).unique(dim=1).T.tolist() == [list(GREYS)]
    single = found["single pixels"]["images"]
    assert (single.flatten(1).amax(1) == 255).all()
    assert (single.flatten(1).count_nonzero(1) == 1).all()
    places = {tuple(each[1:]) for each in single[:, 0].nonzero().tolist()}
    assert places == {(y, x) for y in (0, 1, 2, 3, 5) for x in (0, 4, 7)}
    assert found["noise ×64"]["images"].max() > 250  # bytes over their whole range, whatever the examples hold


def test_floats_keep_to_the_range_of_their_examples_and_whole_numbers_come_from_them():
    found = made(BARE, POSE, INDEX)
    for name, batch in found.items():
        assert -3 <= batch["maps"].min() <= batch["maps"].max() <= 5, name
        assert 2 <= batch["pose"].min() <= batch["pose"].max() <= 4, name
        assert batch["index"].tolist() == [index % 10 for index in range(size_of(batch, Contract((INDEX,), ())))]
    noise = found["noise ×64"]
    assert noise["maps"].max() - noise["maps"].min() > 7.9
    assert not torch.equal(noise["pose"], INPUTS["pose"][torch.arange(64) % 10])
    assert found["constants"]["maps"][-1].unique().tolist() == [5.0]
    assert found["single pixels"]["pose"][0].equal(INPUTS["pose"][0])


def test_open_sizes_get_a_smaller_and_a_larger_one():
    found = made(BARE, POSE)
    assert found["smaller size"]["maps"].shape == (3, 2, 6, 8)
    assert found["larger size"]["maps"].shape == (3, 2, 10, 12)
    assert found["larger size"]["pose"].equal(INPUTS["pose"][:3])
    assert "smaller size" not in made(GREY)


def test_a_fixed_batch_gets_exactly_that_batch():
    found = made(TensorSpec("images", "float32", (4, 1, 6, 8), pixels=Pixels()))
    assert all(len(batch["images"]) == 4 for batch in found.values())
    assert [name for name in found if name.startswith(("examples", "noise"))] == ["examples ×4", "noise ×4"]
    constants = torch.cat([found[f"constants {part}"]["images"] for part in (1, 2)])
    assert constants.flatten(1)[:, 0].tolist() == [*GREYS, *GREYS[:2]]  # the last one filled up


def test_without_pictures_or_floats_there_are_fewer():
    assert not [name for name in made(POSE) if name in ("constants", "single pixels")]
    assert list(made(INDEX)) == [f"examples ×{n}" for n in BATCHES]


def test_they_are_always_the_same():
    for name, batch in made(GREY, BARE).items():
        again = made(GREY, BARE)[name]
        assert all(value.equal(again[key]) for key, value in batch.items())


def test_large_inputs_come_in_small_batches():
    large = Examples({"images": torch.zeros(1, 3, 512, 512)}, ("images",))
    assert [n for n in BATCHES if fits(large, n)] == [1, 2, 3, 7]


@pytest.mark.parametrize("half", [16.0, 14.0, 46.5])
def test_a_third_of_a_pixel_is_one_whatever_the_width(half: float):
    theta = theta_of("a third of a pixel right", half)
    assert theta[0, 2] * half == pytest.approx(1 / 3)
    assert theta_of("scale 10", half).tolist() == THETAS["scale 10"]
