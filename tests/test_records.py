"""Records are written as JSON and read back as themselves; a field that there is not can be neither set nor written."""

import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from msgspec import structs

from stn_export.bench.plan import GRIDS
from stn_export.bench.session import Session
from stn_export.errors import UserError
from stn_export.run import records
from stn_export.run.manifest import VERIFY_FILE, VERIFY_SCHEMA
from stn_export.run.records import Check, Comparison, GridPixels, PointEntry, Verified
from stn_export.run.schemas import read_verified
from stn_export.run.store import write_json
from tests import made_records

POINT = PointEntry(kind="output", site=None, eager_error=1e-7, scale=4.0)


@pytest.fixture
def verified() -> Verified:
    """Every field has a value of its own."""
    compared = {"constants": {"y": Comparison("", 1e-7, 2e-6, 3e-8, 0.9, (1, 0, 2), 0.25)}}
    check = made_records.check(
        comparisons=compared,
        errors={"y": 1e-7},
        grid_pixels={"site0": {"mean": 1e-6, "worst": 2e-5}},
        differing=[(3, 1e-5, "y")],
        notes=["cut"],
        search={"examples": 7},
        examples_sha256="digest",
    )
    networks = {"stn": made_records.network(labels=True, points={"y": POINT})}
    return made_records.verified(check, networks=networks, refused={"a in b": "no"}, environment={"cpu": "a CPU"})


def write(run: Path, content: dict) -> Path:
    write_json(run / VERIFY_FILE, VERIFY_SCHEMA, content)
    return run


def test_what_verify_found_is_read_back_as_itself(verified: Verified, tmp_path: Path):
    assert read_verified(write(tmp_path, verified.as_dict())) == verified
    [check] = verified.checks
    assert check.grid_pixels["site0"] == GridPixels(mean=1e-6, worst=2e-5)


def test_the_keys_of_a_check_stay_what_they_were(verified: Verified):
    [check] = json.loads(json.dumps(verified.as_dict()))["checks"]
    assert list(check) == [
        *("passed", "network", "artifact", "sha256", "runner", "precision", "comparisons", "errors", "multiple"),
        *("agreement", "accuracy", "deterministic", "grid_pixels", "differing", "notes", "failure", "search"),
        "examples_sha256",
    ]
    assert check["comparisons"]["constants"]["y"].keys() == set(Comparison.__struct_fields__)


def test_what_is_not_finite_is_null(verified: Verified):
    [check] = verified.checks
    wrong = structs.replace(check, errors={"y": math.inf}, multiple=math.nan)
    content = json.loads(json.dumps(wrong.as_dict(), allow_nan=False))
    assert (content["errors"], content["multiple"]) == ({"y": None}, None)


def test_a_file_may_hold_more(verified: Verified, tmp_path: Path):
    content = verified.as_dict() | {"of tomorrow": 1}
    content["checks"][0]["of tomorrow"] = 1
    assert read_verified(write(tmp_path, content)) == verified


@pytest.mark.parametrize(("change", "word"), [({"passed": False}, "contradict"), ({"errors": 3}, "errors")])
def test_a_check_that_contradicts_itself_is_refused(change: dict, word: str, verified: Verified, tmp_path: Path):
    content = verified.as_dict()
    content["checks"][0] |= change
    with pytest.raises(UserError, match=word):
        read_verified(write(tmp_path, content))


def test_a_check_without_a_key_is_refused(verified: Verified, tmp_path: Path):
    required = [each.name for each in structs.fields(Check) if each.required]
    for name in ("passed", *required):
        content = verified.as_dict()
        del content["checks"][0][name]
        with pytest.raises(UserError, match="is damaged"):
            read_verified(write(tmp_path, content))


def test_a_misspelt_field_cannot_be_set(verified: Verified):
    [check] = verified.checks
    with pytest.raises(TypeError, match="agrement"):
        structs.replace(check, agrement=0.5)
    with pytest.raises(AttributeError):
        check.accuracy = 0.5  # nor changed after it was found


def test_a_timing_is_read_back_as_itself():
    paired = {
        "contest": "eager",
        "ratio": 0.5,
        "ratio_low": 0.4,
        "ratio_high": 0.7,
        "nodes": [("a", "Conv", "rest", 1e-6)],
    }
    row = records.timing(made_records.TIMING | paired)
    content = {"benchmarks": [{"extra_info": json.loads(msgspec.json.encode(row))}]}
    assert records.timings(content) == [row]
    assert row.paired == (0.5, 0.4, 0.7)
    with pytest.raises(ValueError, match="no such figure"):
        assert row.median


def test_a_misspelt_field_of_a_timing_cannot_be_written():
    with pytest.raises(ValueError, match="a timing has no field p5O"):
        records.timing(made_records.TIMING | {"p5O": 1e-3})


def test_rows_of_an_older_format_are_named():
    row = {name: value for name, value in made_records.TIMING.items() if name != "regime"}
    with pytest.raises(UserError, match="a row has no regime: it is of an older format"):
        records.timings({"benchmarks": [{"extra_info": row}]})


def test_a_session_refuses_a_row_with_a_misspelt_field():
    session = Session(Path("run"), "cpu", GRIDS["quick"], [])
    session.__dict__["keys"] = {"test_latency[a]": "its key"}
    for known in (made_records.TIMING | {"batchh": 1}, made_records.TIMING):
        benchmark = SimpleNamespace(extra_info=dict(known), stats=None)
        with nullcontext() if known is made_records.TIMING else pytest.raises(ValueError, match="batchh"):
            session.note("test_latency[a]", benchmark)
    [row] = session.rows
    assert (row.grid, row.key) == ("quick", "its key")
