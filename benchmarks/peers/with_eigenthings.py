"""hessian-eigenthings: `HessianOperator` with a parameter filter, and its algorithms."""

# pyright: reportMissingImports=false
from __future__ import annotations

import torch
from hessian_eigenthings import (
    HessianOperator,
    LambdaOperator,
    lanczos,
    match_names,
    supervised_loss,
    trace,
)

from benchmarks.rows import Problem
from benchmarks.ways import ITERATIONS, Estimate, Stepwise


def block(problem: Problem, layer: str) -> HessianOperator:
    """Make the operator of one layer's weights."""
    return HessianOperator(
        problem.model,
        [(problem.inputs, problem.labels)],
        supervised_loss(problem.loss_fn),
        param_filter=match_names(layer),
    )


def seed() -> int:
    """Draw a seed: the library takes no generator."""
    return int(torch.randint(2**31, ()))


def lanczos_iteration(problem: Problem, layer: str) -> Estimate:
    """Take `lanczos` for the one eigenvalue of largest magnitude."""
    operator = block(problem, layer)

    def estimate(iterations: int) -> float:
        found = lanczos(operator, k=1, max_iter=iterations, seed=seed())
        return abs(found.eigenvalues[0].item())

    return estimate


def hutchpp_of_square(problem: Problem, layer: str) -> Estimate:
    """Take `trace`, Hutch++ by default, of the square: tr H^2 = ||H||_F^2."""
    operator = block(problem, layer)
    square = LambdaOperator(
        lambda v: operator.matvec(operator.matvec(v)),
        size=operator.size,
        device=operator.device,
        dtype=operator.dtype,
    )
    return lambda products: (
        max(0.0, trace(square, num_matvecs=products, seed=seed()).estimate) ** 0.5
    )


WAYS = (
    Stepwise("eigenthings_lanczos", "spectral", lanczos_iteration, ITERATIONS),
    Stepwise(
        "eigenthings_hutchpp",
        "frobenius",
        hutchpp_of_square,
        (6, 12, 24, 36, 54, 81, 120, 180, 270, 399),
        draws=3,
    ),
)
