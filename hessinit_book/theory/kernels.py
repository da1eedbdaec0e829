"""Kernel maps: how an activation changes the scalar products between the samples of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessinit_lib.theory.activations import Activation, activation_function, differentiate, kinks
from hessinit_lib.theory.quadrature import normal_rule

_DEGREES = 64


class Kernels(NamedTuple):
    """E f(u_b) f(u_b') and E f'(u_b) f'(u_b'), each of shape (b, b)."""

    value: Float[Tensor, "b b"]
    first: Float[Tensor, "b b"]


def kernel_maps(activation: Activation, covariance: Float[Tensor, "b b"]) -> Kernels:
    r"""Compute $E f(u_b) f(u_{b'})$ and $E f'(u_b) f'(u_{b'})$ for $u \sim N(0, \Sigma)$.

    Closed forms (arc-cosine kernels) for the identity, ReLU and leaky ReLU. Else by the
    series in normalized Hermite polynomials $h_m$: with
    $a_{mb} = E f(\sigma_b t) h_m(t)$, $t \sim N(0, 1)$, and the correlations $\rho$,

    $$E f(u_b) f(u_{b'}) = \sum_m a_{mb} a_{mb'} \rho_{bb'}^m .$$

    The rest above degree 63 is put on degree 64, so that variances ($\rho = 1$) are exact.

    Args:
        activation: a name, a module or an elementwise function.
        covariance: $\Sigma$ of the pre-activations, float64, shape (b, b).

    Returns:
        Both kernels. Errors: 1e-14 for the closed forms, 1e-6 or better for smooth
        activations at deviations up to 1; for ones with kinks (ELU, Hardtanh) up to about
        1e-2 of $E f'^2$ at correlations near 0.99.

    Source: Cho and Saul, "Kernel methods for deep learning", NeurIPS 2009 (arc-cosine
        kernels); Daniely, Frostig, Singer, arXiv 1602.05897 (dual activations).

    Example:
        >>> sigma = torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
        >>> kernel_maps("relu", sigma).first
        tensor([[0.5000, 0.2500],
                [0.2500, 0.5000]], dtype=torch.float64)
    """
    f = activation_function(activation)
    # A sample of zeros has no correlations: any deviation above 0 will do.
    std = covariance.diagonal().clamp(min=1e-30).sqrt()
    rho = (covariance / torch.outer(std, std)).clamp(-1, 1).fill_diagonal_(1)
    match f:
        case nn.Identity():
            return Kernels(covariance, torch.ones_like(covariance))
        case nn.ReLU():
            return _arc_cosine(covariance, std, rho, slope=0.0)
        case nn.LeakyReLU():
            return _arc_cosine(covariance, std, rho, slope=f.negative_slope)
    return _hermite_series(f, std, rho)


def _arc_cosine(
    covariance: Float[Tensor, "b b"],
    std: Float[Tensor, " b"],
    rho: Float[Tensor, "b b"],
    slope: float,
) -> Kernels:
    angle = rho.arccos()
    steps = (math.pi - angle) / (2 * math.pi)
    ramps = torch.outer(std, std) * (angle.sin() / (2 * math.pi) + steps * rho)
    # f(u) = a u + (1 - a) relu(u), and E u relu(v) = E u v / 2.
    return Kernels(slope * covariance + (1 - slope) ** 2 * ramps, slope + (1 - slope) ** 2 * steps)


def _hermite_series(
    f: Callable[[Tensor], Tensor], std: Float[Tensor, " b"], rho: Float[Tensor, "b b"]
) -> Kernels:
    nodes, weights = normal_rule(std, kinks(f))
    value, first, _ = differentiate(f, nodes)
    functions = torch.stack([value, first])
    t = nodes / std[:, None]
    below, polynomial = torch.zeros_like(t), torch.ones_like(t)
    kernels, power = torch.zeros(2, *rho.shape, dtype=rho.dtype), torch.ones_like(rho)
    rest = (weights * functions**2).sum(2)
    for m in range(_DEGREES):
        a = (weights * functions * polynomial).sum(2)
        kernels += a[:, :, None] * a[:, None, :] * power
        rest -= a**2
        power = power * rho
        above = (t * polynomial - math.sqrt(m) * below) / math.sqrt(m + 1)
        below, polynomial = polynomial, above
    tail = rest.clamp(min=0).sqrt()
    kernels += tail[:, :, None] * tail[:, None, :] * power
    return Kernels(*kernels)
