"""Parts of graphs that are small enough to be told by eye."""

import pytest

from stn_export.program.sites import Step, Values, parts_of

# images -> conv -> theta -> base -> grid -> sample -> warped -> classify -> scores
CHAIN = (
    Step("conv", ("images", "weight"), ("features",)),
    Step("regress", ("features",), ("theta",)),
    Step("affine", ("theta", "base"), ("grid",)),
    Step("sample", ("images", "grid"), ("warped",)),
    Step("classify", ("warped",), ("scores",)),
)
SITE = Values("images", "grid", "warped", "theta")
WHOLE = {"conv": "localisation", "regress": "localisation", "affine": "grid", "sample": "sampler", "classify": "rest"}


def test_the_parts_of_a_chain():
    assert parts_of(CHAIN, [SITE], ["scores"]) == WHOLE
    assert list(parts_of(CHAIN, [SITE], ["scores"])) == list(WHOLE)


def test_without_a_site_all_is_rest():
    assert set(parts_of(CHAIN, [], ["scores"]).values()) == {"rest"}


def test_without_a_theta_all_before_the_grid_is_the_grids():
    assert parts_of(CHAIN, [SITE._replace(theta="")], ["scores"]) == WHOLE | {"conv": "grid", "regress": "grid"}


@pytest.mark.parametrize("given_out", ["theta", "grid", "features"])
def test_that_a_value_on_the_way_is_given_out_does_not_count(given_out: str):
    assert parts_of(CHAIN, [SITE], ["scores", given_out]) == WHOLE


def test_what_serves_both_is_rest():
    shared = [
        step if step.name != "classify" else Step("classify", ("warped", "features"), ("scores",)) for step in CHAIN
    ]
    assert parts_of(shared, [SITE], ["scores"]) == WHOLE | {"conv": "rest"}
    ends = [*CHAIN, Step("log", ("features",), ("log",))]
    assert parts_of(ends, [SITE], ["scores", "log"]) == WHOLE | {"conv": "rest", "log": "rest"}


def test_what_makes_the_sampled_image_is_rest_and_what_samples_in_steps_is_the_sampler():
    steps = (
        Step("stem", ("pixels",), ("images",)),
        *CHAIN[:3],
        Step("scale", ("grid",), ("pixels_of",)),
        Step("gather", ("images", "pixels_of"), ("near",)),
        Step("blend", ("near",), ("warped", "unused")),
        CHAIN[4],
    )
    expected = {name: part for name, part in WHOLE.items() if name != "sample"}
    sampler = dict.fromkeys(("scale", "gather", "blend"), "sampler")
    assert parts_of(steps, [SITE], ["scores"]) == expected | sampler | {"stem": "rest"}


def test_a_grid_that_others_read_is_still_the_grids():
    shown = (*CHAIN, Step("show", ("grid",), ("shown",)))
    assert parts_of(shown, [SITE], ["scores", "shown"]) == WHOLE | {"show": "rest"}


def test_of_two_sites_in_a_row_the_second_sees_through_the_first():
    """The second localisation network looks at what the first made; the first is needed for the second's theta only."""
    second = (
        Step("conv2", ("warped",), ("theta2",)),
        Step("affine2", ("theta2",), ("grid2",)),
        Step("sample2", ("warped", "grid2"), ("warped2",)),
        Step("classify", ("warped2",), ("scores",)),
    )
    sites = [SITE, Values("warped", "grid2", "warped2", "theta2")]
    found = parts_of((*CHAIN[:4], *second), sites, ["scores"])
    assert found == WHOLE | {"conv2": "localisation", "affine2": "grid", "sample2": "sampler"}


def test_what_nobody_needs_is_localisation_and_a_loop_of_readers_ends():
    odd = (*CHAIN, Step("left", ("scores", "right"), ("left",)), Step("right", ("left",), ("right",)))
    assert parts_of(odd, [SITE], ["scores"]) == WHOLE | {"left": "localisation", "right": "localisation"}
    assert parts_of(odd, [SITE], ["left"]) == WHOLE | {"left": "rest", "right": "rest"}
