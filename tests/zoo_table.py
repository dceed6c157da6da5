"""How equal the zoo's networks are, at every site and output, by lowering and runner: ``python -m tests.zoo_table``.

Takes every network through adopt, export and verify, and writes the table behind its mark in docs/networks.md.
"""

import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

from stn_export import cli
from stn_export.adopt import __main__ as adopt
from stn_export.errors import UserError
from stn_export.export import __main__ as export
from stn_export.report.page import SiteTable
from stn_export.report.parity import artifacts_of, site_tables
from stn_export.run.manifest import network_directories
from stn_export.run.schemas import read_verified
from stn_export.verify import __main__ as verify
from tests.zoo import ZOO, command

PAGE = Path(__file__).parent.parent / "docs" / "networks.md"
MARK = "<!-- zoo table -->"
EXPORTS = ("torchscript", "default", "matmul", "affinegrid", "decomposed", "gather", "folded", "plain")


def verified(name: str, failed: list[str]) -> SiteTable:
    """One network's table, see ``report.parity.site_tables``; what did not end well is noted."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        run = Path(folder) / "run"
        rows = ("--run", str(run), "--only", *(f"{each}-fp32" for each in EXPORTS))
        stages = (adopt.main, command(ZOO[name], Path(folder))), (export.main, rows), (verify.main, rows[:2])
        for main, arguments in stages:
            if code := cli.run(main, arguments):
                failed.append(f"{name}: {main.__module__} ended with {code}")
        content = read_verified(run)
        if content is None:
            raise UserError(f"{name} was not verified", "look at what failed above")
        tables = site_tables(content.checks, artifacts_of(network_directories(run)), content.networks)
    return replace(next(table for table in tables if table.network == "run"), network=name)


def markdown(tables: Sequence[SiteTable]) -> str:
    """One table: a row a place, a column a lowering in a runner."""
    columns = list(dict.fromkeys((row.lowering, row.runner) for table in tables for row in table.rows))
    lines = [["network", "where", *("<br>".join(column) for column in columns)]]
    lines.append(["---", "---", *["--:"] * len(columns)])
    for table in tables:
        errors = {(row.lowering, row.runner): row.errors for row in table.rows}
        for place in table.places:
            found = (errors.get(column, {}).get(place) for column in columns)
            lines.append([table.network, place, *("–" if each is None else f"{each:.1e}" for each in found)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    text, failed = PAGE.read_text(encoding="utf-8"), []
    table = markdown([verified(name, failed) for name in sys.argv[1:] or ZOO])
    PAGE.write_text(f"{text.split(MARK)[0]}{MARK}\n\n{table}\n", encoding="utf-8")
    sys.exit("\n".join(failed) or 0)
