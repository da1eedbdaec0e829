r"""Layer Hessians as matrices, by automatic differentiation: references for small networks.

A weight of $n \times m$ entries has a block of $(nm)^2$ entries, here formed as such. Rows
of the weight are stacked, as PyTorch flattens it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessinit_lib.hessians.loss import LossFn


class DenseBlock(NamedTuple):
    r"""A layer's Hessian $H_k$ and its linearization $\hat H_k$, each of shape (n m, n m)."""

    hessian: Float[Tensor, "p p"]
    linearization: Float[Tensor, "p p"]

    @property
    def residual(self) -> Float[Tensor, "p p"]:
        r"""What the approximated chain rule leaves out, $H_k - \hat H_k$."""
        return self.hessian - self.linearization


def dense_block(
    model: nn.Module, loss_fn: LossFn, inputs: Tensor, targets: Tensor, name: str
) -> DenseBlock:
    r"""Differentiate the loss twice in one weight, and the logits once.

    $$H_k = D^2_{W^k} L, \qquad
      \hat H_k = (D_{W^k} z^n)^\top \, (D^2_{z^n} L) \, D_{W^k} z^n$$

    with $z^n$ the logits of the whole batch. None of the formulas for layers is used.

    Args:
        model: any differentiable module.
        loss_fn: a function of (logits, targets), twice differentiable.
        inputs: shape (B, ...).
        targets: what the loss takes.
        name: of the weight, as in `model.named_parameters()`.

    Source: the definitions; book, statements 1 and 4.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
        >>> x, y = torch.ones(1, 2, dtype=torch.float64), torch.tensor([0])
        >>> block = dense_block(model, nn.CrossEntropyLoss(), x, y, "0.weight")
        >>> block.hessian.shape, bool(block.residual.norm() < 1e-14)
        (torch.Size([6, 6]), True)
    """
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    shape, weight = parameters[name].shape, parameters[name].flatten()

    def logits(w: Tensor) -> Tensor:
        given = {**parameters, name: w.view(shape)}
        return torch.func.functional_call(model, given, (inputs,)).flatten()

    found = logits(weight)
    output_shape = (len(inputs), -1)

    def loss(z: Tensor) -> Tensor:
        return loss_fn(z.view(output_shape), targets)

    jacobian = torch.func.jacrev(logits)(weight)
    curvature = torch.func.hessian(loss)(found)
    hessian = torch.func.hessian(lambda w: loss(logits(w)))(weight)
    return DenseBlock(hessian, jacobian.mT @ curvature @ jacobian)


def dense_curvatures(
    above: Callable[[Tensor], Tensor],
    loss_fn: LossFn,
    preactivations: Float[Tensor, "b n"],
    targets: Tensor,
) -> tuple[Float[Tensor, "b n n"], Float[Tensor, "b n n"]]:
    r"""Differentiate each sample's loss twice in the layer's pre-activations.

    $$A_{k,b} = D^2_{a^k} l_b, \qquad
      \hat A_{k,b} = (D_{a^k} z^n_b)^\top \, (D^2_{z^n} l_b) \, D_{a^k} z^n_b$$

    Args:
        above: the network from the layer's pre-activations to the logits.
        loss_fn: a mean over samples.
        preactivations: $a^k$, shape (B, n).
        targets: one for each sample.

    Returns:
        $A$ and $\hat A$, each of shape (B, n, n).

    Example:
        >>> a, y = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0])
        >>> dense_curvatures(nn.Identity(), nn.CrossEntropyLoss(), a, y)[0].tolist()
        [[[0.25, -0.25], [-0.25, 0.25]]]
    """

    def curvatures(a: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        def logits(at: Tensor) -> Tensor:
            return above(at[None])[0]

        def loss(z: Tensor) -> Tensor:
            return loss_fn(z[None], y[None])

        jacobian = torch.func.jacrev(logits)(a)
        output = torch.func.hessian(loss)(logits(a))
        whole = torch.func.hessian(lambda at: loss(logits(at)))(a)
        return whole, jacobian.mT @ output @ jacobian

    pairs = [curvatures(a, y) for a, y in zip(preactivations.detach(), targets, strict=True)]
    whole, linear = (torch.stack(found).detach() for found in zip(*pairs, strict=True))
    return whole, linear


def kronecker_mean(
    curvatures: Float[Tensor, "b n n"], inputs: Float[Tensor, "b m"]
) -> Float[Tensor, "p p"]:
    r"""Assemble a layer's Hessian $\frac1B \sum_b A_b \otimes z_b z_b^\top$ (statement 2).

    Args:
        curvatures: $A_b$, shape (B, n, n).
        inputs: $z_b$, shape (B, m).

    Returns:
        Shape (n m, n m): block (i, p), of shape (m, m), is the mean of $(A_b)_{ip} z_b z_b^\top$.

    Source: book, statement 2.

    Example:
        >>> kronecker_mean(torch.tensor([[[2.0]]]), torch.tensor([[1.0, 3.0]])).tolist()
        [[2.0, 6.0], [6.0, 18.0]]
    """
    batch, units, features = *curvatures.shape[:2], inputs.shape[1]
    entries = torch.einsum("bip,bj,bq->ijpq", curvatures, inputs, inputs) / batch
    return entries.reshape(units * features, units * features)
