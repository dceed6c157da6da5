"""Where an ONNX file's nodes run, what that copies and costs, and what to mind: ``python -m stn_export.audit FILE``.

For any ONNX file, which is looked at in a process of its own, within limits of time and memory. On the CPU, and on CUDA
where there is a GPU, ONNX Runtime itself says where it put each node; else CUDA is predicted from the kernels that its
provider registers, and the output says so. Sizes that the file leaves open are found by running it, and printed; costs
are those at these sizes, see ``graphs.costs``. Nodes inside the bodies of control flow are not placed.
"""

import sys
from collections.abc import Sequence

from stn_export import cli
from stn_export.cli.apart import apart
from stn_export.errors import CheckFailedError, UserError
from stn_export.graphs.records import CPU, CUDA, Audit, Finding, Report, Verdict
from stn_export.limits import LIMITS

EXAMINE = "stn_export.audit.content:examine_file"  # not imported: onnx takes a second, and the other process has it


def _show(result: Audit) -> None:
    short = {CPU: "CPU", CUDA: "CUDA"}
    rows = [
        (
            node.name,
            node.op_type,
            short.get(node.provider, node.provider),
            "unknown" if node.macs is None else f"{node.macs:,}",
            node.reason,
        )
        for node in result.nodes
    ]
    title = f"Provider {result.provider} ({'predicted' if result.predicted else 'read'})"
    cli.table(title, ("node", "operator", "runs on", "multiply-adds", "why"), rows, ("multiply-adds",))
    copies = ", ".join(f"{each.tensor} to {short.get(each.target, each.target)}" for each in result.copies)
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Audit one file.

    Raises:
        UserError: where the file cannot be read or ONNX Runtime cannot load it.
        CheckFailedError: where ``--require`` or ``--strict`` is not met.
    """
    options = cli.parse("audit", arguments)
    if options.kernels:
        from stn_export.graphs.kernels import write_kernels

        cli.say(f"{options.kernels}: {write_kernels(options.kernels)} operators")
        return
    if options.model is None:
        raise UserError("no model is named", "name an ONNX file")
    providers = list(dict.fromkeys([*options.provider, *_also(options.require)]))
    found: Report = apart(
        EXAMINE, options.model, providers, dict(options.shape), options.inputs, seconds=LIMITS["audit"].value
    )
    if options.format == "json":
        cli.print_json(found.as_dict())
    else:
        show(found)
    fallen = [node for each in found.audits if each.provider == options.require for node in each.fallbacks]
    if fallen:
        told = "; ".join(f"{node.name} ({node.op_type}): {node.reason}" for node in fallen)
        raise CheckFailedError(f"{len(fallen)} compute nodes fall back to the CPU: {told}")
    if options.strict and found.findings:
        rules = ", ".join(sorted({each.rule for each in found.findings}))
        raise CheckFailedError(f"{len(found.findings)} findings: {rules}")


def show(found: Report) -> None:
    """Print an audit for people."""
    cli.say(f"inputs       {found.tried}")
    if found.tried.problem:
        cli.say(
            f"not tried    {found.tried.problem}; give sizes with --shape NAME=1,16000 or arrays with --inputs FILE.npz"
        )
    cli.say("")
    for each in found.audits:
        _show(each)
    _show_findings(found.findings)
    _show_portability(found.portability)


def _also(required: str | None) -> list[str]:
    return [required] if required else []


if __name__ == "__main__":
    sys.exit(cli.run(main))
