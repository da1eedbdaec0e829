"""Statement 8: what a gradient step gains."""

from __future__ import annotations

import math


def predicted_gain(gradient_square: float, curvature: float, rate: float) -> float:
    r"""Predict how far a step against the gradient lowers the loss, to second order.

    $$L(W) - L(W - \gamma G) \approx \gamma \|G\|^2 - \tfrac12 \gamma^2 \, G^\top H G.$$

    Args:
        gradient_square: $\|G\|^2$.
        curvature: $G^\top H G$.
        rate: the learning rate $\gamma$.

    Returns:
        The gain; negative where the step overshoots.

    Source: any textbook; derivation in the book, statement 8.

    Example:
        >>> predicted_gain(4.0, 8.0, rate=0.5)
        1.0
    """
    return rate * gradient_square - rate**2 * curvature / 2


def best_rate(gradient_square: float, curvature: float) -> float:
    r"""Give the learning rate $\|G\|^2 / G^\top H G$ whose predicted gain is largest.

    Args:
        gradient_square: $\|G\|^2$.
        curvature: $G^\top H G$.

    Returns:
        The rate; infinite where the curvature along the gradient is not positive.

    Example:
        >>> best_rate(4.0, 8.0)
        0.5
    """
    return gradient_square / curvature if curvature > 0 else math.inf
