"""Norms of the layers' linearized Hessians for batches of several sizes, from one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessinit_book.theory import RandomNetwork
from hessinit_lib.hessians.loss import loss_curvature
from hessinit_lib.theory.activations import differentiate


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
    r"""Compute all inner products of the samples' linearized Hessians, exactly.

    With $D^2 \ell_b = S_b^\top S_b$ and $M_b = S_b J_{k,b}$, of C rows,

    $$\langle \hat H_b, \hat H_{b'} \rangle
      = (z_b \cdot z_{b'})^2 \, \|M_b M_{b'}^\top\|_F^2 .$$

    Args:
        network: its activations and the law of its masks; the loss is the cross-entropy.
        weights: one matrix a layer.
        inputs: shape (B, n_0).
        masks: for the dropout masks, one a sample.

    Returns:
        One for each layer.

    Source: book, statements 2 and 4.
    """
    a = z = inputs
    batch = len(inputs)
    read, slopes = [], []
    for k, weight in enumerate(weights):
        read.append(z)
        a = z @ weight.mT
        if k < len(network.activations):
            law = network.masks[k]
            kept = (torch.rand(a.shape, generator=masks) < law.keep).to(a)
            mask = kept / law.keep if law.rescale else kept
            values = differentiate(network.activations[k], a)
            z = values.value * mask
            slopes.append(values.first * mask)
    targets = torch.zeros(batch, dtype=torch.long, device=a.device)  # of no effect on D^2 l
    factor = loss_curvature(nn.CrossEntropyLoss(), a, targets).factor
    found = []
    for k in reversed(range(len(weights))):
        rows = factor.flatten(0, 1)
        products = (rows @ rows.mT).square_().reshape(batch, -1, batch, factor.shape[1])
        inner = (read[k] @ read[k].mT).square() * products.sum((1, 3))
        traces = read[k].square().sum(1) * factor.square().sum((1, 2))
        found.append(LayerPairs(inner.double(), traces.double()))
        if k:
            factor = (factor @ weights[k]) * slopes[k - 1][:, None]
    return found[::-1]
