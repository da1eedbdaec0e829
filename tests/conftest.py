"""Checks that hold for the whole suite."""

from __future__ import annotations

import os

import hypothesis
import torch
from jaxtyping import install_import_hook

# Shapes in annotations are checked at each call, in every module of the library.
install_import_hook("hessinit_lib", "beartype.beartype")

# No timings in tests: a slow machine is not a failure. The same examples on every run.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("suite")

os.environ.setdefault("MPLBACKEND", "agg")

# The tensors here are tiny: more threads only wait for each other, most of all on a busy machine.
torch.set_num_threads(1)
