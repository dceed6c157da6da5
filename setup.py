"""What ``pyproject.toml`` cannot say.

The benchmark suites, which lie beside the package, are installed inside it; and a package index shows the README
without links and pictures of the source tree, which it does not have.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

IN_THE_TREE = r"\[([^\]]*)\]\((?!https?:|mailto:|#)([^)]*)\)"  # a link: its text and a path
readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")

setup(
    packages=[*find_packages(include=["stn_export*"]), "stn_export.suites"],
    package_dir={"stn_export.suites": "benchmarks"},
    long_description=re.sub(IN_THE_TREE, r"\1, `\2`", re.sub(rf"!{IN_THE_TREE}\n*", "", readme)),
    long_description_content_type="text/markdown",
)
