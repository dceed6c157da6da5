"""Audit an ONNX file: node placement, copies, costs, findings and portability: ``python -m stn_export.audit FILE``.

Any ONNX file can be audited; it is read in a separate process, with limits of time and memory. On the CPU, and on CUDA
if there is a GPU, ONNX Runtime itself reports where it placed each node; otherwise CUDA placement is predicted from the
kernels that its provider registers, and the output says so. Sizes that the file leaves dynamic are found by running it,
and printed; costs hold for these sizes, see ``onnx_graph.costs``. Nodes inside control flow are not placed.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from stn_export import cli
from stn_export.cli.apart import apart
from stn_export.cli.tables import OUTPUT
from stn_export.errors import CheckFailedError, UserError
from stn_export.limits import LIMITS
from stn_export.onnx_graph.records import (
    CPU,
    CUDA,
    WEBGPU,
    Audit,
    FileContract,
    Finding,
    NodePlacement,
    Report,
    Tried,
    Verdict,
)
from stn_export.onnx_graph.snippets import Call, snippet

# Names, not imports: importing onnx takes a second, and only the other process needs it.
EXAMINE, DECLARED = (f"stn_export.audit.content:{name}" for name in ("examine_file", "declared_file"))


def _show(result: Audit) -> None:
    short = {CPU: "CPU", CUDA: "CUDA", WEBGPU: "WebGPU"}
    title = f"Provider {result.provider} ({'predicted' if result.predicted else 'read'})"
    columns = ("operator", "nodes", "runs on", "multiply-adds", "why", "first node")
    cli.table(title, columns, list(alike(result, short)), ("first node", "nodes"))
    copies = ", ".join(f"{copy.tensor} to {short.get(copy.target, copy.target)}" for copy in result.copies)
    cli.say(f"placement    {result.source}")
    cli.say(f"fallbacks    {', '.join(f'{node.name} ({node.op_type})' for node in result.fallbacks) or 'none'}")
    cli.say(f"copies       {len(result.copies)}{': ' if copies else ''}{copies}")
    cli.say(f"CUDA graph   {'can' if result.capturable else 'cannot'} be captured: {result.capture_reason}")
    least = "at least " if result.uncounted else ""
    cli.say(f"costs        {least}{result.macs:,} multiply-adds, {result.activation_bytes:,} bytes of activations")
    if result.uncounted:
        cli.say(f"not counted  {', '.join(result.uncounted)}")
    cli.say(f"weights      {result.initialiser_bytes:,} bytes")
    cli.say("")


def alike(result: Audit, short: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """Yield a table row per group of nodes of one operator, provider and reason, in the order of first nodes."""
    groups: dict[tuple[str, str, str], list[NodePlacement]] = {}
    for node in result.nodes:
        groups.setdefault((node.op_type, node.provider, node.reason), []).append(node)
    for (operator, provider, reason), nodes in groups.items():
        counted = [node.macs for node in nodes if node.macs is not None]
        cost = f"{sum(counted):,}{' or more' * (len(counted) < len(nodes))}" if counted else "unknown"
        yield operator, f"{len(nodes):,}", short.get(provider, provider), cost, reason, nodes[0].name


def _show_findings(findings: Sequence[Finding]) -> None:
    rows = [(finding.rule, finding.where, finding.detail) for finding in findings]
    cli.table("Findings", ("rule", "where", "what"), rows)
    for rule, reason, remedy in dict.fromkeys((finding.rule, finding.reason, finding.remedy) for finding in findings):
        cli.say(f"{rule}  {reason}. Remedy: {remedy}")
    for line in ("none", "") if not findings else ("",):
        cli.say(line)


def _show_portability(verdicts: dict[str, Verdict]) -> None:
    rows = [(runtime, verdict, why) for runtime, (verdict, why) in verdicts.items()]
    cli.table("Portability", ("runtime", "verdict", "why"), rows)


def how_to_call(language: str, path: Path, declared: FileContract, tried: Tried) -> str:
    """Return a code snippet that runs the file on zeros of the sizes that it was tried at."""
    if tried.problem:
        cli.say(": ".join(tried.line), target=cli.console(stderr=True))
    return snippet(language, Call(path.as_posix(), declared.inputs, declared.outputs, tried.shapes))


def main(arguments: Sequence[str] | None = None) -> None:
    """Audit one file.

    Raises:
        UserError: if the file cannot be read.
        CheckFailedError: if ``--require`` or ``--strict`` is not met, or ONNX Runtime cannot load a file for which
            either was asked.
    """
    options = cli.parse("audit", arguments)
    if options.kernels:
        from stn_export.onnx_graph.placement import write_kernels

        cli.say(f"{options.kernels}: {write_kernels(options.kernels)} operators")
        return
    if options.model is None:
        raise UserError("no model is named", "name an ONNX file")
    asked = dict(options.shape), options.inputs
    if options.snippet:
        result = apart(DECLARED, options.model, *asked, seconds=LIMITS["audit"].value)
        sys.stdout.write(how_to_call(options.snippet, options.model, *result))
        return
    providers = list(dict.fromkeys([*options.provider, *_also(options.require)]))
    with _asked_for(options.runtimes):
        report: Report = apart(EXAMINE, options.model, providers, *asked, seconds=LIMITS["audit"].value)
    if options.format == "json":
        cli.print_json(report.as_dict())
    else:
        show(report)
    if options.require and report.tried.invalid:
        raise CheckFailedError(f"ONNX Runtime does not load the file: {report.tried.problem}")
    fallen = [node for audit in report.audits if audit.provider == options.require for node in audit.fallbacks]
    if fallen:
        reasons = "; ".join(f"{node.name} ({node.op_type}): {node.reason}" for node in fallen)
        count = "1 compute node falls" if len(fallen) == 1 else f"{len(fallen)} compute nodes fall"
        raise CheckFailedError(f"{count} back to the CPU: {reasons}")
    if options.strict and report.findings:
        rules = ", ".join(sorted({finding.rule for finding in report.findings}))
        raise CheckFailedError(f"{len(report.findings)} finding{'s' * (len(report.findings) != 1)}: {rules}")


def _asked_for(runtimes: Path | None) -> AbstractContextManager:
    if runtimes is None:
        return nullcontext()
    from stn_export.runners.external.environments import asked_for  # imports PyTorch, which takes seconds

    return asked_for(runtimes)


def show(report: Report) -> None:
    """Print an audit for people."""
    if not OUTPUT.brief:
        cli.card(list(report.contract.lines()))
    word, sentence = report.tried.line
    cli.say(f"{word:<11}{sentence}")
    cli.say("")
    for audit in report.audits:
        _show(audit)
    _show_findings(report.findings)
    _show_portability(report.portability)


def _also(required: str | None) -> list[str]:
    return [required] if required else []


if __name__ == "__main__":
    sys.exit(cli.run(main))
