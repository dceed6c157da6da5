"""Blocks of the reference pages of docs/: the command line, exit codes, lint rules, tolerances and versions."""

import argparse
import math
import tomllib

from packaging.requirements import Requirement

from stn_export.cli import COMMANDS, markdown_table
from stn_export.cli.options import PARSERS, Parser
from stn_export.cli.tables import Markdown
from stn_export.errors import EXIT_CODES
from stn_export.onnx_graph.lint import RULES
from stn_export.results.tolerances import TOLERANCES, Bound
from tests.conftest import REPOSITORY

EXAMPLES = {  # one of each command
    "all": "all --run artifacts/mine --budget 90s",
    "train": "train --dataset digits --seeds 2 --epochs 2 --run artifacts/two-seeds",
    "gain": "gain --data pictures --epochs 20 --seeds 2",
    "adopt": "adopt model.py:build --eval --input images=N,3,24,94 --run artifacts/mine",
    "export": "export --only folded-fp32 --batch 8",
    "verify": "verify a.onnx b.onnx --atol 1e-3",
    "audit": "audit model.onnx --require cuda",
    "bench": "bench model.onnx --threads 2",
    "report": "report --run artifacts/digits",
    "predict": "predict crops/0.png --artifact artifacts/digits/stn/folded-fp32.onnx",
    "runtimes": "runtimes --only webgpu",
    "play": "play --run artifacts/digits --build-only",
    "doctor": "doctor",
}


def written(action: argparse.Action) -> Markdown:
    """An option or argument as one types it."""
    name = action.dest.upper() if action.option_strings else action.dest
    value = "" if action.nargs == 0 else argparse.HelpFormatter("")._format_args(action, str(action.metavar or name))
    return Markdown(f"`{' '.join(part for part in (', '.join(action.option_strings), value) if part)}`")


def explained(action: argparse.Action) -> str:
    """What an option does, and the value that it has by default."""
    value = action.default
    if value is None or isinstance(value, bool) or value in ([], (), argparse.SUPPRESS):
        return str(action.help)
    return f"{action.help}; by default {' and '.join(map(str, value)) if isinstance(value, list | tuple) else value}"


def options(actions: list[argparse.Action]) -> list[str]:
    """The table of what a command takes; nothing where that is nothing."""
    rows = [(written(action), explained(action)) for action in actions]
    return markdown_table(("option", "what it does"), rows) if rows else []


def own(parser: Parser) -> list[argparse.Action]:
    """What a command takes beside the options that every command has."""
    shared = {action.dest for action in PARSERS["doctor"]()._actions}
    return [action for action in parser._actions if action.dest not in shared]


def commands() -> list[str]:
    """A section for every command: what it does, an example, its options."""
    lines = ["", "## Options of all commands", "", *options(PARSERS["doctor"]()._actions[1:])]
    for name in COMMANDS:
        parser = PARSERS[name]()
        lines += [f"## `{name}`", "", f"{parser.description}", "", "```sh", f"stn-export {EXAMPLES[name]}", "```", ""]
        lines += options(own(parser))
    return lines


def exit_codes() -> list[str]:
    """The table of exit codes."""
    return markdown_table(("exit code", "meaning"), EXIT_CODES.items())[:-1]


def lint_rules() -> list[str]:
    """The table of lint rules, with the source of each in its words."""
    return markdown_table(("rule", "what goes wrong", "remedy"), [(r.id, r.summary, r.remedy) for r in RULES])[:-1]


def bound(value: Bound) -> str:
    """A bound as a reader would write it."""
    if math.isinf(value.absolute):
        return "–"
    relative = f"{value.relative:g} of the value" if value.relative else ""
    return " + ".join(filter(None, (f"{value.absolute:g}", relative)))


def tolerances() -> list[str]:
    """The bounds of each precision, and why."""
    points = ("theta", "grid", "warped", "output")
    rows = []
    for name, found in TOLERANCES.items():
        bounds = (bound(getattr(found, point)) for point in points)
        rows.append((name, *bounds, f"{found.agreement:.1%}", f"{100 * found.accuracy_loss:g} points", found.reason))
    columns = ("precision", "theta", "grid, pixels", "warped", "output", "same predictions", "accuracy may lose", "why")
    return markdown_table(columns, rows)[:-1]


def versions() -> list[str]:
    """Python and packages: the versions that are accepted, and those that `make setup` installs."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    installed = dict(line.partition(" ")[0].split("==") for line in lines if "==" in line)
    wanted = {"": project["dependencies"]} | {extra: extras[extra] for extra in ("train", "bench", "openvino")}
    packages = [(Requirement(line), extra) for extra, needed in wanted.items() for line in needed]
    rows = [("Python", project["requires-python"], "", "")]
    rows += [(each.name, str(each.specifier), installed[each.name], extra) for each, extra in packages]
    return markdown_table(("package", "accepted", Markdown("installed by `make setup`"), "extra"), rows)[:-1]


BLOCKS = {
    "commands": commands,
    "exit codes": exit_codes,
    "lint rules": lint_rules,
    "tolerances": tolerances,
    "versions": versions,
}
