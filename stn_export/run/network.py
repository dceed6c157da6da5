"""Register a captured network in a run: program, examples, manifest entry."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stn_export.program.program import Program
from stn_export.program.specs import Contract
from stn_export.run.environment import describe, versions
from stn_export.run.examples import EXAMPLES_FILE, Examples
from stn_export.run.manifest import PROGRAM, PROGRAM_FILE, SUBJECT, Artifact, Facts, NetworkDirectory, Role
from stn_export.run.store import all_or_none, fingerprint, latest, sha256_of, write_if_changed


def write_examples(run: Path, examples: Examples) -> Path:
    """Write the examples of a run's networks, unless the file has them already."""
    path = run / EXAMPLES_FILE
    run.mkdir(parents=True, exist_ok=True)
    write_if_changed(path, examples.to_bytes())
    return path


def enter(
    directory: NetworkDirectory,
    program: Program,
    examples: Path,
    *,
    label: str,
    role: Role = SUBJECT,
    note: str = "",
    source: str = "",
    classes: tuple[str, ...] = (),
    parent_sha256: str | None = None,
) -> Artifact:
    """Register a captured network in a run; artifacts exported from an older program become stale.

    Where it is registered already, nothing is written and its entry stays as it was.

    Args:
        directory: of the network.
        program: the network.
        examples: the file of ``write_examples``.
        label: name for people.
        role: its role among the networks of its run.
        note: a sentence on what it is.
        source: where the examples come from, in words.
        classes: names in label order.
        parent_sha256: of the checkpoint that it was captured from.
    """
    directory.path.mkdir(parents=True, exist_ok=True)
    path, content = directory.path / PROGRAM_FILE, program.to_bytes({"label": label, "classes": list(classes)})
    facts = Facts(
        label=label,
        role=role,
        note=note,
        sites=tuple(site.as_dict() for site in program.sites),
        parameters=program.parameters,
        multiply_adds=program.multiply_adds(),
        examples={
            "file": Path(os.path.relpath(examples, directory.path)).as_posix(),
            "sha256": sha256_of(latest(examples)),
            "source": source,
        },
        classes=classes,
    )
    settings = program_settings(program.contract, program.origin)
    with all_or_none():
        written = write_if_changed(path, content)
        if not written and directory.describes(facts) and directory.holds(PROGRAM, parent_sha256, settings):
            return directory.listed(PROGRAM)
        directory.describe(facts)
        return directory.add(
            Artifact(
                name=PROGRAM,
                file=path.name,
                network=directory.name,
                format="pt2",
                sha256=sha256_of(latest(path)),
                contract=program.contract,
                parent_sha256=parent_sha256,
                settings=settings,
                details={"bytes": len(content)},
                environment=describe(),
            )
        )


def program_settings(contract: Contract, origin: Mapping[str, Any]) -> dict:
    """Return what a program depends on beside the module that it was captured from."""
    packages = versions()
    stamp = fingerprint(f"{name}={packages[name]}".encode() for name in ("torch", "stn_export"))[:16]
    return {"contract": contract.as_dict(), "origin": dict(origin), "versions": stamp}
