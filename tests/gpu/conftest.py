"""Tests of a GPU: on one, where there is one; else on a pretend one, in a process of their own.

`tests/test_on_pretend_gpu.py` starts that process. Alone:
`HESSINIT_PRETEND_GPU=1 python -m pytest tests/gpu`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

PRETENDED = bool(os.environ.get("HESSINIT_PRETEND_GPU"))


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave all out where there is no GPU of either kind."""
    if collection_path.name == "conftest.py" or PRETENDED:
        return None
    # Nor is a device pretended, which lasts as long as the process, where there is one.
    pretended = collection_path.name == "pretend.py"
    return True if pretended or not torch.cuda.is_available() else None


@pytest.fixture(autouse=True)
def gpu() -> Iterator[object]:
    """Give the pretend GPU, or None on a real one."""
    if not PRETENDED:
        yield None
        return
    from pretend import PretendGpu

    with PretendGpu() as pretended:
        yield pretended
