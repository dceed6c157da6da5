"""Keep what trainings gave as one small file: ``python -m stn_export.train.keep RUN... --output FILE.json``.

The file holds every seed's accuracy after each epoch, the means and paired differences over seeds, and where they
were trained; on standard output goes the gain table in Markdown, a line each run.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from stn_export import cli
from stn_export.artifacts.files import json_bytes, write_atomically
from stn_export.artifacts.manifest import TRAINING_SCHEMA
from stn_export.train.gain import Comparison, caveats, comparisons, markdown
from stn_export.train.networks import multiply_adds

DIGITS = 4  # of an accuracy: what ten thousand test images tell apart


def kept(one: Comparison) -> dict:
    """JSON-ready: a comparison with its settings, the course of every training and the environments of all."""
    content = one.as_dict()
    for model, trainings in one.models.items():
        content["models"][model] |= {
            "multiply_adds": multiply_adds(model),
            "accuracies": {str(each.seed): [round(value, DIGITS) for value in each.accuracies] for each in trainings},
            "seconds": {str(each.seed): round(each.seconds, 1) for each in trainings},
        }
    environments = [each.environment | {"device": each.device} for each in one.trainings]
    distinct = [each for index, each in enumerate(environments) if each not in environments[:index]]
    return content | {"settings": one.settings, "environments": distinct}


def with_lists_in_a_line(content: bytes) -> bytes:
    """JSON text with each innermost list on a line of its own, as fifty accuracies are read best."""
    return re.sub(rb"\[[^][{}]*\]", lambda found: re.sub(rb"\n\s*", b" ", found.group()), content)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file and print the table."""
    parser = cli.stage("train.keep", "Keep the figures of trained runs as one small JSON file, and print them.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--output", required=True, type=Path, help="the file to write")
    options = parser.parse_args(arguments)

    found = {run: comparisons(run) for run in options.runs}
    every = [one for those in found.values() for one in those]
    content = json_bytes(TRAINING_SCHEMA, {"runs": [kept(one) for one in every]})
    write_atomically(options.output, with_lists_in_a_line(content))
    for run, those in found.items():
        for line in caveats(run, those):
            cli.say(f"[yellow]{cli.escape(line)}[/]")
    sys.stdout.write(markdown(every) + "\n")
    cli.say(f"wrote {options.output}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
