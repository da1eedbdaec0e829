"""Norms of the layers' linearized Hessians for batches of several sizes, from one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_book.networks.linearized_norms import linearized_layers
from hessinit_book.theory import RandomNetwork


@dataclass(frozen=True)
class LayerPairs:
    r"""One layer's linearized Hessians $\hat H_b$, sample by sample.

    Attributes:
        inner: $\langle \hat H_b, \hat H_{b'} \rangle$, shape (B, B).
        traces: $\operatorname{tr} \hat H_b$, shape (B,).
    """

    inner: Float[Tensor, "b b"]
    traces: Float[Tensor, " b"]

    def frobenius(self, size: int) -> float:
        """Give the norm of the mean over a batch: the mean of all disjoint batches of a size."""
        batches = len(self.inner) // size
        blocks = self.inner.reshape(batches, size, batches, size)
        sums = blocks.diagonal(dim1=0, dim2=2).sum((0, 1))
        return float(sums.sqrt().mean()) / size

    def large_batch(self) -> float:
        """Estimate the norm in the limit of large batches: different samples alone."""
        count = len(self.inner)
        total = self.inner.sum() - self.inner.diagonal().sum()
        return float((total / (count * (count - 1))).clamp(min=0).sqrt())


def layer_pairs(
    network: RandomNetwork,
    weights: list[Float[Tensor, "_ _"]],
    inputs: Float[Tensor, "b i"],
    masks: torch.Generator,
) -> list[LayerPairs]:
    """Compute the pairs of each layer, exactly; for the arguments see `linearized_layers`."""
    found = []
    for z, factor, inner in linearized_layers(network, weights, inputs, masks):
        traces = z.square().sum(1) * factor.square().sum((1, 2))
        found.append(LayerPairs(inner.double(), traces.double()))
    return found[::-1]
