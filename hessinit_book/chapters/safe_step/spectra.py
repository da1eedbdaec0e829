r"""Largest eigenvalues of a batch's Hessian and Gauss-Newton matrix, and of the layers' blocks.

Products with vectors, and Lanczos's method as SciPy has it. Preconditioned by a diagonal matrix
P they are those of $P^{-1/2} H P^{-1/2}$, which rule a step of $P^{-1}$ times the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from hessinit_lib.hessians.loss import LossFn

TOLERANCE: Any = 1e-3  # of an eigenvalue
_ROUNDS = 300


class Curvature:
    """Products with H and G of a batch, at the model's weights as they are now.

    Args:
        model: twice differentiable.
        loss_fn: of (outputs, targets).
        inputs: shape (B, ...).
        targets: what the loss takes.
        scale: $P^{-1/2}$ as tensors by name; None for no preconditioning.

    Attributes:
        names: of the parameters, one a layer's weight or bias, in model order.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        inputs: Tensor,
        targets: Tensor,
        scale: dict[str, Tensor] | None = None,
    ) -> None:
        self._weights = {name: p.detach() for name, p in model.named_parameters()}
        self.names = list(self._weights)
        self._sizes = [weight.numel() for weight in self._weights.values()]
        self._scale = [scale[name] for name in self.names] if scale else None

        def outputs(weights: dict[str, Tensor]) -> Tensor:
            return functional_call(model, weights, (inputs,))

        leaves = {name: w.clone().requires_grad_() for name, w in self._weights.items()}
        self._leaves = list(leaves.values())
        # The other kinds of attention have no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self._outputs = outputs(leaves)
            loss = loss_fn(self._outputs, targets)
            self._gradient = torch.autograd.grad(loss, self._leaves, create_graph=True)
            self._cotangent = torch.zeros_like(self._outputs, requires_grad=True)
            self._pulled = torch.autograd.grad(
                self._outputs, self._leaves, self._cotangent, create_graph=True
            )
            z = self._outputs.detach().requires_grad_()
            self._at_outputs = z, torch.autograd.grad(loss_fn(z, targets), z, create_graph=True)

    def hvp(self, vector: Tensor) -> Tensor:
        """Multiply the Hessian by a vector of all parameters."""
        return self._multiplied("hessian", vector, slice(None))

    def ggnvp(self, vector: Tensor) -> Tensor:
        """Multiply the Gauss-Newton matrix by a vector of all parameters."""
        return self._multiplied("ggn", vector, slice(None))

    def largest(self, kind: str, layer: str | None = None) -> tuple[float, Tensor]:
        """Find the largest eigenvalue and its vector, of the whole or of a layer's block.

        Args:
            kind: "hessian" or "ggn".
            layer: name of a parameter; None for the whole.
        """
        chosen = slice(None)
        if layer is not None:
            place = self.names.index(layer)
            chosen = slice(place, place + 1)

        def multiply(v: np.ndarray) -> np.ndarray:
            vector = torch.from_numpy(v.reshape(-1)).to(self._outputs)
            return self._multiplied(kind, vector, chosen).double().cpu().numpy()

        size = sum(self._sizes[chosen])
        if size == 1:
            return float(multiply(np.ones(1))[0]), torch.ones(1)
        return _largest(multiply, size)

    def shares(self, vector: Tensor) -> dict[str, float]:
        """Say which part of a vector's square each parameter has."""
        parts = vector.square().split(self._sizes)
        total = float(vector.square().sum())
        return {n: float(part.sum()) / total for n, part in zip(self.names, parts, strict=True)}

    def _multiplied(self, kind: str, vector: Tensor, chosen: slice) -> Tensor:
        scale = None if self._scale is None else self._scale[chosen]
        pieces = [
            piece.view_as(leaf)
            for piece, leaf in zip(
                vector.split(self._sizes[chosen]), self._leaves[chosen], strict=True
            )
        ]
        if scale:
            pieces = [piece * s for piece, s in zip(pieces, scale, strict=True)]
        product = self._hvp if kind == "hessian" else self._ggnvp
        found = product(pieces, chosen)
        if scale:
            found = [piece * s for piece, s in zip(found, scale, strict=True)]
        return torch.cat([piece.flatten() for piece in found]).detach()

    def _hvp(self, pieces: Sequence[Tensor], chosen: slice) -> Sequence[Tensor]:
        return torch.autograd.grad(
            self._gradient[chosen],
            self._leaves[chosen],
            pieces,
            retain_graph=True,
            materialize_grads=True,
        )

    def _ggnvp(self, pieces: Sequence[Tensor], chosen: slice) -> Sequence[Tensor]:
        (jvp,) = torch.autograd.grad(
            self._pulled[chosen], self._cotangent, pieces, retain_graph=True
        )
        z, gradient = self._at_outputs
        (curved,) = torch.autograd.grad(gradient, z, jvp, retain_graph=True)
        return torch.autograd.grad(self._outputs, self._leaves[chosen], curved, retain_graph=True)


def _largest(multiply: Callable[[np.ndarray], np.ndarray], size: int) -> tuple[float, Tensor]:
    operator = LinearOperator((size, size), matvec=multiply, dtype=float)  # type: ignore[call-overload]
    start = np.random.default_rng(0).standard_normal(size)
    if not multiply(start).any():  # a dead layer
        return 0.0, torch.from_numpy(start / np.linalg.norm(start))
    try:
        values, vectors = eigsh(
            operator, 1, which="LA", v0=start, tol=TOLERANCE, maxiter=_ROUNDS, ncv=min(size, 20)
        )
    except ArpackNoConvergence as unfinished:
        values, vectors = unfinished.eigenvalues, unfinished.eigenvectors
        if not len(values):
            raise
    return float(values[-1]), torch.from_numpy(vectors[:, -1].copy())
