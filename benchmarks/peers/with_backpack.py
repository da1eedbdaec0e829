"""BackPACK: `HMP` and `GGNMP`, products with blocks, and `BatchGrad`, gradients of samples."""

# pyright: reportMissingImports=false
from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from backpack import backpack, extend
from backpack.extensions import GGNMP, HMP, BatchGrad
from torch import nn

from benchmarks.rows import Problem
from benchmarks.ways import Average, Estimate, PerSample, Pull, columns_that_fit, root_times


def extended(problem: Problem) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Extend a copy of the model, and find its parameters by the names they had.

    What is no chain of modules goes through BackPACK's converter, which renames parameters.
    """
    model = copy.deepcopy(problem.model)
    for module in model.modules():
        if getattr(module, "inplace", False):  # its backward hooks allow no change in place
            vars(module)["inplace"] = False
    names = [name for name, _ in model.named_parameters()]
    model = extend(model, use_converter=not isinstance(model, nn.Sequential))
    model.train(problem.model.training)
    return model, dict(zip(names, model.parameters(), strict=True))


def hutchinson(problem: Problem, layer: str, extension: type[HMP | GGNMP] = HMP) -> Estimate:
    """Average ||Hv||^2 over random v of +-1, some in one product."""
    model, named = extended(problem)
    loss_fn = extend(copy.deepcopy(problem.loss_fn))
    weight = named[layer]
    loss = loss_fn(model(problem.inputs), problem.labels)
    with backpack(extension()):
        loss.backward(retain_graph=True)
    multiply = getattr(weight, extension().savefield)
    columns = min(8, columns_that_fit(problem, 1e9))

    def estimate(products: int) -> float:
        total = 0.0
        for done in range(0, products, columns):
            part = min(columns, products - done)
            v = torch.randint(2, (part, *weight.shape), dtype=weight.dtype) * 2 - 1
            total += multiply(v).square().sum().item()
        return total / products

    return estimate


def gradients(problem: Problem, layers: Sequence[str]) -> Pull:
    """Take `BatchGrad` in a backward pass from S_b e_b."""
    model, named = extended(problem)
    weights = {name: named[name] for name in layers}

    def pull(e: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = model(problem.inputs)
        with backpack(BatchGrad()):
            logits.backward(root_times(logits.detach(), e))
        return {name: taken(name, weight) for name, weight in weights.items()}

    def taken(name: str, weight: nn.Parameter) -> torch.Tensor:
        gradients = getattr(weight, "grad_batch", None)
        if gradients is None:
            raise NotImplementedError(f"gives no gradients of samples for {name}")
        delattr(weight, "grad_batch")
        return gradients

    return pull


WAYS = (Average("backpack_hutchinson", hutchinson),)
GGN_WAYS = (
    Average("backpack_hutchinson", partial(hutchinson, extension=GGNMP)),
    PerSample("backpack_batch_grad", gradients),
)
