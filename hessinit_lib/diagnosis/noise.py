r"""Does a layer of noise keep the signal's size on average?

Dropout that keeps units with probability p divides them by p, in training, so that the mean
of its output is what evaluation gives. With x' a draw in training and x what evaluation
gives, the coefficient $\langle x', x \rangle / \langle x, x \rangle$ has the mean 1; without
the division it is p.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hessinit_lib.hessians.functional import PureModel
from hessinit_lib.hessians.inputs import Inputs, mapped, tensors_of

_DRAWS, _MORE_DRAWS = 16, 400
"""More where the first ones look biased: a branch that is seldom dropped may never have been."""

_UNSURE = 4  # standard errors
BIAS = 0.05
"""The least relative bias that counts."""


def biased_noise(model: nn.Module, inputs: Inputs) -> dict[str, float]:
    r"""Find modules of noise whose mean in training is not what they do in evaluation.

    Modules without parameters and submodules, normalization aside, are run in training mode
    on their inputs of evaluation mode: for those that draw random numbers, the coefficient
    above is averaged over 16 draws, and over 400 where these look biased.

    Args:
        model: any module, in evaluation mode.
        inputs: shape (B, ...).

    Returns:
        The coefficients that differ from 1 by more than `BIAS` and more than four standard
        errors, by the module's name.

    Example:
        >>> class Mask(nn.Module):
        ...     def forward(self, z):
        ...         return z * (torch.rand_like(z) < 0.5) if self.training else z
        >>> model = nn.Sequential(nn.Dropout(0.5), Mask()).eval()
        >>> found = biased_noise(model, torch.ones(64, 64))
        >>> [(name, round(factor, 1)) for name, factor in found.items()]
        [('1', 0.5)]
    """
    pure = PureModel(model, [])
    found: dict[str, float] = {}

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def before(_: nn.Module, args: tuple, kwargs: dict) -> None:
            # Copies: the module may write into what it is given.
            given[name] = mapped(args, torch.clone), mapped(kwargs, torch.clone)

        def hook(_: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            args, kwargs = given.pop(name, (args, kwargs))
            tensors = [*tensors_of(args), *tensors_of(kwargs), output]
            dense = all(isinstance(x, Tensor) and not x.is_nested for x in tensors)
            if not dense or not isinstance(output, Tensor) or name in found or not output.any():
                return
            factor = _factor(module, args, kwargs, output.double())
            if factor is not None:
                found[name] = factor

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        return module.register_forward_hook(hook, with_kwargs=True)

    given: dict[str, tuple[Any, Any]] = {}
    handles: list[torch.utils.hooks.RemovableHandle] = []
    handles += [
        watch(name, module)
        for name, module in model.named_modules()
        if not isinstance(module, _NormBase)
        and "parametrizations" not in name
        and not any(module.children())
        and not any(True for _ in module.parameters())
    ]
    try:
        with pure.running(), torch.no_grad():
            seed_streams(model)
            pure(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def seed_streams(model: nn.Module) -> None:
    """Seed the global streams: the same coefficient on every call, whatever their state.

    Only those that are put back: the processor's and those of the model's GPUs.
    `torch.manual_seed` would seed every device there is.
    """
    torch.default_generator.manual_seed(0)
    for card in {p.device.index for p in model.parameters() if p.is_cuda}:
        torch.cuda.default_generators[card or 0].manual_seed(0)


def _factor(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> float | None:
    """Give the mean coefficient if it is not 1; None if it is, or if there is no noise."""
    factors: list[float] = []
    with _in_training(module):
        while len(factors) < _MORE_DRAWS:
            buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
            copied: Any = mapped(args, torch.clone), mapped(kwargs, torch.clone)
            noisy = torch.func.functional_call(module, buffers, *copied)
            if not isinstance(noisy, Tensor) or noisy.shape != output.shape:
                return None
            factors.append(((noisy * output).sum() / output.square().sum()).item())
            if len(factors) == 2 and factors[0] == factors[1]:
                return None
            if len(factors) == _DRAWS and not _is_biased(factors):
                return None
    return fmean(factors) if _is_biased(factors) else None


def _is_biased(factors: list[float]) -> bool:
    error = stdev(factors) / math.sqrt(len(factors))
    return abs(fmean(factors) - 1) > max(BIAS, _UNSURE * error)


@contextmanager
def _in_training(module: nn.Module) -> Iterator[None]:
    # Another call of `forward`, not of the module: its own hooks do not run a second time.
    training, module.training = module.training, True
    kept = module._forward_hooks, module._forward_pre_hooks
    module._forward_hooks, module._forward_pre_hooks = type(kept[0])(), type(kept[1])()
    try:
        yield
    finally:
        module.training = training
        module._forward_hooks, module._forward_pre_hooks = kept
