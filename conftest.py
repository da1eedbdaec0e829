"""The same random numbers for each test and each example, whatever ran before."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_random_state() -> None:
    """Seed all global generators: what passes once passes always, in any order."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state is what is meant
    torch.manual_seed(0)
