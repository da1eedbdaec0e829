"""ViViT: all eigenvalues of each layer's Gauss-Newton block, from a Gram matrix.

Where the network is piecewise linear the Hessian block is its Gauss-Newton block, and the
eigenvalues give both norms.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import copy

import torch
from backpack import backpack, extend
from vivit import EigvalshComputation

from benchmarks.rows import Problem
from benchmarks.ways import AllAtOnce

LARGEST = 2560  # side of the Gram matrix, B x C; beyond it one call takes minutes


def norms(problem: Problem) -> dict[str, tuple[float, float]]:
    """Take `EigvalshComputation` with one group for each layer."""
    model = extend(copy.deepcopy(problem.model))
    loss_fn = extend(copy.deepcopy(problem.loss_fn))
    weights = dict(model.named_parameters())
    groups = {name: {"params": [weights[name]]} for name in problem.layers}
    computation = EigvalshComputation()
    loss = loss_fn(model(problem.inputs), problem.labels)
    with backpack(
        computation.get_extension(),
        extension_hook=computation.get_extension_hook(list(groups.values())),
    ):
        loss.backward()
    values = {name: computation.get_result(group).double() for name, group in groups.items()}
    return {name: (v.norm().item(), v.abs().max().item()) for name, v in values.items()}


def refuses(problem: Problem) -> str | None:
    """Say why a problem is left out."""
    if problem.smooth:
        return "gives the Gauss-Newton block, which is not the Hessian of a smooth network"
    classes = problem.model(problem.inputs[:1]).shape[1]
    side = len(problem.inputs) * classes
    if side > LARGEST:
        return f"left out: eigenvalues of Gram matrices of side {side:,} take minutes"
    return None


def symeig(matrix: torch.Tensor, eigenvectors: bool = False) -> tuple[torch.Tensor, None]:
    """Stand in for `Tensor.symeig`, which ViViT 1.0.0 calls and which torch 2 has dropped."""
    if eigenvectors:
        raise NotImplementedError("symeig stands in for eigenvalues alone, without eigenvectors")
    return torch.linalg.eigvalsh(matrix), None


torch.Tensor.symeig = symeig  # pyright: ignore[reportAttributeAccessIssue]

WAYS = (AllAtOnce("vivit", norms, refuses),)
