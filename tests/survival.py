"""Blocks of docs/survival.md, docs/formats.md and SECURITY.md: limits, formats of files, and what faults came to."""

import json
import typing
from dataclasses import fields, is_dataclass
from typing import NotRequired

import msgspec

from benchmarks.tools.kept import KEPT
from stn_export.cli import markdown_table
from stn_export.cli.tables import Markdown
from stn_export.limits import LIMITS
from stn_export.program import sites, specs
from stn_export.run import manifest, records, schemas
from tests.conftest import REPOSITORY
from tests.guards import GUARDS

FILES = {  # what stands in each, by the types that it is checked against
    "`<network>/manifest.json`": (manifest._Written, manifest.Facts, manifest.ExamplesFile, sites.Site),
    "Entries of `artifacts` in `manifest.json`": (manifest.Artifact, specs.Contract, specs.TensorSpec, specs.Pixels),
    "`<network>/history.jsonl`, one object per line": (schemas.Epoch,),
    "`training.json`": (schemas.Trainings, schemas.ModelComparison, schemas.Trained, schemas.Difference),
    "`verify.json`": (
        records.Verified,
        records.Check,
        records.Comparison,
        records.GridPixels,
        records.NetworkEntry,
        records.PointEntry,
    ),
    "`points.pt`": (schemas.Points, schemas.SitePoints, schemas.Pictures),
    "`bench.json`": (schemas.Result, schemas.TimedWhole, records.Timing, schemas.Environment),
}

DERIVED = {records.Check: ("passed",)}  # keys that are no fields


def kept(name: str) -> dict:
    """The kept file of that name."""
    return json.loads((REPOSITORY / KEPT / f"{name}.json").read_text(encoding="utf-8"))


def limits() -> list[str]:
    """The table of limits."""
    rows = [(each.what, f"{each.value:,} {each.unit}".strip()) for each in LIMITS.values()]
    return markdown_table(("item", "limit"), rows)[:-1]


def said(kind: object) -> str:
    """A type for a reader."""
    text = getattr(kind, "__name__", str(kind)) if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
    for module in ("typing.", "stn_export.run.", "stn_export.program.", "manifest.", "records.", "schemas."):
        text = text.replace(module, "")
    return "may lack: " + text.removeprefix("NotRequired[")[:-1] if text.startswith("NotRequired[") else text


def formats() -> list[str]:
    """Every key of every file that a stage reads, with its type."""
    lines = []
    for name, kinds in FILES.items():
        rows = [
            (kind.__name__.removeprefix("_"), Markdown(f"`{key}`"), Markdown(f"`{said(hint)}`"))
            for kind in kinds
            for key, hint in keys(kind).items()
        ]
        lines += [f"## {name}", "", *markdown_table(("object", "key", "type"), rows)]
    return lines[:-1]


def keys(kind: type) -> dict[str, object]:
    """The keys of a record, a dataclass or a ``TypedDict``."""
    hints = typing.get_type_hints(kind, include_extras=True)
    if issubclass(kind, msgspec.Struct):
        derived = {name: typing.get_type_hints(vars(kind)[name].fget)["return"] for name in DERIVED.get(kind, ())}
        may_lack = {each.name for each in msgspec.structs.fields(kind) if not each.required}
        return derived | {name: NotRequired[hint] if name in may_lack else hint for name, hint in hints.items()}
    return {each.name: hints[each.name] for each in fields(kind)} if is_dataclass(kind) else hints


def faults() -> list[str]:
    """By stage and fault: tried, lost."""
    rows = [[str(row[name]) for name in ("stage", "fault", "tried", "lost")] for row in kept("faults")["rows"]]
    return markdown_table(("stage", "fault", "tried", "lost"), rows)[:-1]


def fuzz() -> list[str]:
    """By kind of file: tried, and what came of them."""
    names = ("file", "tried", "answered", "refused", "raised", "crashed", "hung")
    return markdown_table(names, [[str(row[name]) for name in names] for row in kept("fuzz")["rows"]])[:-1]


def soak() -> list[str]:
    """What grew."""
    content = kept("soak")
    rows = [
        (row["what"], f"{row['first']:.0f}", f"{row['last']:.0f}", f"{row['slope']:+.3f} ± {row['error']:.3f}")
        for row in content["rows"]
    ]
    lines = [f"{content['rounds']} rounds in {content['minutes']:.0f} minutes:", ""]
    return lines + markdown_table(("what", "after the first", "after the last", "slope a round"), rows)[:-1]


def survived() -> list[str]:
    """The totals of all three."""
    lost, tried = (sum(row[name] for row in kept("faults")["rows"]) for name in ("lost", "tried"))
    files = sum(row["tried"] for row in kept("fuzz")["rows"])
    found = {name: sum(row[name] for row in kept("fuzz")["rows"]) for name in ("raised", "crashed", "hung")}
    return [
        f"- `make faults`: {tried:,} kills, full disks and pairs of stages at once, {lost} of them lost anything;",
        f"- `make fuzz`: {files:,} damaged files, of which {found['raised']} ended in a traceback,",
        f"  {found['crashed']} in a crash and {found['hung']} in a hang;",
        f"- `make soak`: {kept('soak')['rounds']} rounds of the stages in one process.",
    ]


def guards() -> list[str]:
    """What is tried, what comes of it, and what holds that."""
    rows = [
        (Markdown(each.attempt), Markdown(each.outcome), Markdown(f"`tests/{each.test.replace('::', '.py::')}`"))
        for each in GUARDS
    ]
    return markdown_table(("attempt", "outcome", "held by"), rows)[:-1]


BLOCKS = {"limits": limits, "formats": formats, "faults": faults, "fuzz": fuzz, "soak": soak} | {
    "survived": survived,
    "guards": guards,
}
