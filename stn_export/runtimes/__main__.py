"""``stn-export runtimes``: install external runtimes, each into its own environment, for ``verify`` and ``bench``.

python -m stn_export.runtimes
"""

import sys
from collections.abc import Sequence

from stn_export import cli
from stn_export.errors import require_choice, typed
from stn_export.runners.external.environments import DEFAULT, RUNTIMES, asked_for, in_folder, runtimes_here


def main(arguments: Sequence[str] | None = None) -> None:
    """Install the external runtimes that are missing, and list all.

    Raises:
        UserError: where nothing could be installed, or ``--only`` names no runtime.
    """
    options = cli.parse("runtimes", arguments)
    where, names = options.into or DEFAULT, [runtime.name for runtime in RUNTIMES]
    for name in options.only or ():
        require_choice("runtime", name, names)
    where.mkdir(parents=True, exist_ok=True)
    with in_folder(where):
        chosen = [runtime for runtime in RUNTIMES if runtime.name in (options.only or names)]
        reasons = {runtime: "" if runtime.version else runtime.install() for runtime in chosen}
        rows = [
            (runtime.name, runtime.packages[0], runtime.version or cli.NONE, reasons[runtime] or runtime.obstacle)
            for runtime in chosen
        ]
    cli.table(f"Runtimes in {where}", ("runtime", "package", "version", "why not"), rows, ("why not",))
    with asked_for(where):
        cli.card([("runtimes", f"{len(runtimes_here())} of {len(RUNTIMES)} at hand")])
    cli.say(f"next: stn-export verify --runtimes {typed(where)}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
