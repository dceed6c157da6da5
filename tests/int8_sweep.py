"""What int8 costs over seeds and data sets, here and on x86 without VNNI: ``python -m tests.int8_sweep --help``.

Each seed is trained once, with the chain's own command, and quantised twice: as the exporter does, and with weights of
all eight bits. Files run on this machine's instructions over all examples, and on emulated saturating ones over some.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime

from stn_export.export import precision
from stn_export.export.onnx import to_onnx
from stn_export.export.precision import outputs, to_int8
from stn_export.export.rows import Source
from stn_export.program.specs import Arrays
from stn_export.run.environment import describe
from stn_export.run.manifest import network_directories
from stn_export.run.store import write_json
from tests.saturating import Emulated, exact, vpmaddubsw

SCHEMA = "stn_export/int8/1"
AGREEMENT, LOSS = 0.97, 0.5  # what is wanted of every file, the loss in points
BATCH, BLOCKS = 64, 15


@dataclass(frozen=True)
class Row:
    """One network of one seed: accuracy in float32 and, by file, agreement with it and points lost."""

    run: str
    network: str
    examples: int
    accuracy: float
    agreement: float
    loss: float
    emulated_on: int
    emulated_agreement: float
    emulated_differs: float  # the largest difference of scores that saturation makes
    full_range_agreement: float
    full_range_loss: float
    full_range_emulated_agreement: float
    returned: int  # layers that went back to float32
    slower: float  # the file's time over the full-range file's, in turns

    @property
    def passed(self) -> bool:
        """Whether the file is as good as is wanted."""
        return self.agreement >= AGREEMENT and self.loss <= LOSS and self.emulated_differs == 0


def full_range(model: onnx.ModelProto, batches: Sequence[Arrays], floats: Sequence[str]) -> onnx.ModelProto:
    """The same layers with weights of eight bits."""
    real = precision.quantization.quantize_static

    def eight_bits(*arguments: object, **given: object) -> None:
        real(*arguments, **given | {"reduce_range": False})

    with (
        patch.object(precision.quantization, "quantize_static", eight_bits),
        patch.object(precision, "saturating_layers", lambda model: []),
    ):
        return precision.quantise(model, batches, floats)


def measured(run: Path, emulated: int) -> Iterator[Row]:
    """Every network of a run."""
    for directory in network_directories(run):
        source = Source(directory)
        spec = next(row for row in source.rows if row.precision == "int8")
        model, calibration = to_onnx(source.marked(spec), spec.lowering), source.calibration(spec)
        chosen = to_int8(model, calibration)
        full = full_range(model, calibration.batches, chosen.returned)
        contract, labels = source.contract(spec), source.examples.labels.numpy()
        batches = [contract.arrays(source.examples.rows(slice(at, at + BATCH))) for at in range(0, len(labels), BATCH)]
        some = {name: value[:emulated] for name, value in batches[0].items()}
        floats, new, old = (outputs(each, batches)[calibration.scored] for each in (model, chosen.model, full))
        saturated = [Emulated(each, vpmaddubsw).run(some)[calibration.scored] for each in (chosen.model, full)]
        unsaturated = Emulated(chosen.model, exact).run(some)[calibration.scored]
        right, true = floats.argmax(1), (floats.argmax(1) == labels).mean()
        yield Row(
            run=run.name,
            network=directory.name,
            examples=len(labels),
            accuracy=float(true),
            agreement=float((new.argmax(1) == right).mean()),
            loss=float(100 * (true - (new.argmax(1) == labels).mean())),
            emulated_on=len(saturated[0]),
            emulated_agreement=float((saturated[0].argmax(1) == right[: len(saturated[0])]).mean()),
            emulated_differs=float(np.abs(saturated[0] - unsaturated).max()),
            full_range_agreement=float((old.argmax(1) == right).mean()),
            full_range_loss=float(100 * (true - (old.argmax(1) == labels).mean())),
            full_range_emulated_agreement=float((saturated[1].argmax(1) == right[: len(saturated[1])]).mean()),
            returned=len(chosen.returned),
            slower=in_turns(chosen.model, full, batches[0]),
        )


def in_turns(one: onnx.ModelProto, other: onnx.ModelProto, batch: Arrays) -> float:
    """The median time of one file over the other's, measured in turns on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    provider = ["CPUExecutionProvider"]
    sessions = [onnxruntime.InferenceSession(each.SerializeToString(), options, provider) for each in (one, other)]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(BLOCKS + 1):
        for session, spent in zip(sessions, times, strict=True):
            started = time.perf_counter()
            session.run(None, batch)
            spent.append(time.perf_counter() - started)
    return median(times[0][1:]) / median(times[1][1:])


def trained(options: argparse.Namespace) -> Iterator[Path]:
    """The runs, by seed; those that are there already are not trained again."""
    for seed in range(options.seed, options.seed + options.seeds):
        run = options.into / f"{options.dataset}-{seed}"
        if not list(run.glob("*/program.pt2")):
            arguments = ["--dataset", options.dataset, "--seed", str(seed), "--run", str(run), "--device", "cpu"]
            arguments += ["--models", "stn,cnn", "--epochs", str(options.epochs)]
            arguments += ["--data", str(options.data)] if options.data else []
            subprocess.run([sys.executable, "-m", "stn_export.train", *arguments], check=True)
        yield run


def main() -> int:
    """Print a line a network, keep them where asked, and tell whether all are as good as is wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data", type=Path, help="directory that contains CIFAR-10")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--emulated", type=int, default=64, help="examples to emulate, of the first batch")
    parser.add_argument("--into", type=Path, default=Path("artifacts/int8"))
    parser.add_argument("--runs", type=Path, nargs="*", help="trained runs, instead of training")
    parser.add_argument("--keep", type=Path, help="write the figures into this JSON file")
    options = parser.parse_args()
    rows = []
    print(*[field.name for field in fields(Row)], sep="  ")
    for run in options.runs or trained(options):
        for row in measured(run, options.emulated):
            rows.append(row)
            cells = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in asdict(row).values())
            print(*cells, "" if row.passed else "NOT AS WANTED", sep="  ", flush=True)
    if options.keep:
        wanted = {"agreement": AGREEMENT, "loss": LOSS}
        content = {"wanted": wanted, "environment": describe(), "rows": [asdict(row) for row in rows]}
        write_json(options.keep, SCHEMA, content)
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
