"""Build the rows of a suite: targets, batch sizes and, for paired comparisons, baselines."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch

import torch

from stn_export.bench.plan import BEST, Pick
from stn_export.bench.targets import Target, eager_spec, pytorch_of
from stn_export.program.specs import Contract
from stn_export.run.manifest import PLAIN, SUBJECT
from stn_export.runners.registry import DEFAULT_EXPORT

Baselines = Callable[[Target, Sequence[Target]], list[Target]]


@dataclass(frozen=True)
class Case:
    """A row: a target, the number of examples per call and, for a paired comparison, the baseline."""

    target: Target
    batch: int
    baseline: Target | None = None

    def __str__(self) -> str:
        several = self.baseline is not None and self.baseline.threads is not None
        against = f"-against-{self.baseline.runner.name}-{self.baseline.threads}" if several and self.baseline else ""
        return f"{self.target}-{self.batch}{against}"


def picked(targets: Iterable[Target], picks: Iterable[Pick]) -> list[Case]:
    """Return a case for every target and batch that the picks select, each once.

    A network with a static batch is timed at that one.
    """
    taken = [
        Case(target, batch)
        for pick in picks
        for target in targets
        if takes(pick, target)
        for batch in _batches(pick, target)
        if fits(target, batch)
    ]
    return list({str(case): case for case in taken}.values())


def _batches(pick: Pick, target: Target) -> Sequence[int]:
    own = own_batch(target.network.contract)
    return (own,) if own else pick.batches


def takes(pick: Pick, target: Target) -> bool:
    """Return whether a pick selects a target."""
    artifact = target.artifact
    named = (
        (target.network.facts.role, pick.roles),
        (artifact.lowering, [target.network.best if lowering == BEST else lowering for lowering in pick.lowerings]),
        (artifact.precision, pick.precisions),
        (target.input, pick.inputs),
    )
    runs = not pick.runners or any(fnmatch(target.runner.name, pattern) for pattern in pick.runners)
    return runs and all(value in allowed or not allowed for value, allowed in named) and pick.slow >= target.runner.slow


def plain_of(target: Target, targets: Sequence[Target]) -> Target | None:
    """Return the baseline of the network under test: the plain network in the same runner, precision and input."""
    if target.network.facts.role != SUBJECT:
        return None
    return next((other for other in targets if other.network.facts.role == PLAIN and other.kind == target.kind), None)


def decomposed_of(target: Target, targets: Sequence[Target]) -> Target | None:
    """Return the same network in PyTorch's own lowering, with everything else equal."""
    if target.artifact.lowering in (None, "decomposed"):
        return None
    ours = [other for other in targets if other.network.name == target.network.name and other.kind == target.kind]
    return next((other for other in ours if other.artifact.lowering == "decomposed"), None)


def eager_of(target: Target, targets: Sequence[Target]) -> Target | None:
    """Return eager PyTorch with the same network, device and use of TF32."""
    eager = eager_spec(target.runner.device, target.runner.tf32)
    others = [other for other in targets if other.network.name == target.network.name and other.runner == eager]
    return next((other for other in others if target.runner != eager), None)


def default_of(target: Target, targets: Sequence[Target]) -> Target | None:
    """Return the default export in a default session, of the same network on the same device."""
    where = (target.network.name, target.runner.device)
    others = [other for other in targets if (other.network.name, other.runner.device) == where]
    return next((other for other in others if other.runner.lowering == DEFAULT_EXPORT != target.runner.lowering), None)


def _one(find: Callable[[Target, Sequence[Target]], Target | None]) -> Baselines:
    """Wrap a function that finds one baseline as one that lists all baselines."""
    return lambda target, targets: [baseline] if (baseline := find(target, targets)) else []


BASELINES: dict[str, Baselines] = {
    "overhead": _one(plain_of),
    "lowering": _one(decomposed_of),
    "eager": _one(eager_of),
    "default": _one(default_of),
    "pytorch": pytorch_of,
}


def cases(suite: str, targets: Sequence[Target], picks: Iterable[Pick]) -> Iterator[Case]:
    """Yield the rows of a suite; for paired comparisons one for each baseline that can run here at that batch."""
    for case in picked(targets, picks):
        if suite not in BASELINES:
            yield case
            continue
        for other in BASELINES[suite](case.target, targets):
            if fits(other, case.batch):
                baseline = as_requests(other, targets)
                yield replace(case, target=like(case.target, baseline), baseline=baseline)


def like(target: Target, baseline: Target) -> Target:
    """Return the target fed as its baseline is; it runs on the session's threads if the baseline sets its own."""
    threads = None if baseline.threads is None else torch.get_num_threads()
    return replace(target, host=baseline.host, threads=threads)


def as_requests(baseline: Target, targets: Sequence[Target]) -> Target:
    """Return the baseline with host inputs if external runtimes are timed too, which accept no others."""
    return replace(baseline, host=True) if any(other.runner.foreign for other in targets) else baseline


def own_batch(contract: Contract) -> int | None:
    """Return the number of examples that a call must have; None if any, 1 if the network has no batch."""
    return contract.batch if any(spec.batched for spec in contract.inputs) else 1


def fits(target: Target, batch: int) -> bool:
    """Return whether a target can be called with this many examples."""
    return own_batch(target.artifact.contract) in (None, batch)
