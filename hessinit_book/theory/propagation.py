"""Statement 6: the norms of the layer Hessians at initialization, predicted from the law."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessinit_book.theory.finite_width import carried_back, kernel_noise, log_variance
from hessinit_book.theory.forward import hidden_layers
from hessinit_book.theory.output_hessians import output_pairs
from hessinit_book.theory.random_network import RandomNetwork

_UNITS, _DRAWS = 2048, 256
_LEAST = 1e-12  # correlation of two samples, and square of one over that of the largest


@dataclass(frozen=True)
class LayerPrediction:
    r"""The Frobenius norm of one layer's Hessian, predicted.

    Attributes:
        name: of the weight.
        frobenius: typical $\|H_k\|_F$ of the batch mean at the network's own widths: its
            median over random weights, for which the geometric mean is taken.
        limit: root mean square of $\|H_k\|_F$ at infinite width.
        log_std: deviation of $\log \|H_k\|_F$ from network to network.
        forward: $E \|z^{k-1}\|^2$, averaged over the samples.
        backward: the q of $J_k J_k^\top \approx q I$, averaged over the samples.
        output: root mean square of $\|D^2 l\|_F$ of a sample.
    """

    name: str
    frobenius: float
    limit: float
    log_std: float
    forward: float
    backward: float
    output: float

    @property
    def per_sample(self) -> float:
        """Statement 6 for one sample: the product of the three factors."""
        return self.forward * self.backward * self.output


def predict_layer_norms(
    network: nn.Module | RandomNetwork,
    inputs: Float[Tensor, "b ..."],
    *,
    loss: str = "cross_entropy",
    generator: torch.Generator | None = None,
) -> list[LayerPrediction]:
    r"""Predict the norm of each layer's Hessian from the variances of the weights.

    With the kernels $K^k_{bb'} = E z^k_b \cdot z^k_{b'}$ and $c'_{j,bb'} = E f_j'(u_b)
    f_j'(u_{b'})$, the linearization of the batch-mean Hessian has in wide networks

    $$\|H_k\|_F^2 = \frac1{B^2} \sum_{b,b'} \left(K^{k-1}_{bb'} q^k_{bb'}\right)^2
      \langle D_b, D_{b'} \rangle, \qquad
      q^k_{bb'} = \prod_{j > k} s_j^2 n_{j-1} c'_{j-1,bb'},$$

    $D_b$ the output Hessian at normal logits of covariance $s_n^2 K^{n-1}$: `limit`. At
    finite width the typical value differs by a factor of 1 + O(depth / width) and O(C depth /
    width), see `hessinit_book.theory.finite_width`: `frobenius`.

    Args:
        network: a fully connected model, of which only the mean squares of its weights and
            biases are used, or the law itself.
        inputs: shape (B, ...), B up to a few hundred.
        loss: "cross_entropy" or "mse", averaged over the batch (and the outputs).
        generator: for the Monte Carlo averages over units and logits; the same at each call
            if None. They leave errors of about 1 %.

    Returns:
        One prediction for each layer of weights, from the first to the last.

    Raises:
        NotImplementedError: a model that is not covered; the message names the module.
        ValueError: inputs that do not fit, or another loss.

    Source: derivation in the book, statement 6; arXiv 2004.09506 for the principle.

    Example:
        >>> network = RandomNetwork.make([16, 256, 10], [2 / 16, 2 / 256])
        >>> x = torch.ones(1, 16)
        >>> [round(layer.forward) for layer in predict_layer_norms(network, x)]
        [16, 256]
    """
    if isinstance(network, nn.Module):
        network = RandomNetwork.of_model(network)
    x = inputs.detach().cpu().double().flatten(1)
    if x.shape[1] != network.widths[0] or len(x) == 0:
        raise ValueError(
            f"inputs of shape {tuple(inputs.shape)}: expected {network.widths[0]} numbers for each "
            "of at least one sample"
        )
    generator = generator or torch.Generator().manual_seed(0)
    gram = _never_zero(x @ x.mT)
    layers, covariance = hidden_layers(network, gram, _UNITS, generator)
    pairs = output_pairs(loss, covariance, network.widths[-1], _DRAWS, generator)
    inner = pairs.inner.mean(0)
    curvatures = carried_back(layers, inner, pairs.traces.mean(0))
    noise = kernel_noise(layers, len(x))
    kernels = [gram, *(layer.kernel for layer in layers)]
    found = []
    for k, (kernel, curvature) in enumerate(zip(kernels, curvatures, strict=True)):
        squares = (kernel * curvature.limit) ** 2
        # How the drawn logits move the pair sum, at infinite width.
        sums = (squares * pairs.inner).mean((1, 2))
        logits = sums.log().var(correction=0) if len(sums) > 1 else torch.zeros(())
        jensen = sums.log().mean() - sums.mean().log()
        first_order = kernel**2 * curvature.inner
        variance = log_variance(layers, k, first_order / first_order.sum(), curvatures)
        second_moment = (first_order * noise[k].second_moment()).mean()
        found.append(
            LayerPrediction(
                network.names[k],
                # Log-normal: the mean of the logarithm is half the variance below.
                math.exp(float(second_moment.log() + jensen - variance / 2) / 2),
                float(sums.mean().sqrt()),
                math.sqrt(variance + float(logits)) / 2,
                float(kernel.diagonal().mean()),
                float(curvature.limit.diagonal().mean()),
                float(inner.diagonal().mean().sqrt()),
            )
        )
    return found


def _never_zero(gram: Float[Tensor, "b b"]) -> Float[Tensor, "b b"]:
    """Give orthogonal samples a correlation, and samples of zeros a size, that are negligible.

    Deviations are relative to the kernel. A kernel of zero deviates, too, and its deviations
    count: linear layers keep orthogonal samples orthogonal only on average.
    """
    power = gram.diagonal()
    power = power.clamp(min=_LEAST * float(power.max().clamp(min=_LEAST)))
    least = _LEAST * torch.outer(power, power).sqrt()
    return torch.where(gram.abs() < least, least, gram).diagonal_scatter(power)
