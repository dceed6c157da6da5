"""``export --only a b`` writes what can be had, and says what cannot."""

from pathlib import Path

import pytest

from stn_export.errors import UserError
from stn_export.export import __main__ as export
from stn_export.program.specs import Contract
from stn_export.run.manifest import Artifact

WRITTEN = Artifact(name="a", file="a.onnx", network="n", format="onnx", sha256="", contract=Contract((), ()))


def test_what_cannot_be_had_is_said_and_the_others_are_written(capsys: pytest.CaptureFixture[str]):
    export._check(Path("run"), [{"a": WRITTEN, "b": "no layer of it may"}], ["a", "b", "c"], [])
    said = capsys.readouterr().out
    assert "b cannot be written: no layer of it may; the others are" in said
    assert "no network of this run takes c; the others are written" in said


@pytest.mark.parametrize("outcome", [{"b": "no layer of it may"}, {}])
def test_nothing_left_is_an_error(outcome: dict[str, Artifact | str]):
    with pytest.raises(UserError, match=r"b cannot be written: no layer|no network of this run takes b"):
        export._check(Path("run"), [outcome], ["b"], [])
