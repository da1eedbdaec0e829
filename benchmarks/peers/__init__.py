"""The other libraries, one file each, used as their documentation shows.

A file's `WAYS` lists what its library offers; `benchmarks.ways` says what a way is.
"""

from __future__ import annotations

import importlib
import warnings
from importlib.metadata import distributions, version

from benchmarks.ways import Way

DISTRIBUTIONS = {
    "pyhessian": "PyHessian",
    "curvlinops": "curvlinops-for-pytorch",
    "backpack": "backpack-for-pytorch",
    "eigenthings": "hessian-eigenthings",
    "vivit": "vivit-for-pytorch",
}
"""The package that each file here, `with_<name>.py`, uses."""


def installed() -> dict[str, str]:
    """Give the versions of the libraries that are there, by package."""
    there = {distribution.name for distribution in distributions()}
    return {package: version(package) for package in DISTRIBUTIONS.values() if package in there}


def load_ways() -> list[Way]:
    """Import the libraries that are there, and list their ways."""
    there = installed()
    ways: list[Way] = []
    for module, package in DISTRIBUTIONS.items():
        if package in there:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # theirs
                ways += importlib.import_module(f"benchmarks.peers.with_{module}").WAYS
    return ways
