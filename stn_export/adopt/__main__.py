"""Register any network in a run: ``python -m stn_export.adopt``."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from stn_export import cli
from stn_export.adopt.adoption import Adoption, adopt, checked_name, default_name
from stn_export.adopt.network import input_of
from stn_export.config import ARTIFACTS
from stn_export.errors import UserError
from stn_export.program.program import Program
from stn_export.program.sites import Site
from stn_export.program.specs import Pixels, TensorSpec, by

TRUST = "loading it can execute code: load only files from sources you trust"
COLUMNS = ("site", "where", "kind", "image", "grid", "mode", "padding", "align_corners", "made from")
DROP = ("made from", "kind", "padding", "align_corners", "mode", "grid")


def main(arguments: Sequence[str] | None = None) -> None:
    """Capture a network and register it in a run; with ``--inspect`` only show what was found."""
    options = cli.parse("adopt", arguments)
    if options.what.endswith(".pt2"):
        cli.say(f"{options.what}: {TRUST}", target=cli.console(stderr=True))
    adoption = _adopted(options)
    if options.format == "json":
        cli.print_json(adoption.as_dict())
    else:
        tell(adoption)


def _adopted(options: Namespace) -> Adoption:
    specs, sizes = zip(*map(input_of, options.input), strict=True) if options.input else ((), ())
    if twice := [spec.name for index, spec in enumerate(specs) if spec.name in {s.name for s in specs[:index]}]:
        raise UserError(f"input {twice[0]} is named twice", "name each input once")
    name = options.name or (options.run.name if options.run else default_name(options.what))
    return adopt(
        options.what,
        specs,
        run=None if options.inspect else options.run or Path(ARTIFACTS) / checked_name(name),
        name=name,
        outputs=options.output,
        weights=options.weights,
        examples=options.examples,
        labels=options.labels,
        pixels=_pixels(options.mean, options.std),
        plain=options.plain,
        sizes={name: size for part in sizes for name, size in part.items()},
        evaluation=options.eval,
        data_seed=options.data_seed,
        wait=options.wait,
    )


def _pixels(mean: Sequence[float] | None, std: Sequence[float] | None) -> Pixels | None:
    if mean is None and std is None:
        return None
    return Pixels(tuple(mean or Pixels().mean), tuple(std or Pixels().std))


def tell(adoption: Adoption) -> None:
    """Print the network's inputs, outputs, sampling sites, examples and notes, and the directories written."""
    cli.say(adoption.name + (f": {_costs(adoption.program)}" if adoption.program else ""))
    if adoption.program is not None:
        for kind, specs in (("input", adoption.program.contract.inputs), ("output", adoption.program.contract.outputs)):
            for spec in specs:
                cli.say(f"{kind} {_said(spec)}")
    if adoption.sites:
        cli.table("Where it samples", COLUMNS, [_row(site) for site in adoption.sites], DROP)
    labels = "labels" if adoption.examples.labels is not None else "no labels: numerical errors only, no accuracy"
    cli.say(f"examples: {adoption.examples.source}; {labels}")
    if adoption.twin is not None:
        cli.say(f"plain network: {_costs(adoption.twin)}")
    for note in adoption.notes:
        cli.say(f"note: {note}")
    state = (
        "up to date" if adoption.up_to_date else "written" + "; older exports of it are stale now" * adoption.replaced
    )
    for path in adoption.written:
        cli.say(f"{path}: {state}")


def _costs(program: Program) -> str:
    return f"{program.parameters:,} parameters, {program.multiply_adds():,} multiply-adds an example"


def _said(spec: TensorSpec) -> str:
    normalised = f", bytes as {spec.pixels}" if spec.pixels else ""
    return f"{spec.name}: {spec.text}{normalised}{'' if spec.batched else ', the same for a whole batch'}"


def _row(site: Site) -> tuple[str, ...]:
    sizes = [by(shape) for shape in (site.image_shape, site.warped_shape[2:])]
    align = str(site.align_corners)
    if site.grid_align_corners not in (None, site.align_corners):
        align += f", grid {site.grid_align_corners}"
    return site.name, site.where, site.kind, *sizes, site.mode, site.padding_mode, align, site.source or cli.NONE


if __name__ == "__main__":
    sys.exit(cli.run(main))
