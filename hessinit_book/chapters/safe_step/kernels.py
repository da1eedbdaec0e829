r"""The layers' kernels in sample space, and how alike their top directions are.

With $M_b^k$ as in statement 12, of a weight matrix that reads $z_b$, the Gauss-Newton block $G_k$
has the nonzero eigenvalues of the matrix $K_k$ of all $\frac1B (M_b^k)^\top M_c^k = \frac1B (z_b
\cdot z_c) \, S_b^\top J_b (J_c)^\top S_c$, and G those of $\sum_k K_k$.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from hessinit_book.networks.dense import linear_layers


class Coherence(NamedTuple):
    r"""Largest eigenvalues of all layers and of the whole, and what ties them.

    Attributes:
        whole: $\lambda(G)$.
        layers: $\lambda(G_k)$, one a layer.
        cosines: $(u \cdot u_k)^2$, of the top eigenvectors of $\sum_k K_k$ and of $K_k$.
        shares: $u^\top K_k u / \lambda(G)$: the layers' parts of the top eigenvector of G.
        least: the bound of statement 14, part 3, of the ratio, with the top eigenvector as u.
    """

    whole: float
    layers: list[float]
    cosines: list[float]
    shares: list[float]
    least: float


def coherence(
    model: nn.Module,
    inputs: Float[Tensor, "b i"],
    roots: Float[Tensor, "b r c"] | None = None,
) -> Coherence:
    r"""Compare the layers' kernels, for the weights without the biases.

    Args:
        model: all weights are those of linear layers that each read a sample once.
        inputs: shape (B, inputs).
        roots: $S_b^\top$ of the loss's curvature; of the cross-entropy if None.
    """
    layers = _factors(model, inputs, roots)
    products = [_product(z, factor) for z, factor in layers]
    like = layers[0][1][:, :, 0].flatten()
    found = [_top(product, like) for product in products]
    whole, u = _top(lambda v: torch.stack([product(v) for product in products]).sum(0), like)
    return Coherence(
        whole,
        [value for value, _ in found],
        [float(u @ vector) ** 2 for _, vector in found],
        [float(u @ product(u)) / whole if whole else 0.0 for product in products],
        _least(products, u),
    )


def _least(products: list[Callable[[Tensor], Tensor]], u: Tensor) -> float:
    """Bound the ratio from below; 0 where a layer has more on the complement of u."""
    means, lacking = 0.0, 0.0
    for product in products:
        image = product(u)
        mean = float(u @ image)
        rest = _top(lambda v, p=product: _without(u, p(_without(u, v))), u)[0]
        if rest >= mean:
            return 0.0
        means += mean
        lacking += float((image - mean * u).square().sum()) / (mean - rest)
    return 1 - lacking / means


def _without(u: Tensor, v: Tensor) -> Tensor:
    return v - (u @ v) * u


def _factors(
    model: nn.Module, inputs: Tensor, roots: Tensor | None = None
) -> list[tuple[Tensor, Tensor]]:
    r"""Give each layer's inputs, shape (B, m), and $S^\top J$ of its outputs, shape (B, C, n)."""
    seen: list[Any] = []
    hooks = [
        layer.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
        for layer in linear_layers(model)
    ]
    try:
        with torch.enable_grad():
            logits = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    s = softmax_roots(logits.detach()) if roots is None else roots
    rows = [
        torch.autograd.grad(
            logits, [out for _, out in seen], s[:, row].to(logits), retain_graph=True
        )
        for row in range(s.shape[1])
    ]
    return [
        (z.detach().double(), torch.stack([row[k] for row in rows], 1).double())
        for k, (z, _) in enumerate(seen)
    ]


def softmax_roots(logits: Float[Tensor, "b c"]) -> Float[Tensor, "b c c"]:
    """Give the transposed roots of the cross-entropy's curvature, by `lemma-softmax-root`."""
    p = logits.double().softmax(1)
    root = p.sqrt()
    return torch.diag_embed(root) - root[:, :, None] * p[:, None]


def _product(z: Float[Tensor, "b m"], factor: Float[Tensor, "b c n"]) -> Callable[[Tensor], Tensor]:
    inner, flat = z @ z.mT / len(z), factor.flatten(0, 1)
    if len(flat) <= flat.shape[1]:
        gram = (flat @ flat.mT).view(len(z), -1, len(z), factor.shape[1])
        matrix = (gram * inner[:, None, :, None]).reshape(len(flat), -1)
        return lambda v: matrix @ v

    def multiply(v: Tensor) -> Tensor:
        weighted = factor * v.view(len(z), -1, 1)  # sum over c, then over samples by the kernel
        return (factor * (inner @ weighted.sum(1))[:, None]).sum(2).flatten()

    return multiply


def _top(product: Callable[[Tensor], Tensor], like: Tensor) -> tuple[float, Tensor]:
    def multiply(v: np.ndarray) -> np.ndarray:
        return product(torch.from_numpy(v.reshape(-1)).to(like)).cpu().numpy()

    size = len(like)
    operator = LinearOperator((size, size), matvec=multiply, dtype=float)  # type: ignore[call-overload]
    start = np.random.default_rng(0).standard_normal(size)
    if not multiply(start).any():  # saturated outputs, or a dead layer
        return 0.0, torch.from_numpy(start / np.linalg.norm(start)).to(like)
    values, vectors = eigsh(
        operator,
        1,
        which="LA",
        v0=start,
        tol=1e-6,  # pyright: ignore[reportArgumentType]
        ncv=min(size, 20),
    )
    return float(values[-1]), torch.from_numpy(vectors[:, -1].copy()).to(like)
