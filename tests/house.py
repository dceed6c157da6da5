"""Count what the house is made of, and hold it to limits: ``python -m tests.house``, a part of ``make lint``."""

import ast
import re
import statistics
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "stn_export"
LIMITS = {
    "files": 160,
    "longest file": 500,
    "modules with one importer": 36,
    "subscripts by a string": 320,
    "names that say nothing": 19,
}
UNTELLING = {"each", "found", "given", "said", "known", "wanted", "told"}  # names that do not say what they hold
SUBSCRIPT = re.compile(r'\["\w+"\]')


def sources() -> dict[str, str]:
    """The text of every module of the package by its path below the package."""
    return {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


def importers(texts: dict[str, str]) -> dict[str, set[str]]:
    """The modules of the package that import each module, at the top or inside a function."""
    found: dict[str, set[str]] = {path: set() for path in texts}
    for path, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stn_export"):
                for name in (node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)):
                    target = name.removeprefix("stn_export").removeprefix(".").replace(".", "/")
                    for there in (f"{target}.py", f"{target}/__init__.py".removeprefix("/")):
                        if there in found and there != path:
                            found[there].add(path)
    return found


def untelling(text: str) -> int:
    """How often a module binds a variable or a parameter to a name of ``UNTELLING``."""
    names = (
        node.id if isinstance(node, ast.Name) else node.arg
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.arg) or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    )
    return sum(name in UNTELLING for name in names)


def counts() -> dict[str, float]:
    """Files, lines, and what makes them hard to read."""
    texts = sources()
    lines = {path: len(text.splitlines()) for path, text in texts.items()}
    single = [path for path, those in importers(texts).items() if len(those) == 1 and not path.endswith("__.py")]
    return {
        "files": len(lines),
        "lines": sum(lines.values()),
        "median lines of a file": statistics.median(lines.values()),
        "longest file": max(lines.values()),
        "modules with one importer": len(single),
        "subscripts by a string": sum(len(SUBSCRIPT.findall(text)) for text in texts.values()),
        "names that say nothing": sum(map(untelling, texts.values())),
        "type: ignore": sum(text.count("# type: ignore") for text in texts.values()),
    }


def main() -> None:
    """Print the counts; the exit code is 1 where one is beyond its limit, which is the count of today."""
    found = counts()
    for what, count in found.items():
        print(f"{count:>8g}  {what}" + (f", at most {LIMITS[what]}" if what in LIMITS else ""))
    sys.exit(1 if any(found[what] > limit for what, limit in LIMITS.items()) else 0)


if __name__ == "__main__":
    main()
