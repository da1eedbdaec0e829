"""Where and with what a result was computed."""

from __future__ import annotations

import contextlib
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from hessinit_book.errors import ParameterError

_LIBRARIES = ("hessinit_lib", "torch", "torchvision", "numpy")
_OPTIONAL = ("gensim",)  # named where the experiment uses them


def choose_device(name: str) -> torch.device:
    """Turn the parameter `device` into a device that is there.

    Args:
        name: "auto" (CUDA if there is a GPU, else the CPU), or a device of torch.

    Raises:
        ParameterError: the device is not on this machine.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    gpus = torch.cuda.device_count()
    # Numbers of many digits are none that torch reads.
    absent = (kind == "cuda" and int(number or 0) >= gpus) or (
        kind == "mps" and not torch.backends.mps.is_available()
    )
    if absent:
        raise ParameterError(
            f"device: got {name!r}, which is not on this machine ({gpus} CUDA GPUs); "
            "expected 'auto', 'cpu' or a device that is"
        )
    return torch.device(name)


def device_kind(name: str) -> str:
    """Tell the kind of device that the parameter `device` stands for: "cpu", "cuda" or "mps".

    A device that is named need not be on this machine.

    Example:
        >>> device_kind("cuda:1")
        'cuda'
    """
    return choose_device(name).type if name == "auto" else name.partition(":")[0]


def is_here(kind: str) -> bool:
    """Tell whether this machine has a device of some kind.

    Example:
        >>> is_here("cpu")
        True
    """
    try:
        choose_device(kind)
    except ParameterError:
        return False
    return True


def describe_device(device: torch.device) -> str:
    """Name a device in words, for a record: its kind and model, on a CPU the threads too.

    The order of sums depends on the number of threads, and so do the last digits.
    """
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu: {_processor()}, {threads} thread{'s' if threads > 1 else ''}"
    return f"{device.type}: {platform.machine()}"


def library_versions() -> dict[str, str]:
    """Give the versions of Python and of the libraries that compute.

    A library that only some experiments use is named if it is loaded. So is one of the others that
    is not installed by its package; the project itself has the version of its checkout then.
    """
    loaded = [name for name in _OPTIONAL if name in sys.modules]
    stated = {name: _version(name) for name in (*_LIBRARIES, *loaded)}
    found = {name: stated_version for name, stated_version in stated.items() if stated_version}
    return {"python": platform.python_version(), **found, "torch": torch.__version__}


def holds_now(versions: Mapping[str, str]) -> bool:
    """Tell whether Python and the libraries that a record names have the same versions now."""
    now = library_versions()
    for name in versions.keys() - now.keys():
        with contextlib.suppress(PackageNotFoundError):
            now[name] = version(name)
    return all(now.get(name) == stated for name, stated in versions.items())


def current_commit() -> str | None:
    """Give the project's git commit, "-dirty" if sources differ from it; None outside a checkout.

    Records themselves, which a run is just writing, do not make a tree dirty.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed: a repository further up is not ours
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", ".", ":(exclude)results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        project = Path(__file__).parents[2] / "pyproject.toml"
        if name == _LIBRARIES[0] and project.is_file():
            line = re.search(r'^version = "(.+)"$', project.read_text(encoding="utf-8"), re.M)
            return line[1] if line else None
        return getattr(sys.modules.get(name), "__version__", None)


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
