"""Statement 5: what the approximated chain rule leaves out, term by term, and its bounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessinit_lib.hessians.chain.activations import activation_derivatives
from hessinit_lib.hessians.chain.network import Chain, LinearStage
from hessinit_lib.hessians.loss import LossFn, loss_curvature


@dataclass(frozen=True)
class Term:
    r"""One summand $J_{k \to j}^\top \operatorname{diag}(f_j'' \odot v_j) J_{k \to j}$ a sample.

    Attributes:
        jacobian: $J_{k \to j} = D_{a^k} a^j$, shape (B, n_j, n_k).
        diagonal: $f_j''(a^j) \odot D_{z^j} l$, shape (B, n_j).
    """

    jacobian: Float[Tensor, "b j k"]
    diagonal: Float[Tensor, "b j"]


@dataclass(frozen=True)
class LayerResidual:
    """All summands of one layer's residual.

    Attributes:
        name: of the weight.
        inputs: the layer's inputs $z^{k-1}$, shape (B, m).
        units: of the layer, n.
        terms: one for each smooth activation above, the highest first.
    """

    name: str
    inputs: Float[Tensor, "b m"]
    units: int
    terms: list[Term]

    def residuals(self) -> Float[Tensor, "b n n"]:
        r"""Add up $R_{k,b} = A_{k,b} - \hat A_{k,b}$."""
        found = self.inputs.new_zeros(len(self.inputs), self.units, self.units)
        for term in self.terms:
            found += term.jacobian.mT @ (term.diagonal[:, :, None] * term.jacobian)
        return found

    def sample_bounds(self) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        r"""Bound $\|R_{k,b}\|_F$ and $\|R_{k,b}\|_2$ of each sample.

        Returns:
            $\sum_j \|J_{k \to j}\|_2^2 \, \|f_j'' \odot v_j\|$ with the Euclidean and the
            largest-modulus norm, each of shape (B,).
        """
        frobenius = spectral = self.inputs.new_zeros(len(self.inputs))
        for term in self.terms:
            stretch = torch.linalg.matrix_norm(term.jacobian, 2).square()
            frobenius = frobenius + stretch * term.diagonal.norm(dim=1)
            spectral = spectral + stretch * term.diagonal.abs().amax(1)
        return frobenius, spectral

    def bounds(self) -> tuple[float, float]:
        r"""Bound the Frobenius and the spectral norm of $H_k - \hat H_k$.

        Returns:
            $\frac1B \sum_b \|z^{k-1}_b\|^2$ times the bounds of the samples.
        """
        weights = self.inputs.square().sum(1) / len(self.inputs)
        frobenius, spectral = self.sample_bounds()
        return float(weights @ frobenius), float(weights @ spectral)


@torch.no_grad()
def layer_residuals(
    model: nn.Module, loss_fn: LossFn, inputs: Tensor, targets: Tensor
) -> list[LayerResidual]:
    r"""Split the residual of every layer into its terms, first layer first.

    $$R_k = \sum_{j \ge k} J_{k \to j}^\top
      \operatorname{diag}\bigl(f_j''(a^j) \odot D_{z^j} l\bigr) J_{k \to j}$$

    Every Jacobian is formed for every sample: for small networks. `layer_hessians` gives the
    residual's norms without them.

    Args:
        model: a fully connected network, see `hessinit_lib.hessians.chain.network.Chain`.
        loss_fn: see `hessinit_lib.hessians.loss.loss_curvature`.
        inputs: shape (B, ...).
        targets: shape (B,) or (B, C).

    Source: book, statement 5.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> x, y = torch.ones(1, 2), torch.tensor([0])
        >>> first, last = layer_residuals(model, nn.CrossEntropyLoss(), x, y)
        >>> len(last.terms), first.name, first.residuals().shape
        (0, '0.weight', torch.Size([1, 3, 3]))
    """
    chain = Chain.of(model, inputs)
    if chain is None:
        raise ValueError(f"model: expected a fully connected network, got {model}")
    stages, logits = chain.forward(inputs)
    gradient = loss_curvature(loss_fn, logits, targets).gradient
    found: list[LayerResidual] = []
    terms: list[Term] = []
    for stage in reversed(stages):
        if isinstance(stage, LinearStage):
            found.append(LayerResidual(stage.name, stage.inputs, len(stage.weight), terms))
            terms = [Term(term.jacobian @ stage.weight, term.diagonal) for term in terms]
            gradient = gradient @ stage.weight
        else:
            first, second = activation_derivatives(stage.module, stage.preactivations)
            terms = [Term(term.jacobian * first[:, None, :], term.diagonal) for term in terms]
            if second is not None:
                identity = torch.eye(first.shape[1]).to(first).expand(len(first), -1, -1)
                terms.append(Term(identity, second * gradient))
            gradient = gradient * first
    return found[::-1]
