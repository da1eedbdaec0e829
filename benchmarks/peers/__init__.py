"""The other libraries, one file each, used as their documentation shows.

A file's `WAYS` lists what its library offers; `benchmarks.ways` says what a way is.
"""

from __future__ import annotations

import importlib
import warnings
from importlib.metadata import distributions, version
from types import ModuleType

from benchmarks.peers import with_torch_func
from benchmarks.ways import GgnWay, Way

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
    return [way for module in _modules() for way in module.WAYS]


def load_ggn_ways() -> list[GgnWay]:
    """List their ways to Gauss-Newton norms, and that of torch itself."""
    modules = [*_modules(), with_torch_func]
    return [way for module in modules for way in getattr(module, "GGN_WAYS", ())]


def _modules() -> list[ModuleType]:
    there = installed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        return [
            importlib.import_module(f"benchmarks.peers.with_{module}")
            for module, package in DISTRIBUTIONS.items()
            if package in there
        ]
