"""What ``pyproject.toml`` cannot say: the benchmark suites, which lie beside the package, are installed inside it."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["stn_export*"]), "stn_export.suites"],
    package_dir={"stn_export.suites": "benchmarks"},
)
