"""BackPACK: the extension `HMP`, products with each parameter's Hessian block."""

# pyright: reportMissingImports=false
from __future__ import annotations

import copy

import torch
from backpack import backpack, extend
from backpack.extensions import HMP

from benchmarks.rows import Problem
from benchmarks.ways import Average, Estimate, columns_that_fit


def hutchinson(problem: Problem, layer: str) -> Estimate:
    """Average ||Hv||^2 over random v of +-1, some in one product."""
    model = extend(copy.deepcopy(problem.model))
    loss_fn = extend(copy.deepcopy(problem.loss_fn))
    weight = dict(model.named_parameters())[layer]
    loss = loss_fn(model(problem.inputs), problem.labels)
    with backpack(HMP()):
        loss.backward(retain_graph=True)
    columns = min(8, columns_that_fit(problem, 1e9))

    def estimate(products: int) -> float:
        total = 0.0
        for done in range(0, products, columns):
            part = min(columns, products - done)
            v = torch.randint(2, (part, *weight.shape), dtype=weight.dtype) * 2 - 1
            total += weight.hmp(v).square().sum().item()
        return total / products

    return estimate


WAYS = (Average("backpack_hutchinson", hutchinson),)
