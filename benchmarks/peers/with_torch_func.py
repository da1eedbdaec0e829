"""torch.func: gradients of each sample by `vmap` over `vjp`, as PyTorch's tutorial shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap

from benchmarks.rows import Problem
from benchmarks.ways import Draw, PerSample, random_column


def gradients(problem: Problem, layers: Sequence[str]) -> Draw:
    """Pull a random column of each sample's output Hessian back to all weights at once."""
    values = {name: p.detach() for name, p in problem.model.named_parameters()}
    weights = {name: values.pop(name) for name in layers}

    def one(sample: Tensor, signs: Tensor) -> dict[str, Tensor]:
        def outputs(some: dict[str, Tensor]) -> Tensor:
            return functional_call(problem.model, {**values, **some}, (sample[None],))[0]

        found, pull, *_ = vjp(outputs, weights)
        return pull(random_column(found, signs))[0]

    with torch.no_grad():
        shape = problem.model(problem.inputs).shape
    vectorized = vmap(one)

    def draw() -> dict[str, Tensor]:
        return vectorized(problem.inputs, torch.randint(2, shape) * 2.0 - 1)

    return draw


GGN_WAYS = (PerSample("torch_func", gradients),)
