r"""Scales of the layers that give their Hessians the norms asked for.

In a positively homogeneous network without biases the scales follow in closed form, statement
10 of the book, up to the output curvature that moves with them: a few rounds. In any other
network the response of the norms to the scales is measured, a layer at a time, and Newton's
method finds the scales, damped, and with Broyden's updates of the response.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from hessinit_lib.theory.balancing import balancing_scales

_NUDGE = 0.1  # change of a logarithmic scale by which responses are measured
_LONGEST = 1.0  # Newton step in a logarithmic scale: the response holds nearby only
_DAMPING = 0.5  # a layer's own scale changes a norm's logarithm by 2 or so
_SHARES = (1.0, 0.5, 0.25, 0.125)  # of a step, that are tried

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
    missing, response, changes = _missing(norms, targets), None, 0
    fresh = False  # whether the response was measured at the norms as they are
    while not (-missing).expm1().abs().max().item() <= tolerance:  # NaN is not, either
        if changes == rounds or not all(0 < norm < math.inf for norm in norms):
            raise ValueError(
                f"after {changes} rounds the norms are {_span(norms)}, the targets "
                f"{_span(_goal(norms, missing))}: expected targets that the network can have, or "
                "more rounds"
            )
        if response is None:
            steps, shares = balancing_scales(norms, _goal(norms, missing)), (1.0,)
        else:
            # Where nothing helps the whole step is taken: it leads to where Newton's may.
            steps = _newton(response, missing, alike=targets is None)
            shares = (*_SHARES, 1.0) if fresh else _SHARES
        reached = _damped(evaluate, scale, steps, shares, missing, targets)
        if reached is not None:
            share, new = reached
            moved, left = share * torch.tensor(steps, dtype=torch.float64), _missing(new, targets)
            if response is not None:  # Broyden's rule
                off = _logarithms(new) - _logarithms(norms) - response @ moved
                response = response + off.outer(moved) / moved.square().sum()
            ratio = (left.norm() / missing.norm()).item()
            norms, missing, fresh, changes = new, left, False, changes + 1
            if ratio <= 0.5 or (response is not None and ratio <= 1):
                continue
        if all(0 < norm < math.inf for norm in norms):
            response, fresh = _measure(evaluate, scale, norms), True
    return norms, changes


def _damped(
    evaluate: Evaluate,
    scale: Scale,
    steps: Sequence[float],
    shares: Sequence[float],
    missing: torch.Tensor,
    targets: list[float] | None,
) -> tuple[float, list[float]] | None:
    """Go a share of the steps with which less is missing; None, and back, if there is none.

    A share that comes a second time is gone in any case.
    """
    tried = set[float]()
    for share in shares:
        scale([share * step for step in steps])
        norms = evaluate()
        if share in tried:
            return share, norms
        if all(0 < norm < math.inf for norm in norms):
            left = _missing(norms, targets).norm()
            if left < (1 - share / 4) * missing.norm():
                return share, norms
        scale([-share * step for step in steps])
        tried.add(share)
    return None


def _missing(norms: list[float], targets: list[float] | None) -> torch.Tensor:
    """Give the logarithms of what norms lack; of equal ones, to their geometric mean."""
    found = _logarithms(norms)
    return (found.mean() if targets is None else _logarithms(targets)) - found


def _goal(norms: list[float], missing: torch.Tensor) -> list[float]:
    return (_logarithms(norms) + missing).exp().tolist()


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


def _newton(response: torch.Tensor, missing: torch.Tensor, *, alike: bool) -> list[float]:
    if alike:  # the mean may move
        response = response - response.mean(0)
    # Levenberg and Marquardt: scales that hardly change the norms are left as they are.
    more = torch.eye(len(missing), dtype=missing.dtype, device="cpu") * _DAMPING
    ahead = torch.cat((response, more)), torch.cat((missing, torch.zeros_like(missing)))
    steps = torch.linalg.lstsq(ahead[0], ahead[1][:, None]).solution[:, 0]
    longest = steps.abs().max().item()
    return (steps * min(1.0, _LONGEST / longest if longest else 1.0)).tolist()


def _span(values: list[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"
