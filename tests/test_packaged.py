"""Tiny networks of other packages, every way: ``make test-packages`` installs these."""

import ast
import importlib.util
import tomllib
from dataclasses import astuple
from pathlib import Path

import pytest

from tests import packaged
from tests.conftest import REPOSITORY
from tests.network_table import FINE, RIGHT, WAYS, Network, line_of, networks
from tests.packaged import PACKAGED

NOT_RIGHT: dict[str, dict[str, str]] = {}  # refused or told, with a true sentence


def network(name: str) -> Network:
    """The table's network of this name."""
    kind = PACKAGED[name]
    if importlib.util.find_spec(kind.package) is None:
        pytest.skip(f"{kind.package} is not installed")
    return next(each for each in networks() if (each.name, each.source) == (name, kind.package))


@pytest.mark.packages
@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGED)
def test_each_is_right_or_refused(name: str):
    line = line_of(network(name))
    outcomes = {way: getattr(line, way) for way in WAYS}
    wanted = dict.fromkeys(WAYS, RIGHT) | NOT_RIGHT.get(name, {})
    assert {way: outcome.verdict for way, outcome in outcomes.items()} == wanted, outcomes


def test_what_is_not_right_is_refused_or_told():
    assert NOT_RIGHT.keys() <= PACKAGED.keys()
    assert {verdict for ways in NOT_RIGHT.values() for verdict in ways.values()} <= set(FINE) - {RIGHT}


def test_packages_are_imported_where_a_network_is_built():
    tree = ast.parse(Path(packaged.__file__).read_text(encoding="utf-8"))
    at_once = [each for each in tree.body if isinstance(each, ast.Import | ast.ImportFrom)]
    imported = {name.partition(".")[0] for each in at_once for name in [getattr(each, "module", None) or "torch"]}
    assert not imported & {each.package for each in PACKAGED.values()}


def test_every_package_is_an_extra_and_pinned():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    wanted = {each.partition(">=")[0] for each in extras["packages"] + extras["train"]}
    pins = {line.partition("==")[0] for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").split()}
    assert {each.package for each in PACKAGED.values()} <= wanted & pins
    assert {each.partition(">=")[0] for each in extras["packages"]} <= {each.package for each in PACKAGED.values()}


def test_no_two_networks_of_the_table_are_named_alike():
    names = [each.name for each in networks()]
    assert len(names) == len(set(names))


def test_what_is_not_installed_is_not_tried():
    missing = Network("none", "none", lambda: None, lambda n: ((), {}), package="a_package_that_nobody_has")
    assert {each[0] for each in astuple(line_of(missing))[2:]} == {"not tried"}
