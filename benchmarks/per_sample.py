"""Gauss-Newton norms of all layers from the gradients of each sample, all there at once."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from benchmarks.rows import Problem
from benchmarks.ways import Pull

KEPT = 8e9  # bytes of gradients that may be there at once

Values = dict[str, tuple[float, float]]
"""Frobenius norm and trace of each layer's Gauss-Newton block."""


def from_gradients(
    pulled: Iterable[dict[str, Tensor]], terms: int, most: int | None = None
) -> Values:
    """Make Frobenius norms and traces of per-sample gradients.

    Args:
        pulled: J_b^T S_b e_b of each layer, shape (B, *weight), for some e: random signs, or
            all unit vectors.
        terms: what the loss's mean divides by.
        most: random signs are paired with so many before, at least one; None: unit vectors,
            of which each is paired with all.
    """
    kept: list[dict[str, Tensor]] = []
    squares: defaultdict[str, float] = defaultdict(float)
    traces: defaultdict[str, float] = defaultdict(float)
    pairs = draws = 0
    for found in pulled:
        new = {name: gradient.flatten(1) for name, gradient in found.items()}
        for name, gradient in new.items():
            for old in kept:
                squares[name] += (old[name] @ gradient.mT).square().sum().item()
            traces[name] += gradient.square().sum().item()
            if most is None:
                squares[name] += (gradient @ gradient.mT).square().sum().item() / 2
        pairs, draws = pairs + len(kept), draws + 1
        kept = [*kept, new] if most is None else [*kept, new][-max(1, most) :]
    pairs, draws = (0.5, 1) if most is None else (pairs, draws)
    return {
        name: (math.sqrt(squares[name] / pairs) / terms, traces[name] / draws / terms)
        for name in squares
    }


def fits(problem: Problem, names: Sequence[str]) -> bool:
    """Tell whether gradients of samples of all columns of the outputs' Hessians fit into memory."""
    with torch.no_grad():
        outputs = problem.model(problem.inputs).numel()
    return 4 * outputs * sum(problem.layers[name].numel() for name in names) <= KEPT


def all_columns(pull: Pull, problem: Problem) -> Values:
    """Compute exact norms from gradients of samples, of each column of the outputs' Hessians."""
    with torch.no_grad():
        shape = problem.model(problem.inputs).shape
    units = torch.eye(shape[1], device=problem.inputs.device)[:, None].expand(-1, *shape)
    return from_gradients(map(pull, units), problem.labels.numel())
