"""PyHessian: one batch, `hessian(model, criterion, data)`; one layer by freezing the others."""

# pyright: reportMissingImports=false
from __future__ import annotations

import copy

import torch
from pyhessian import hessian
from pyhessian.utils import group_product, hessian_vector_product

from benchmarks.rows import Problem
from benchmarks.ways import ITERATIONS, Average, Estimate, Stepwise


def block(problem: Problem, layer: str) -> hessian:
    """Make PyHessian's object for one layer: the other parameters require no gradient."""
    model = copy.deepcopy(problem.model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == layer)
    return hessian(model, problem.loss_fn, data=(problem.inputs, problem.labels), cuda=False)


def power_iteration(problem: Problem, layer: str) -> Estimate:
    """Take `eigenvalues`, its power iteration; `tol=0` makes it run all its iterations."""
    computation = block(problem, layer)

    def estimate(iterations: int) -> float:
        values, _ = computation.eigenvalues(maxIter=iterations, tol=0, top_n=1)
        return abs(values[0])

    return estimate


def hutchinson(problem: Problem, layer: str) -> Estimate:
    """Take the products of its `trace`, but sum up (Hv, Hv) instead of (v, Hv)."""
    computation = block(problem, layer)

    def estimate(products: int) -> float:
        total = 0.0
        for _ in range(products):
            v = [torch.randint_like(p, high=2) * 2 - 1 for p in computation.params]
            hv = hessian_vector_product(computation.gradsH, computation.params, v)
            total += group_product(hv, hv).item()
        return total / products

    return estimate


WAYS = (
    Stepwise("pyhessian_power", "spectral", power_iteration, ITERATIONS),
    Average("pyhessian_hutchinson", hutchinson),
)


def ggn_hutchinson(problem: Problem, layer: str) -> Estimate:
    """Take the same where a piecewise-linear network's Hessian block is its Gauss-Newton block."""
    if problem.smooth:
        raise NotImplementedError("has products with the Hessian alone, here another matrix")
    return hutchinson(problem, layer)


GGN_WAYS = (Average("pyhessian_hutchinson", ggn_hutchinson),)
