"""The output Hessians of random logits, pair by pair of samples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_book.theory.forward import normal_draws

LOSSES = ("cross_entropy", "mse")


class OutputPairs(NamedTuple):
    r"""Of $D_b = D^2 l_b$ at the logits, for several draws of these.

    Attributes:
        inner: $\langle D_b, D_{b'} \rangle$, shape (draws, b, b).
        traces: $\operatorname{tr} D_b \operatorname{tr} D_{b'}$, of the same shape.
    """

    inner: Float[Tensor, "t b b"]
    traces: Float[Tensor, "t b b"]


def output_pairs(
    loss: str,
    covariance: Float[Tensor, "b b"],
    classes: int,
    draws: int,
    generator: torch.Generator,
) -> OutputPairs:
    r"""Draw normal logits, independent over classes, and compare the samples' $D^2 l$.

    For softmax cross-entropy $D = \operatorname{diag}(p) - p p^\top$, whose norm is
    $\sqrt{C - 1} / C$ at small logits; at He's variances logits are not small. For the
    squared error, averaged over outputs, $D = (2 / C) I$ whatever the logits.

    Args:
        loss: "cross_entropy" or "mse".
        covariance: of the samples' logits, the same for each class, shape (b, b).
        classes: C.
        draws: how many batches of logits to draw.
        generator: for the draws.

    Raises:
        ValueError: another loss.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss {loss!r}: expected one of {LOSSES}")
    if loss == "mse":
        ones = torch.ones(1, *covariance.shape, dtype=covariance.dtype)
        return OutputPairs(ones * 4 / classes, ones * 4)
    rows = normal_draws(covariance, draws * classes, generator)
    p = rows.reshape(draws, classes, -1).mT.softmax(2)
    squares = p**2
    mixed = squares @ p.mT
    inner = p @ p.mT - mixed - mixed.mT + (p @ p.mT) ** 2
    trace = 1 - squares.sum(2)
    return OutputPairs(inner, trace[:, :, None] * trace[:, None, :])
