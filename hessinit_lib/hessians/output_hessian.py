"""Any loss seen from the outputs: per-sample Hessians by autograd, and their factors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn


class OutputHessian(NamedTuple):
    r"""Derivatives of the per-sample losses in the outputs, $L = \frac1B \sum_b l_b$.

    Attributes:
        gradient: $D l_b$, shape (B, C).
        hessian: $D^2 l_b$, shape (B, C, C).
    """

    gradient: Float[Tensor, "b c"]
    hessian: Float[Tensor, "b c c"]


def output_hessian(
    loss_fn: Callable[..., Tensor], outputs: Float[Tensor, "b ..."], targets: Tensor
) -> OutputHessian:
    r"""Differentiate a loss twice in the outputs; check that it does not couple samples.

    $D^2 l_b = B \, D^2_{z_b} L$ whether L is written as a mean or as a sum. One backward
    pass through the gradient for each output gives a column of all samples' Hessians. In
    float64, where the loss allows it: second derivatives of saturated losses are small
    differences.

    Args:
        loss_fn: any scalar function of (outputs, targets) that autograd can differentiate
            twice, a module or a function.
        outputs: shape (B, ...), C numbers a sample.
        targets: what the loss takes.

    Returns:
        Gradients and Hessians in float64 or in the outputs' type; NaN where the outputs are.

    Raises:
        NotImplementedError: the loss couples samples, or an operation in it has no second
            derivative in torch.
        ValueError: the loss does not give one number, or none that depends on the outputs.

    Example:
        >>> def poisson(outputs, targets):
        ...     return (outputs.exp() - targets * outputs).mean()
        >>> output_hessian(poisson, torch.zeros(4, 2), torch.ones(4, 2)).hessian[0]
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]], dtype=torch.float64)
    """
    batch = len(outputs)
    with torch.enable_grad():
        z, gradient = _gradient(loss_fn, outputs, targets)
        _check_independence(loss_fn, z, gradient)
        columns = [
            _product(loss_fn, gradient, z, unit.expand_as(z))
            for unit in torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        ]
    hessian = torch.stack(columns, 2)
    # Each half is right up to rounding; their mean is symmetric.
    return OutputHessian(batch * gradient.detach(), batch / 2 * (hessian + hessian.mT))


def convex_factor(hessian: Float[Tensor, "b c c"], name: str) -> Float[Tensor, "b r c"]:
    r"""Factor positive semidefinite matrices, rows $\sqrt{\lambda_i} v_i^\top$.

    Args:
        hessian: symmetric matrices, shape (B, C, C).
        name: of the loss, for the message.

    Returns:
        $S_b$ with $S_b^\top S_b$ = `hessian[b]`, shape (B, r, C): without rows that vanish
        for all samples up to rounding, but at least one row. NaN where an entry is not finite.

    Raises:
        NotImplementedError: an eigenvalue is negative beyond rounding.

    Example:
        >>> factor = convex_factor(torch.ones(1, 2, 2), "square of the sum")
        >>> factor.shape, torch.allclose(factor.mT @ factor, torch.ones(2, 2))
        (torch.Size([1, 1, 2]), True)
    """
    if not hessian.isfinite().all():
        return hessian.new_full(hessian[:, :1].shape, math.nan)
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    if torch.equal(torch.diag_embed(diagonal), hessian):  # a sum over outputs: no rounding
        values, rows = diagonal, torch.eye(hessian.shape[1]).to(hessian).expand_as(hessian)
    else:
        values, vectors = torch.linalg.eigh(hessian)
        rows = vectors.mT
    size = values.abs().max().item()
    rounding = torch.finfo(hessian.dtype).eps
    # Saturated losses, softmax say, have Hessians that are differences of numbers near 1.
    if values.min() < -max(size * rounding ** (2 / 3), 10 * hessian.shape[1] * rounding):
        raise NotImplementedError(
            f"loss {name} is not convex in the outputs: its Hessian has the eigenvalue "
            f"{values.min().item():.3g}, expected none below 0"
        )
    kept = (values > hessian.shape[1] * rounding * size).any(0)
    kept[-1] |= not kept.any()
    factor = values.clamp(min=0).sqrt()[:, :, None] * rows
    return factor[:, kept]


def name_of(loss_fn: object) -> str:
    """Give the name of a loss as its author knows it, for messages."""
    return getattr(loss_fn, "__name__", type(loss_fn).__name__)


def _gradient(
    loss_fn: Callable[..., Tensor], outputs: Float[Tensor, "b ..."], targets: Tensor
) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c"]]:
    """Give the outputs as a leaf, one row a sample, and the gradient with its graph."""
    try:
        z, value = _evaluate(loss_fn, outputs, targets, torch.float64)
    except (RuntimeError, TypeError):
        # Tensors inside the loss that must have the outputs' type, a device without float64,
        # or an error of the loss itself, which comes again.
        z, value = _evaluate(loss_fn, outputs, targets, outputs.dtype)
    name = name_of(loss_fn)
    if value.numel() != 1:
        raise ValueError(
            f"loss {name} gave a tensor of shape {tuple(value.shape)}, expected one number: "
            "the mean or the sum over the batch"
        )
    if not value.requires_grad:
        raise ValueError(f"loss {name} gave a constant: expected a differentiable function")
    (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=True, materialize_grads=True)
    return z, gradient


def _evaluate(
    loss_fn: Callable[..., Tensor], outputs: Tensor, targets: Tensor, dtype: torch.dtype
) -> tuple[Float[Tensor, "b c"], Tensor]:
    def convert(tensor: Tensor) -> Tensor:
        return tensor.detach().to(dtype) if tensor.is_floating_point() else tensor

    z = convert(outputs).reshape(len(outputs), -1).clone().requires_grad_()
    arguments: tuple[Any, ...] = (z.view(outputs.shape), convert(targets))
    if not isinstance(loss_fn, nn.Module):
        return z, loss_fn(*arguments)
    state = {name: convert(value) for name, value in loss_fn.named_parameters()}
    state.update((name, convert(value).clone()) for name, value in loss_fn.named_buffers())
    return z, torch.func.functional_call(loss_fn, state, arguments)


def _product(
    loss_fn: Callable[..., Tensor],
    gradient: Float[Tensor, "b c"],
    z: Float[Tensor, "b c"],
    vector: Float[Tensor, "b c"],
) -> Float[Tensor, "b c"]:
    """Multiply the Hessian of L by a vector."""
    if not gradient.requires_grad:  # a loss that is linear in the outputs, almost everywhere
        return torch.zeros_like(z)
    try:
        (product,) = torch.autograd.grad(
            gradient, z, vector, retain_graph=True, materialize_grads=True
        )
    except RuntimeError as error:
        raise NotImplementedError(
            f"loss {name_of(loss_fn)} cannot be differentiated twice: {error}"
        ) from error
    return product


def _check_independence(
    loss_fn: Callable[..., Tensor], z: Float[Tensor, "b c"], gradient: Float[Tensor, "b c"]
) -> None:
    """Make sure that the Hessian of L has no entries between samples.

    The product with a vector that is zero on some samples has to vanish, exactly, on those.
    Any two samples differ in a bit of their indices, so one product a bit tells all of
    them apart.
    """
    index = torch.arange(len(z), device=z.device)
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z)
    for bit in range((len(z) - 1).bit_length()):
        chosen = (index >> bit) & 1 == 1
        product = _product(loss_fn, gradient, z, vector * chosen[:, None])
        if product[~chosen].nan_to_num(0, 0, 0).any():
            raise NotImplementedError(
                f"loss {name_of(loss_fn)} couples samples: expected a mean or a sum of "
                "one loss for each sample"
            )
