"""What an activation does to the size of normal pre-activations and of their gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hessinit_lib.theory.activations import Activation, activation_function, differentiate, kinks
from hessinit_lib.theory.quadrature import normal_rule

# The law of activations in the limit of small pre-activations, to 1e-9 and better.
_SMALL = 1e-9


@dataclass(frozen=True)
class Gains:
    r"""Moments of an activation $f$ at $u \sim N(0, \sigma^2)$.

    Attributes:
        c: $E f(u)^2 / E u^2$, the gain of squared norms forward; infinite at $\sigma = 0$
            if $f(0) \ne 0$.
        c_prime: $E f'(u)^2$, the gain of squared norms backward.
        c_second: $E f''(u)^2$, what drives the residual of the Hessian chain rule; kinks,
            where $f''$ is not a function, are left out.
        mean: $E f(u)$.
    """

    c: float
    c_prime: float
    c_second: float
    mean: float


def gains(activation: Activation, *, std: float = 1.0) -> Gains:
    r"""Compute the gains $c = E f(u)^2 / E u^2$ and $c' = E f'(u)^2$, $u \sim N(0, \sigma^2)$.

    By quadrature to about 1e-14, closed forms included: 1 and 1 for the identity, 1/2 and
    1/2 for ReLU, $(1 + a^2) / 2$ twice for leaky ReLU of slope a.

    Args:
        activation: a name ("relu", "tanh", ...), a module or an elementwise function.
        std: the deviation $\sigma$ of the pre-activations; 0 for the limit of small ones.

    Returns:
        The gains at that deviation.

    Raises:
        ValueError: an unknown name, or a negative or infinite deviation.

    Source: He, Zhang, Ren, Sun, arXiv 1502.01852 (c of ReLU); Poole and others, arXiv
        1606.05340 (c' in deep networks).

    Example:
        >>> relu = gains("relu")
        >>> round(relu.c, 12), round(relu.c_prime, 12)
        (0.5, 0.5)
        >>> round(gains("tanh").c_prime, 6), round(gains("tanh", std=0.0).c_prime, 6)
        (0.464403, 1.0)
    """
    if not 0 <= std < math.inf:
        raise ValueError(f"std {std}: expected a finite number, 0 or more")
    f = activation_function(activation)
    sigma = torch.tensor([std or _SMALL], dtype=torch.float64, device="cpu")
    nodes, weights = normal_rule(sigma, kinks(f))
    value, first, second = differentiate(f, nodes)
    power, c_prime, c_second, mean = (
        float((weights * g).sum()) for g in (value**2, first**2, second**2, value)
    )
    # A value f(0) != 0 is infinitely large against inputs that vanish.
    c = math.inf if std == 0 and power > _SMALL else power / float(sigma) ** 2
    return Gains(c, c_prime, c_second, mean)
