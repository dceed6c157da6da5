"""Results that are kept: small files in `benchmarks/results/`, named by device and day."""

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.tools.peak import measured_peak
from benchmarks.tools.peak_share import published_peak
from stn_export.results import laws
from stn_export.results.choice import portability_of, program, proved_by
from stn_export.run.manifest import network_directories
from stn_export.run.records import Timing, timings
from stn_export.run.schemas import Current, Result, read_bench, read_verified
from stn_export.run.store import write_out

KEPT = Path("benchmarks") / "results"
PROOF_PREFIX = "proof-"
PROOF_SCHEMA = "stn_export/proof/2"


def now() -> str:
    """The time in UTC, as ISO 8601 writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def file_name(environment: dict, device: str, date: str) -> str:
    """``nvidia-h100-80gb-hbm3-2026-01-31.json``: the device's name, and the day of an ISO 8601 time."""
    name = environment["gpu"] if device == "cuda" else environment["cpu"]
    plain = re.sub(r"\((r|tm)\)", "", name.lower())
    return f"{re.sub(r'[^a-z0-9]+', '-', plain).strip('-')}-{date[:10]}.json"


def device_of(content: dict) -> str:
    """``cuda`` where anything was timed there."""
    return "cuda" if any(row["extra_info"].get("device") == "cuda" for row in content["benchmarks"]) else "cpu"


def keep(path: Path, directory: Path) -> Path:
    """Write a benchmark file without its single samples, and with what it is read by, into ``directory``.

    It stays one that pytest-benchmark can compare. What comes along: which rows ``verify`` proved equal, from the run
    in which the file lies, and the device's peak rates. The peak of a CPU is measured here and now, so this belongs
    on the machine that was timed.

    Raises:
        UserError: where it is no benchmark file of ours, or its figures cannot be right.
    """
    content = read_bench(path, Result)
    laws.require(content, path)  # while the nodes of profiles are there
    environment, device = content["machine_info"]["stn_export"], device_of(content)
    for row in content["benchmarks"]:
        row["stats"].pop("data", None)
        row["extra_info"].pop("nodes", None)
        row.pop("options", None)
    timed = timings(content)
    content |= {"peak": peak(environment, device)} | verified(path.parent, timed)
    laws.require(content, path)  # now with the device's peak
    kept = directory / file_name(environment, device, content["datetime"])
    write_out(kept, compact(content))
    return kept


def verified(run: Path, rows: Iterable[Timing]) -> dict:
    """Return ``proved``, the programs of ``rows`` and all others that verification passed, and ``portability``.

    What was timed of another file than today's is not among them.
    """
    checked = read_verified(run)
    if checked is None:
        return {"proved": [], "portability": {}}
    directories = network_directories(run)
    current = Current.of(directories)
    stale = {program(row) for row in rows if not current.holds(row)}
    proved = [each for each in proved_by(checked.checks, current.holds) if each not in stale]
    portability = portability_of(directories[0].artifacts.values())
    return {"proved": list(map(list, proved)), "portability": portability}


def peak(environment: dict, device: str) -> dict | None:
    """The device's peak rates: published for a GPU (None for one that is not in the table), measured for a CPU."""
    if device == "cuda":
        return published_peak(environment["gpu"])
    torch.set_num_threads(environment["threads"])
    return measured_peak(environment["threads"])


def compact(content: dict) -> bytes:
    """JSON with one row of ``benchmarks`` a line."""
    rest = {name: value for name, value in content.items() if name != "benchmarks"}
    head = json.dumps(rest, indent=1).removesuffix("\n}")
    rows = ",\n".join("  " + json.dumps(row, separators=(",", ":")) for row in content["benchmarks"])
    return f'{head},\n "benchmarks": [\n{rows}\n ]\n}}\n'.encode()
