"""Modules that draw random numbers: found, and put in evaluation mode for a while."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from hessinit_lib.hessians.functional import (
    FROZEN,
    NOISE,
    calling,
    compute_dtype,
    state_of,
    unwrapped,
)
from hessinit_lib.hessians.inputs import Inputs, fresh, take
from hessinit_lib.hessians.isolation import attribute, cards, random_state_kept, random_states
from hessinit_lib.hessians.numerics.precision import PROCESS

_FEW = 4  # samples that show which modules draw random numbers


def _drawing(model: nn.Module, inputs: Inputs) -> set[nn.Module]:
    """Find the modules that draw random numbers by themselves, in a run on a few samples."""
    found: set[nn.Module] = {m for m in model.modules() if isinstance(m, NOISE)}
    devices = cards(model.parameters())
    running: list[nn.Module] = []

    last = []

    def passes(module: nn.Module) -> None:
        """Note, at the start and end of each module, who has drawn since the last such time."""
        nonlocal last
        now = random_states(devices)
        if not all(map(torch.equal, now, last)):
            found.add(module)
        last = now

    def enter(module: nn.Module, *_: object) -> None:
        passes(running[-1] if running else module)
        running.append(module)

    def leave(module: nn.Module, *_: object) -> None:
        passes(module)
        running.pop()

    dtype, call = compute_dtype(model), calling(model)
    with ExitStack() as stack:
        stack.enter_context(random_state_kept(model.parameters()))
        stack.enter_context(torch.no_grad())
        for module in model.modules():
            if isinstance(module, nn.SyncBatchNorm):  # other processes need not take part
                stack.enter_context(attribute(module, "training", False))
            stack.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        for few in (take(inputs, slice(_FEW)), inputs):  # some models want the whole batch
            running.clear()
            last = random_states(devices)
            arguments, keywords = fresh(few, dtype)
            try:
                call(state_of(model, dtype), arguments, keywords)
            except Exception:
                continue
            break
    return found


@contextmanager
def without_noise(
    model: nn.Module, inputs: Inputs, drawing: set[nn.Module] | None = None
) -> Iterator[set[nn.Module]]:
    """Put the modules of a model that draw random numbers in evaluation mode, and back.

    Which these are is found, and given for a later call; or known from an earlier one.

    All others stay in their mode: at the start of training, running statistics say nothing
    yet, so that batch normalization keeps its batch's, and what `layer_hessians` warns of is
    known here; and detectors and auxiliary outputs are what they are in training.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
        >>> with without_noise(model, torch.ones(4, 3)):
        ...     [module.training for module in model]
        [True, False]
        >>> model[1].training
        True
    """
    model = unwrapped(model)
    with PROCESS, warnings.catch_warnings():  # also for others that work on this model
        if drawing is None:
            trained = any(module.training for module in model.modules())
            drawing = _drawing(model, inputs) if trained else set()
        modes = [(module, module.training) for module in model.modules()]  # some are new now
        try:
            for module in model.modules():
                if module in drawing or isinstance(module, NOISE):
                    module.training = False
            warnings.filterwarnings("ignore", message=re.escape(FROZEN), category=UserWarning)
            yield drawing
        finally:
            for module, training in modes:
                module.training = training
