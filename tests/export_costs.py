"""What running the file once costs ``export_onnx``: ``python -m tests.export_costs`` times both in turns.

Prints, a network a line, the median of the ratios of neighbouring turns and the least and the largest of them.
"""

import statistics
import sys
import time
import warnings

import stn_export
from tests.network_table import Network, networks

NAMES = ("GreyDigits", "TwoSteps", "FlowWarp", "DeformableAttention", "Pyramid")
TURNS = 7


def seconds(network: Network, verify: bool) -> float:
    """The time of one export."""
    arguments, keywords = network.example(2)
    module = network.build()
    started = time.perf_counter()
    stn_export.export_onnx(module, arguments, keywords, verify=verify, **network.options)
    return time.perf_counter() - started


def main() -> None:
    """Time each network, one warm turn apart."""
    chosen = sys.argv[1:] or NAMES
    for network in (each for each in networks() if each.name in chosen):
        turns = [(seconds(network, True), seconds(network, False)) for _ in range(TURNS + 1)][1:]
        ratios = [checked / plain for checked, plain in turns]
        said = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{network.name:24} {said}, of {statistics.median(plain for _, plain in turns):.2f} s", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
