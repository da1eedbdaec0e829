"""Which start would mend a network: tried out on copies of it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hessinit_lib.diagnosis.causes import causes
from hessinit_lib.diagnosis.rules import judge_all
from hessinit_lib.diagnosis.signals import observe
from hessinit_lib.hessians.loss import LossFn
from hessinit_lib.init import apply, hessian_


def mending_scheme(
    model: nn.Module, loss_fn: LossFn, inputs: Tensor, targets: Tensor, fitting: str
) -> str:
    """Find the simplest start from which nothing is wrong with a network.

    The usual scheme that fits the activations is tried first, then `hessian_`: in deep
    networks of narrow layers or smooth activations, only the latter may keep the signals.

    Args:
        model: any; it is left as it is.
        loss_fn: a scalar function of (outputs, targets).
        inputs: shape (B, ...).
        targets: what the loss takes.
        fitting: the usual scheme, see `hessinit_lib.init.apply`.

    Returns:
        The scheme that was given, or `"hessian_"`, or "" if neither mends the network.

    Example:
        >>> layers = [layer for _ in range(30) for layer in (nn.Linear(8, 8), nn.GELU())]
        >>> model = nn.Sequential(*layers, nn.Linear(8, 2))
        >>> x, y = torch.randn(16, 8), torch.arange(16) % 2
        >>> mending_scheme(model, nn.CrossEntropyLoss(), x, y, "he")
        'hessian_'
    """
    starts: dict[str, Callable[[nn.Module, torch.Generator], object]] = {
        fitting: lambda tried, source: apply(tried, fitting, generator=source),
        "hessian_": lambda tried, source: hessian_(
            tried, loss_fn, inputs, targets, generator=source
        ),
    }
    for name, start in starts.items():
        try:
            tried = copy.deepcopy(model)
            start(tried, torch.Generator().manual_seed(0))
        except (RuntimeError, ValueError):  # a network that cannot be copied, or not treated
            continue
        found = observe(tried, loss_fn, inputs, targets)
        if not causes(found, judge_all(found), {}, fitting):
            return name
    return ""
