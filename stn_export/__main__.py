"""``python -m stn_export STAGE ...``: the same as ``stn-export``."""

import sys

from stn_export.cli import start

if __name__ == "__main__":
    sys.exit(start())
