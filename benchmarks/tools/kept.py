"""Store results as small files in `benchmarks/results/`, named by device and day."""

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
    """Return the current time in UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def file_name(environment: dict, device: str, date: str) -> str:
    """Return ``nvidia-h100-80gb-hbm3-2026-01-31.json``: the device's name, and the day of an ISO 8601 time."""
    name = environment["gpu"] if device == "cuda" else environment["cpu"]
    plain = re.sub(r"\((r|tm)\)", "", name.lower())
    return f"{re.sub(r'[^a-z0-9]+', '-', plain).strip('-')}-{date[:10]}.json"


def device_of(content: dict) -> str:
    """Return ``cuda`` if any row was timed there, else ``cpu``."""
    return "cuda" if any(row["extra_info"].get("device") == "cuda" for row in content["benchmarks"]) else "cpu"


def keep(path: Path, directory: Path) -> Path:
    """Write a benchmark file without its single samples, and with verdicts and peak rates, into ``directory``.

    pytest-benchmark can still compare the result. The verdicts say which rows ``verify`` found equal, in the run of the
    file. A CPU's peak rates are measured during this call, so call it on the machine that was timed.

    Raises:
        UserError: if it is no benchmark file of this package, or its figures cannot be right.
    """
    content = read_bench(path, Result)
    laws.require(content, path)  # before the nodes of profiles are removed
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
    """Return ``proved``, the programs that passed verification, and ``portability``.

    Programs of ``rows`` that were timed with other files than the current ones are left out.
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
    """Return the device's peak rates: published for a GPU (None if it is not in the table), measured for a CPU."""
    if device == "cuda":
        return published_peak(environment["gpu"])
    torch.set_num_threads(environment["threads"])
    return measured_peak(environment["threads"])


def compact(content: dict) -> bytes:
    """Return JSON with one line per row of ``benchmarks``."""
    rest = {name: value for name, value in content.items() if name != "benchmarks"}
    head = json.dumps(rest, indent=1).removesuffix("\n}")
    rows = ",\n".join("  " + json.dumps(row, separators=(",", ":")) for row in content["benchmarks"])
    return f'{head},\n "benchmarks": [\n{rows}\n ]\n}}\n'.encode()
