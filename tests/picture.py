"""docs/pictures/at-work.png, what only the transformer reads: ``python -m tests.picture RUN``."""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from stn_export.report.charts_training import Frame
from stn_export.run.manifest import PLAIN, SUBJECT, network_directories

SHOWN = 6
PATH = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "at-work.png"


def main(run: Path) -> None:
    """Draw the first ``SHOWN`` test images on which only the transformer is right."""
    by_role = {each.facts.role: each for each in network_directories(run)}
    ours, plain = by_role[SUBJECT], by_role[PLAIN]
    examples, program = ours.examples(), ours.program()
    batch = examples.take(2000)
    points, others = (each.program().points(each.program().values(batch)) for each in (ours, plain))
    [output], [site] = program.contract.outputs, program.sites
    said, missed = points[output.name].argmax(1), others[output.name].argmax(1)
    labels = examples.labels[: len(said)]
    chosen = torch.nonzero((said == labels) & (missed != labels)).flatten()[:SHOWN].tolist()
    pixels = program.contract.inputs[0].pixels
    images = pixels.denormalise(program.values(batch)[0][chosen])
    warped = pixels.denormalise(points[site.point("warped")][chosen])
    windows = Frame(*images.shape[2:], site.align_corners).windows(points[site.point("theta")][chosen].double())
    figure = Figure(figsize=(1.5 * SHOWN, 3.6), layout="constrained", dpi=110, facecolor="white")
    for column, index in enumerate(chosen):
        above, below = (figure.add_subplot(2, SHOWN, 1 + column + row * SHOWN) for row in (0, 1))
        above.imshow(images[column].permute(1, 2, 0).numpy())
        above.add_patch(Polygon(windows[column].numpy() - 0.5, fill=False, edgecolor="#ffb000", linewidth=2))
        below.imshow(warped[column].permute(1, 2, 0).numpy())
        above.set_title(f"CNN: {examples.classes[missed[index]]}", color="#b00020", fontsize=11)
        below.set_title(f"transformer: {examples.classes[said[index]]}", color="#006400", fontsize=11)
        for axes in (above, below):
            axes.set(xticks=[], yticks=[])
    figure.savefig(PATH, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
