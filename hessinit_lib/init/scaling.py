r"""Scales of the layers that give their Hessians the norms asked for.

In a positively homogeneous network without biases the scales follow in closed form, statement
10 of the book, up to the output curvature that moves with them: a few rounds. In any other
network the response of the norms to the scales is measured, a layer at a time, and Newton's
method finds the scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from hessinit_lib.theory.balancing import balancing_scales

_NUDGE = 0.1  # change of a logarithmic scale by which responses are measured
_LONGEST = 1.0  # Newton step in a logarithmic scale: the response holds nearby only

Evaluate = Callable[[], list[float]]
Scale = Callable[[Sequence[float]], None]


def meet_norms(
    evaluate: Evaluate,
    scale: Scale,
    norms: list[float],
    targets: list[float] | None,
    *,
    tolerance: float,
    rounds: int,
) -> tuple[list[float], int]:
    r"""Scale layers until each norm is within a tolerance of its target.

    Args:
        evaluate: gives the norm of every layer's Hessian.
        scale: multiplies each layer's weight by $e^{t_k}$, given the $t_k$.
        norms: what `evaluate` gives at the start, all above 0.
        targets: norms to reach, above 0; None for equal ones, whatever they are.
        tolerance: relative error allowed.
        rounds: how often the scales may be changed.

    Returns:
        The norms reached, and how often the scales were changed.

    Raises:
        ValueError: the norms were not reached.

    Source: derivation in the book, statement 10.

    Example:
        >>> from math import exp
        >>> weights = [1.0, 3.0, 0.5]
        >>> def evaluate():  # a linear chain: the product of all other weights, squared
        ...     product = weights[0] * weights[1] * weights[2]
        ...     return [(product / w) ** 2 for w in weights]
        >>> def scale(t):
        ...     weights[:] = [w * exp(s) for w, s in zip(weights, t)]
        >>> reached, changes = meet_norms(
        ...     evaluate, scale, evaluate(), [1.0, 4.0, 1.0], tolerance=1e-6, rounds=3
        ... )
        >>> [round(norm, 6) for norm in reached], changes
        ([1.0, 4.0, 1.0], 1)
    """
    response: torch.Tensor | None = None
    changes = 0
    while (worst := _error(norms, goal := targets or _middle(norms))) > tolerance:
        if changes == rounds or not all(0 < norm < math.inf for norm in norms):
            raise ValueError(
                f"after {changes} rounds the norms are {_span(norms)}, the targets "
                f"{_span(goal)}: expected targets that the network can have, or more rounds"
            )
        steps = (
            balancing_scales(norms, goal)
            if response is None
            else _newton(response, norms, goal, alike=targets is None)
        )
        scale(steps)
        changes += 1
        norms = evaluate()
        # The closed form of a network that has none would go astray, and so would an old
        # response.
        if _error(norms, targets or _middle(norms)) > max(worst / 2, tolerance):
            response = _measure(evaluate, scale, norms)
    return norms, changes


def _middle(norms: list[float]) -> list[float]:
    """Give each norm's target where all are to be equal: their geometric mean."""
    positive = [norm for norm in norms if 0 < norm < math.inf]
    return [math.exp(sum(map(math.log, positive)) / max(len(positive), 1))] * len(norms)


def _error(norms: list[float], targets: list[float]) -> float:
    """Give the largest relative error; infinite where a norm is NaN."""
    errors = [abs(norm / target - 1) for norm, target in zip(norms, targets, strict=True)]
    return max(math.inf if math.isnan(error) else error for error in errors)


def _measure(evaluate: Evaluate, scale: Scale, norms: list[float]) -> torch.Tensor:
    """Measure d log norm_k / d t_j, shape (n, n)."""
    start = _logarithms(norms)
    columns = []
    for index in range(len(norms)):
        steps = [0.0] * len(norms)
        steps[index] = _NUDGE
        scale(steps)
        columns.append((_logarithms(evaluate()) - start) / _NUDGE)
        scale([-step for step in steps])
    return torch.stack(columns, 1).nan_to_num(0.0, 0.0, 0.0)


def _logarithms(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor([*values], dtype=torch.float64, device="cpu").log()


def _newton(
    response: torch.Tensor, norms: list[float], targets: list[float], *, alike: bool
) -> list[float]:
    missing = _logarithms(targets) - _logarithms(norms)
    if alike:  # the mean may move
        response = response - response.mean(0)
    steps = torch.linalg.lstsq(response, missing[:, None], driver="gelsd").solution[:, 0]
    longest = steps.abs().max().item()
    return (steps * min(1.0, _LONGEST / longest if longest else 1.0)).tolist()


def _span(values: list[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"
