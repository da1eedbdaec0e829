"""Hessian and gradient norms of a network's layers on a probe batch, without changing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_book.statistics.rounding import all_rounded
from hessinit_lib.hessians import layer_hessians
from hessinit_lib.hessians.noise import without_noise


def layer_norms(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    names: Sequence[str],
    *,
    spectral: bool = False,
    tolerance: float = 0.3,
) -> dict[str, Any]:
    """Compute Hessian and gradient norms of some layers, of the softmax cross-entropy.

    Args:
        model: any; batch normalization counts with the probe's statistics, and these are held
            constant in the Hessians.
        inputs: the probe, shape (B, ...).
        labels: shape (B,).
        names: weights, by name.
        spectral: whether to compute spectral norms, too.
        tolerance: relative standard error of norms that must be estimated. Wide, because
            initializations differ by powers of ten.

    Returns:
        `frobenius` (and `spectral`), `gradient`: lists, in the order of the names; `exact`:
        whether no norm was estimated.
    """
    norms = ("frobenius", "spectral") if spectral else ("frobenius",)
    with without_noise(model, inputs), _only(model, names):
        options = {"norms": norms, "parts": False, "tolerance": tolerance, "budget": None}
        report = layer_hessians(model, F.cross_entropy, inputs, labels, **options)
        gradients = torch.autograd.grad(
            _loss(model, inputs, labels), [model.get_parameter(name) for name in names]
        )
    return {
        **{norm: all_rounded(getattr(report[name], norm) for name in names) for norm in norms},
        "gradient": all_rounded(gradient.norm().item() for gradient in gradients),
        "exact": all(report[name].exact for name in names),
    }


def _loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Call the model on copies of its buffers: running statistics must not move."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return F.cross_entropy(torch.func.functional_call(model, buffers, (inputs,)), labels)


@contextmanager
def _only(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Have only some parameters require a gradient, for the time of a `with` statement."""
    others = [p for name, p in model.named_parameters() if name not in names]
    try:
        for parameter in others:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
