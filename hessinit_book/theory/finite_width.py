r"""Finite width: what fluctuations of order 1/n add to statement 6.

A layer's units are independent, given the layer below. So each pair's scalar product is off
its mean by a relative $\epsilon_{bb'}$ of variance 1/n times that of one unit, and such
deviations add up over the depth: what counts is depth over width. For ReLU and aligned
samples $\log \|z\|^2$ has variance 5/n a layer.

The layer above answers to a deviation of $K_{bb'}$ with the share h and, where the
activation is positively homogeneous, to the mean deviation of $K_{bb}$ and $K_{b'b'}$ with
the rest 1 - h. For other activations this is an approximation, good at small deviations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_book.theory.forward import HiddenLayer


@dataclass(frozen=True, eq=False)
class KernelNoise:
    r"""Deviations of a kernel from its value at infinite width, each of shape (b, b).

    Attributes:
        pair: variance of $\epsilon_{bb'}$.
        scale: variance of the mean of $\epsilon_{bb}$ and $\epsilon_{b'b'}$.
        both: covariance of these two.
        shift: mean of $\epsilon_{bb'}$.
    """

    pair: Float[Tensor, "b b"]
    scale: Float[Tensor, "b b"]
    both: Float[Tensor, "b b"]
    shift: Float[Tensor, "b b"]

    def second_moment(self) -> Float[Tensor, "b b"]:
        r"""$E K_{bb'}^2$ over its value at infinite width.

        A deviation that both samples share multiplies from layer to layer; what is the
        pair's own adds up.
        """
        return (1 + self.shift) ** 2 * (self.scale.exp() + self.pair - self.scale)


def kernel_noise(layers: Iterable[HiddenLayer], batch: int) -> list[KernelNoise]:
    """Add up the deviations of the kernels, from the inputs to the last hidden layer.

    Returns:
        One entry for the inputs, where there are none, and one for each hidden layer.
    """
    zero = torch.zeros(batch, batch, dtype=torch.float64)
    noise = [KernelNoise(zero, zero, zero, zero)]
    for layer in layers:
        last, h, z = noise[-1], layer.share, layer.units
        own = last.scale.diagonal()
        # sqrt(K_bb K_b'b') is concave: deviations that two samples do not share lower its
        # mean.
        concave = (last.scale - _mean(own)) / 2
        power = layer.value.diagonal()
        fourth = (z**2).mT @ z**2 / len(z)
        mixed = (z**3).mT @ z / len(z) / power[:, None]
        variances = fourth / torch.outer(power, power) - 1
        noise.append(
            KernelNoise(
                h**2 * last.pair
                + 2 * h * (1 - h) * last.both
                + (1 - h) ** 2 * last.scale
                + (fourth / layer.value**2 - 1) / layer.width,
                last.scale + (_mean(variances.diagonal()) + variances) / 2 / layer.width,
                h * last.both
                + (1 - h) * last.scale
                + ((mixed + mixed.mT) / 2 / layer.value - 1) / layer.width,
                h * last.shift + (1 - h) * concave,
            )
        )
    return noise


def _mean(values: Float[Tensor, " b"]) -> Float[Tensor, "b b"]:
    """Average the values of the two samples of each pair."""
    return (values[:, None] + values[None, :]) / 2


@dataclass(frozen=True, eq=False)
class Curvature:
    r"""Means over the weights above a layer, each of shape (b, b).

    Attributes:
        limit: $q_{bb'}$ with $J_b J_{b'}^\top \to q_{bb'} I$ at infinite width.
        inner: $E \langle A_b, A_{b'} \rangle$.
        traces: $E \operatorname{tr} A_b \operatorname{tr} A_{b'}$.
    """

    limit: Float[Tensor, "b b"]
    inner: Float[Tensor, "b b"]
    traces: Float[Tensor, "b b"]


def carried_back(
    layers: list[HiddenLayer], inner: Float[Tensor, "b b"], traces: Float[Tensor, "b b"]
) -> list[Curvature]:
    r"""Carry the output curvature down the layers: $A = F W^\top A^+ W F$.

    With $\varphi_i = g_{bi} g_{b'i}$, normal weights of variance $s^2$, and the columns of W
    independent of the slopes,

    $$E \langle A_b, A_{b'} \rangle = s^4 \left[ \left( E (\textstyle\sum_i \varphi_i)^2
      + n E \varphi^2 \right) \langle A^+_b, A^+_{b'} \rangle
      + n E \varphi^2 \, \operatorname{tr} A^+_b \operatorname{tr} A^+_{b'} \right],$$

    because $E (w^\top A w)(w^\top A' w) = s^4 (\operatorname{tr} A \operatorname{tr} A'
    + 2 \langle A, A' \rangle)$; and likewise for the product of the traces. The trace term,
    about $C / n$ a layer, is that $J J^\top$ is not quite a multiple of the identity.

    Returns:
        One entry for each layer of weights, from the first to the last.
    """
    found = [Curvature(torch.ones_like(inner), inner, traces)]
    for layer in reversed(layers):
        above, n, g = found[-1], layer.width, layer.slopes
        fourth = (g**2).mT @ g**2 / len(g)
        power = layer.first.diagonal()
        found.append(
            Curvature(
                above.limit * layer.variance * n * layer.first,
                layer.variance**2
                * (
                    (n * (n - 1) * layer.first**2 + 2 * n * fourth) * above.inner
                    + n * fourth * above.traces
                ),
                layer.variance**2
                * (
                    (n * (n - 1) * torch.outer(power, power) + n * fourth) * above.traces
                    + 2 * n * fourth * above.inner
                ),
            )
        )
    return found[::-1]


def log_variance(
    layers: list[HiddenLayer],
    index: int,
    weights: Float[Tensor, "b b"],
    curvatures: list[Curvature],
) -> float:
    r"""Add up the variance of $\log \|H_k\|_F^2$ over the hidden layers.

    Each layer changes the pair sum through one unit's mean contribution y, weighted like
    the pairs: forward by $4 \operatorname{Var}(y) / n$; backward as much, and
    $8 E y^2 / (n \rho)$ more by the weights, $\rho = \operatorname{tr} A \operatorname{tr}
    A' / \langle A, A' \rangle$ the rank of the curvature that they mix.

    Args:
        layers: all hidden layers.
        index: the number of the layer of weights, from 0.
        weights: each pair's part in the squared norm, with sum 1, shape (b, b).
        curvatures: of each layer of weights.
    """
    total, w = 0.0, weights
    for layer in reversed(layers[:index]):
        total += 4 * _unit_variance(layer.units, w / layer.value) / layer.width
        kept = layer.share * w
        # The answer to the scale goes to the two samples' own squared norms.
        w = kept + (w - kept).sum(1).diag()
    for layer, above in zip(layers[index:], curvatures[index + 1 :], strict=True):
        own = _unit_variance(layer.slopes, weights / layer.first)
        rank = float((weights * above.traces / above.inner).sum())
        total += (4 * own + 8 * (1 + own) / rank) / layer.width
    return total


def _unit_variance(draws: Float[Tensor, "u b"], weights: Float[Tensor, "b b"]) -> float:
    return float(((draws @ weights) * draws).sum(1).var())
