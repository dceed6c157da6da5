"""Where the type checker is told to look away: seldom, and with the reason beside it."""

import re
import tokenize
from pathlib import Path

import stn_export

PACKAGE = Path(stn_export.__file__).parent
MOST = 10
WITH_REASON = re.compile(r"# type: ignore\[[\w, -]+\]  # \S.*")


def ignores(folder: Path) -> list[str]:
    """List the comments that switch the type checker off, each with its file and line."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        with tokenize.open(path) as file:
            comments = [token for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.COMMENT]
        found += [
            f"{path.relative_to(folder)}:{each.start[0]}: {each.string}"
            for each in comments
            if "type: ignore" in each.string
        ]
    return found


def test_the_type_checker_is_seldom_told_to_look_away():
    assert len(ignores(PACKAGE)) <= MOST


def test_whoever_tells_it_to_look_away_says_why():
    assert [line for line in ignores(PACKAGE) if not WITH_REASON.search(line)] == []


def test_one_without_a_code_or_a_reason_is_found(tmp_path):
    for name, comment in (("bare", "# type: ignore"), ("coded", "# type: ignore[misc]")):
        (tmp_path / f"{name}.py").write_text(f"x = 1  {comment}\n", encoding="utf-8")
    (tmp_path / "reasoned.py").write_text("x = 1  # type: ignore[misc]  # its stub is wrong\n", encoding="utf-8")
    (tmp_path / "words.py").write_text('x = "# type: ignore"\n', encoding="utf-8")
    found = ignores(tmp_path)
    assert [line.partition(":")[0] for line in found] == ["bare.py", "coded.py", "reasoned.py"]
    assert [bool(WITH_REASON.search(line)) for line in found] == [False, False, True]
