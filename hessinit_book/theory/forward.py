"""Statement 6 forward: the scalar products between samples, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_book.theory.kernels import kernel_maps
from hessinit_book.theory.random_network import Masks, RandomNetwork
from hessinit_lib.theory.activations import differentiate


@dataclass(frozen=True, eq=False)
class HiddenLayer:
    r"""What the units of one hidden layer do, on average, for each pair of samples.

    Attributes:
        width: number of units n.
        variance: $s^2$ of the weights that read this layer.
        value: $\kappa_{bb'} = E z_b z_{b'}$ of one unit, shape (b, b).
        first: $c'_{bb'} = E g_b g_{b'}$ of one unit, $g = m f'(a)$, shape (b, b).
        share: $h_{bb'} = \partial \log \kappa_{bb'} / \partial \log \Sigma_{bb'}$ of the
            pre-activations' covariance, shape (b, b).
        units: draws of z, independent units in rows, shape (u, b).
        slopes: draws of g, of the same units.
    """

    width: int
    variance: float
    value: Float[Tensor, "b b"]
    first: Float[Tensor, "b b"]
    share: Float[Tensor, "b b"]
    units: Float[Tensor, "u b"]
    slopes: Float[Tensor, "u b"]

    @property
    def kernel(self) -> Float[Tensor, "b b"]:
        r"""$K_{bb'} = E z_b \cdot z_{b'}$ over all units, shape (b, b)."""
        return self.width * self.value


def hidden_layers(
    network: RandomNetwork, gram: Float[Tensor, "b b"], units: int, generator: torch.Generator
) -> tuple[list[HiddenLayer], Float[Tensor, "b b"]]:
    r"""Propagate the kernel of the inputs through a network of infinite width.

    $$\Sigma^k = s_k^2 K^{k-1}, \qquad K^k_{bb'} = n_k E[m m'] \, E f(u_b) f(u_{b'}),
      \quad u \sim N(0, \Sigma^k).$$

    Args:
        network: the law of the weights.
        gram: $K^0_{bb'} = x_b \cdot x_{b'}$, float64, shape (b, b).
        units: how many units of each layer to draw.
        generator: for these draws.

    Returns:
        The hidden layers, and the covariance $\Sigma^n$ of each logit, shape (b, b).
    """
    layers: list[HiddenLayer] = []
    covariance = network.variances[0] * gram + network.bias_variances[0]
    for k, activation in enumerate(network.activations):
        value, first = kernel_maps(activation, covariance)
        masks = mask_products(network.masks[k], covariance)
        draws = differentiate(activation, normal_draws(covariance, units, generator))
        mask = _mask_draws(network.masks[k], draws.value, generator)
        layer = HiddenLayer(
            network.widths[k + 1],
            network.variances[k + 1],
            value * masks,
            first * masks,
            # Price: the derivative of E f(u) f(v) in the covariance is E f'(u) f'(v).
            covariance * first / value.where(value != 0, 1.0),
            draws.value * mask,
            draws.first * mask,
        )
        layers.append(layer)
        covariance = layer.variance * layer.kernel + network.bias_variances[k + 1]
    return layers, covariance


def mask_products(masks: Masks, like: Float[Tensor, "b b"]) -> Float[Tensor, "b b"]:
    """Average the product of two samples' dropout masks on one unit, shape (b, b)."""
    other = masks.keep if masks.shared else masks.keep**2
    products = torch.full_like(like, other).fill_diagonal_(masks.keep)
    return products / masks.keep**2 if masks.rescale else products


def normal_draws(
    covariance: Float[Tensor, "b b"], count: int, generator: torch.Generator
) -> Float[Tensor, "u b"]:
    """Draw independent rows of N(0, covariance), which may be singular."""
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    root = vectors * eigenvalues.clamp(min=0).sqrt()
    normal = torch.randn(count, len(covariance), generator=generator, dtype=torch.float64)
    return normal @ root.mT


def _mask_draws(masks: Masks, units: Tensor, generator: torch.Generator) -> Tensor:
    count, batch = units.shape
    uniform = torch.rand(count, 1 if masks.shared else batch, generator=generator)
    kept = (uniform < masks.keep).double()
    return kept / masks.keep if masks.rescale else kept
