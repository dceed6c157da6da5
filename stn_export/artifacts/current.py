"""Which results still count: those of today's files, tried on today's examples."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stn_export.artifacts.manifest import CHECKPOINT, NetworkDirectory
from stn_export.artifacts.records import Check, Timing


@dataclass(frozen=True)
class Current:
    """What a run holds today.

    Attributes:
        files: the sha256 of every program and export.
        examples: the sha256 of what each network is tried on, labels included.
    """

    files: frozenset[str] = frozenset()
    examples: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, directories: Iterable[NetworkDirectory]) -> "Current":
        """Read it from the manifests."""
        networks = list(directories)
        artifacts = (artifact for network in networks for artifact in network.artifacts.values())
        examples = {network.name: network.facts.examples["sha256"] for network in networks}
        return cls(frozenset(each.sha256 for each in artifacts if each.name != CHECKPOINT), examples)

    def holds(self, result: Check | Timing) -> bool:
        """Say whether a check or a timing is of files and examples as they are today."""
        return not self.changed(result)

    def changed(self, result: Check | Timing) -> str:
        """Name what has changed since a check or a timing was made; empty where nothing has.

        Results of older versions do not say what examples they are of, which is no change.
        """
        name = f"{result.network}/{result.artifact}"
        if result.sha256 not in self.files:
            return name
        baseline = result.baseline_sha256 if isinstance(result, Timing) else None
        if baseline is not None and baseline not in self.files:
            return f"{name}'s baseline"
        tried_on = result.examples_sha256
        return (
            f"what {result.network} is tried on" if tried_on and tried_on != self.examples.get(result.network) else ""
        )
