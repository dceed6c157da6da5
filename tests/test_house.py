"""The counts that hold the house to its size."""

import pytest

from tests import house


def test_files_importers_and_subscripts_are_counted(monkeypatch: pytest.MonkeyPatch):
    texts = {
        "a.py": "from stn_export.room import b\n",
        "room/__init__.py": "",
        "room/b.py": 'def f(x: dict) -> int:\n    from stn_export.room.c import y\n\n    return x["a"] + y["b"]\n',
        "room/c.py": "found = [each for each in y]  # type: ignore[x]\n" * 501,
    }
    monkeypatch.setattr(house, "sources", lambda: texts)
    assert house.importers(texts)["room/b.py"] == {"a.py"}
    assert house.importers(texts)["room/c.py"] == {"room/b.py"}
    found = house.counts()
    assert (found["files"], found["longest file"], found["modules with one importer"]) == (4, 501, 2)
    assert (found["subscripts by a string"], found["type: ignore"]) == (2, 501)
    assert found["names that say nothing"] == 2 * 501
    with pytest.raises(SystemExit, match="1"):
        house.main()
