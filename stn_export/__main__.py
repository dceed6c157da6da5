"""Run ``python -m stn_export STAGE ...``, which is the same as ``stn-export STAGE ...``."""

import sys

from stn_export.cli import start

if __name__ == "__main__":
    sys.exit(start())
