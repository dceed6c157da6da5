"""Where an ONNX file's nodes run, what that copies and costs, and what to mind: ``python -m stn_export.audit FILE``.

For any ONNX file. On the CPU, and on CUDA where there is a GPU, ONNX Runtime itself says where it put each node; else
CUDA is predicted from the kernels that its provider registers, and the output says so. Costs are those of batch 1;
``graph.MACS`` states what counts as a multiply-add. Nodes inside the bodies of control flow are not placed.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from stn_export import cli
from stn_export.audit.content import audited
from stn_export.cli.tables import OUTPUT
from stn_export.errors import CheckFailedError, UserError
from stn_export.graphs.contract import FileContract, contract_of
from stn_export.graphs.deployment import Audit, NodePlacement, audit
from stn_export.graphs.graph import bound_dimensions, read_model
from stn_export.graphs.kernels import CPU, CUDA, write_kernels
from stn_export.graphs.lint import Finding, lint
from stn_export.graphs.portability import Verdict, portability
from stn_export.graphs.snippets import Call, snippet


def _show(result: Audit) -> None:
    short = {CPU: "CPU", CUDA: "CUDA"}
    title = f"Provider {result.provider} ({'predicted' if result.predicted else 'read'})"
    columns = ("operator", "nodes", "runs on", "multiply-adds", "why", "first node")
    cli.table(title, columns, list(alike(result, short)), ("first node", "nodes"))
    copies = ", ".join(f"{each.tensor} to {short.get(each.target, each.target)}" for each in result.copies)
    cli.say(f"placement    {result.source}")
    cli.say(f"fallbacks    {', '.join(f'{node.name} ({node.op_type})' for node in result.fallbacks) or 'none'}")
    cli.say(f"copies       {len(result.copies)}{': ' if copies else ''}{copies}")
    cli.say(f"CUDA graph   {'can' if result.capturable else 'cannot'} be captured: {result.capture_reason}")
    least = "at least " if any(node.macs is None for node in result.nodes) else ""
    cli.say(f"at batch 1   {least}{result.macs:,} multiply-adds, {result.activation_bytes:,} bytes of activations")
    cli.say(f"weights      {result.initialiser_bytes:,} bytes")
    cli.say("")


def alike(result: Audit, short: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """A row for the nodes of one operator that run at one place for one reason, in the order of their first ones."""
    groups: dict[tuple[str, str, str], list[NodePlacement]] = {}
    for node in result.nodes:
        groups.setdefault((node.op_type, node.provider, node.reason), []).append(node)
    for (operator, provider, reason), nodes in groups.items():
        known = [node.macs for node in nodes if node.macs is not None]
        cost = f"{sum(known):,}{' or more' * (len(known) < len(nodes))}" if known else "unknown"
        yield operator, f"{len(nodes):,}", short.get(provider, provider), cost, reason, nodes[0].name


def _show_findings(findings: Sequence[Finding]) -> None:
    rows = [(each.rule, each.where, each.detail) for each in findings]
    cli.table("Findings", ("rule", "where", "what"), rows)
    for rule, reason, remedy in dict.fromkeys((each.rule, each.reason, each.remedy) for each in findings):
        cli.say(f"{rule}  {reason}. Remedy: {remedy}")
    for line in ("none", "") if not findings else ("",):
        cli.say(line)


def _show_portability(verdicts: dict[str, Verdict]) -> None:
    rows = [(runtime, verdict, why) for runtime, (verdict, why) in verdicts.items()]
    cli.table("Portability", ("runtime", "verdict", "why"), rows)


def how_to_call(language: str, path: Path, declared: FileContract, sizes: Mapping[str, tuple[int, ...]]) -> str:
    """Lines of a language that run the file on zeros of these sizes."""
    return snippet(language, Call(path.as_posix(), declared.inputs, declared.outputs, sizes))


def main(arguments: Sequence[str] | None = None) -> None:
    """Audit one file.

    Raises:
        UserError: where the file cannot be read or ONNX Runtime cannot load it.
        CheckFailedError: where ``--require`` or ``--strict`` is not met.
    """
    options = cli.parse("audit", arguments)
    if options.kernels:
        cli.say(f"{options.kernels}: {write_kernels(options.kernels)} operators")
        return
    if options.model is None:
        raise UserError("no model is named", "name an ONNX file")

    file = read_model(options.model)
    declared = contract_of(file, options.model)
    if options.snippet:
        sys.stdout.write(how_to_call(options.snippet, options.model, declared, bound_dimensions(file.model, 1)))
        return
    audits = {name: audit(file.model, name) for name in dict.fromkeys([*options.provider, *_also(options.require)])}
    findings, verdicts = lint(file.model, file.external), portability(file.model)
    if options.format == "json":
        cli.print_json(audited(options.model, options.provider))
    else:
        if not OUTPUT.brief:
            cli.card(list(declared.lines()))
        for each in audits.values():
            _show(each)
        _show_findings(findings)
        _show_portability(verdicts)
    if options.require and (fallen := audits[options.require].fallbacks):
        told = "; ".join(f"{node.name} ({node.op_type}): {node.reason}" for node in fallen)
        raise CheckFailedError(f"{len(fallen)} compute nodes fall back to the CPU: {told}")
    if options.strict and findings:
        raise CheckFailedError(f"{len(findings)} findings: {', '.join(sorted({each.rule for each in findings}))}")


def _also(required: str | None) -> list[str]:
    return [required] if required else []


if __name__ == "__main__":
    sys.exit(cli.run(main))
