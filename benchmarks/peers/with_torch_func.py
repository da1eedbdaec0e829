"""torch.func: gradients of each sample by `vmap` over `vjp`, as PyTorch's tutorial shows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.func import functional_call, vjp, vmap

from benchmarks.rows import Problem
from benchmarks.ways import PerSample, Pull, root_times


def gradients(problem: Problem, layers: Sequence[str]) -> Pull:
    """Pull S_b e_b of all samples back to all weights at once."""
    values = {name: p.detach() for name, p in problem.model.named_parameters()}
    weights = {name: values.pop(name) for name in layers}

    def one(sample: Tensor, e: Tensor) -> dict[str, Tensor]:
        def outputs(some: dict[str, Tensor]) -> Tensor:
            return functional_call(problem.model, {**values, **some}, (sample[None],))[0]

        logits, pull, *_ = vjp(outputs, weights)
        return pull(root_times(logits, e))[0]

    vectorized = vmap(one)
    return lambda e: vectorized(problem.inputs, e)


GGN_WAYS = (PerSample("torch_func", gradients),)
