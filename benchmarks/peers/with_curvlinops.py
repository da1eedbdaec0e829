"""curvlinops: the operator of one layer's weights, and what works on operators."""

# pyright: reportMissingImports=false
from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import torch
from curvlinops import (
    GGNLinearOperator,
    HessianLinearOperator,
    hutchinson_squared_fro,
    xtrace,
)
from scipy.sparse import linalg as sparse

from benchmarks.rows import Problem
from benchmarks.ways import Average, Estimate, Stepwise, columns_that_fit

Operator: TypeAlias = HessianLinearOperator | GGNLinearOperator


def block(problem: Problem, layer: str, kind: type[Operator] = HessianLinearOperator) -> Operator:
    """Make the operator; the check for determinism costs products, so it is left out."""
    return kind(
        problem.model,
        problem.loss_fn,
        [problem.layers[layer]],
        [(problem.inputs, problem.labels)],
        check_deterministic=False,
    )


def scipy_eigsh(problem: Problem, layer: str) -> Estimate:
    """Take SciPy's Lanczos method to 1 %; its basis is the effort."""
    operator = block(problem, layer)

    def estimate(basis: int) -> float:
        start = torch.randn(operator.shape[0]).numpy()
        linear = operator.to_scipy()
        eigsh: Any = sparse.eigsh  # its types do not know what it gives without vectors
        values = eigsh(
            linear, k=1, which="LM", ncv=basis, tol=0.01, v0=start, return_eigenvectors=False
        )
        return abs(float(values[0]))

    return estimate


def hutchinson(
    problem: Problem, layer: str, kind: type[Operator] = HessianLinearOperator
) -> Estimate:
    """Take `hutchinson_squared_fro`, with as many vectors in one product as is fast."""
    operator = block(problem, layer, kind)
    columns = min(8, columns_that_fit(problem, 1e9))

    def estimate(products: int) -> float:
        parts = [min(columns, products - done) for done in range(0, products, columns)]
        total = sum(part * hutchinson_squared_fro(operator, part).item() for part in parts)
        return total / products

    return estimate


def xtrace_of_square(
    problem: Problem, layer: str, kind: type[Operator] = HessianLinearOperator
) -> Estimate:
    """Take `xtrace` of the operator's square: tr H^2 is the squared Frobenius norm."""
    operator = block(problem, layer, kind)
    square = operator @ operator
    return lambda products: max(0.0, xtrace(square, products).item()) ** 0.5


WAYS = (
    Stepwise("curvlinops_eigsh", "spectral", scipy_eigsh, (3, 5, 8, 12, 20)),
    Average("curvlinops_hutchinson", hutchinson),
    Stepwise(
        "curvlinops_xtrace",
        "frobenius",
        xtrace_of_square,
        (6, 12, 24, 36, 54, 80, 120, 180, 270, 400),
        draws=3,
        fits=lambda problem, products: products // 2 <= columns_that_fit(problem, 4e9),
    ),
)

GGN_WAYS = (
    Average("curvlinops_hutchinson", partial(hutchinson, kind=GGNLinearOperator)),
    Stepwise(
        "curvlinops_xtrace",
        "frobenius",
        partial(xtrace_of_square, kind=GGNLinearOperator),
        (6, 12, 24, 48, 96),
        draws=3,
        fits=lambda problem, products: products // 2 <= columns_that_fit(problem, 4e9),
    ),
)
