"""Run pictures through any artifact of a run: ``python -m stn_export.predict photo.jpg --artifact FILE``.

A picture of any size or mode becomes what the artifact's manifest asks for, and goes through the artifact's own runner
on the CPU. Of a classifier the likeliest classes are shown, of any other network figures of each output.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stn_export import cli
from stn_export.artifacts.files import write_out
from stn_export.artifacts.manifest import MANIFEST, PROGRAM_FILE, Artifact, NetworkDirectory, network_directories
from stn_export.config import DEFAULT_RUN
from stn_export.errors import CheckFailedError, UserError
from stn_export.limits import require
from stn_export.predict.outputs import archive, described, likeliest, probabilities, shown
from stn_export.predict.pictures import Feeder, feeder_of
from stn_export.program.specs import Arrays, by
from stn_export.runners import RUNNERS, RunnerSpec

NAME_SHOWN = 20  # characters of a file's name that fit above its picture


def find_artifact(path: Path) -> tuple[NetworkDirectory, Artifact]:
    """The entry of the file ``path`` in the manifest beside it.

    Raises:
        UserError: where there is no manifest, or it does not list this file.
    """
    directory = NetworkDirectory(path.parent)
    entries = {artifact.file: artifact for artifact in directory.artifacts.values()}
    if not entries:
        raise UserError(f"{path} has no {MANIFEST} beside it", "run 'make train export' first, or name another file")
    if path.name not in entries:
        raise UserError(f"{path} is not listed in the {MANIFEST} beside it", f"name one of: {', '.join(entries)}")
    return directory, entries[path.name]


def runner_for(artifact: Artifact) -> RunnerSpec:
    """The first runner of the artifact's format that can run on the CPU here.

    Raises:
        UserError: where there is none.
    """
    candidates = [spec for spec in RUNNERS if spec.format == artifact.format and spec.device == "cpu"]
    for spec in candidates:
        if not spec.unavailable():
            return spec
    reasons = "; ".join(f"{spec.name}: {spec.unavailable()}" for spec in candidates) or f"format {artifact.format}"
    raise UserError(f"{artifact.file} cannot run on the CPU here ({reasons})", "name an artifact of another format")


def outputs_of(directory: NetworkDirectory, artifact: Artifact, feeder: Feeder) -> Arrays:
    """Every output through an artifact whose bytes are checked first: a row a picture."""
    runner = runner_for(artifact).open(directory.open(artifact), artifact.contract)
    found = [(count, runner.infer(artifact.contract.arrays(batch))) for count, batch in feeder.parts(artifact.contract)]
    return {
        spec.name: np.concatenate(
            [each[spec.name][:count] if spec.batched else each[spec.name][None] for count, each in found]
        )
        for spec in artifact.contract.outputs
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run pictures and print what came out for each."""
    options = cli.parse("predict", arguments)
    directory, artifact = find_artifact(options.artifact or network_directories(DEFAULT_RUN)[0].path / PROGRAM_FILE)
    if options.trust:
        directory.trust()
    for option in (options.show, options.output):
        if option and option.exists() and any(option.samefile(path) for path in options.pictures if path.exists()):
            raise UserError(f"{option} is one of the pictures, and would be overwritten", "name another file")
    if options.show:
        _check_showing(options.show, options.pictures, directory)
    if options.output and options.output.suffix != ".npz":
        raise UserError(f"--output {options.output} is no NPZ file", "give it a name that ends in .npz")
    feeder, unread = feeder_of(artifact.contract, directory.examples(), options.pictures)
    outputs = outputs_of(directory, artifact, feeder)
    rows = found([path for path in options.pictures if path not in unread], outputs, directory.facts.classes)
    if options.show:
        write_out(options.show, shown(directory.program(), feeder, [_title(row) for row in rows]))
    if options.output:
        write_out(options.output, archive(outputs))
    facts = {
        "artifact": str(directory.path / artifact.file),
        "sha256": artifact.sha256,
        "runner": runner_for(artifact).name,
    }
    if options.format == "json":
        reasons = {str(path): why for path, why in unread.items()}
        cli.print_json(facts | {"from_first_example": feeder.others, "pictures": rows, "unread": reasons})
    else:
        _print(f"{directory.name}/{artifact.name} on {facts['runner']}", rows, feeder.others)
    if unread:
        raise CheckFailedError("; ".join([f"{len(unread)} of {len(options.pictures)} not read", *unread.values()]))


def found(pictures: Sequence[Path], outputs: Arrays, classes: Sequence[str]) -> list[dict]:
    """Of every picture its likeliest classes, or where there are none figures of each output; JSON-ready."""
    chances = probabilities(outputs, classes)
    return [
        {"picture": str(picture)}
        | (
            {"outputs": {name: described(values[index]) for name, values in outputs.items()}}
            if chances is None
            else {"classes": likeliest(chances[index], classes)}
        )
        for index, picture in enumerate(pictures)
    ]


def _check_showing(path: Path, pictures: Sequence[Path], directory: NetworkDirectory) -> None:
    """Refuse early what could not be drawn."""
    if path.suffix.lower() != ".png":
        raise UserError(f"--show {path} is no PNG file", "give it a name that ends in .png")
    require("shown", len(pictures), "--show")
    if not directory.facts.sites:
        raise UserError(f"{directory.name} samples nowhere: there is nothing to show", "leave out --show")


def _title(row: dict) -> str:
    name = Path(row["picture"]).name[-NAME_SHOWN:]
    return name + "".join(f": {best['class']} {best['probability']:.0%}" for best in row.get("classes", ())[:1])


def _print(title: str, rows: Sequence[dict], others: Sequence[str]) -> None:
    if others:
        cli.say(f"not from the pictures but from the run's first example: {', '.join(others)}")
    if "classes" in rows[0]:
        columns = ("picture", "first", "second", "third")[: 1 + len(rows[0]["classes"])]
        cells = [
            (row["picture"], *(f"{best['class']} {best['probability']:.1%}" for best in row["classes"])) for row in rows
        ]
    else:
        columns = ("picture", "output", "shape", "min", "mean", "max")
        cells = [
            (
                row["picture"],
                name,
                f"{by(of['shape'])} {of['dtype']}",
                *(cli.figure(of[key], ".4g") for key in columns[3:]),
            )
            for row in rows
            for name, of in row["outputs"].items()
        ]
    cli.table(title, columns, cells, ("third", "second", "mean"))


if __name__ == "__main__":
    sys.exit(cli.run(main))
