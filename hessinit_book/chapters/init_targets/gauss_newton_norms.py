r"""Norms of the Gauss-Newton blocks of a plain network, all layers in one sweep.

For ReLU they are the Hessian's. For tanh they leave the residual out, whose norms would cost
more than the training that these experiments compare.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hessinit_lib.hessians.loss import loss_curvature

NORMS = ("frobenius", "spectral", "trace")


@torch.no_grad()
def gauss_newton_norms(
    model: nn.Sequential, inputs: Tensor, labels: Tensor, norm: str, *, centered: bool = False
) -> list[float]:
    r"""Compute a norm of $G_k = \frac1B \sum_b S_b^\top S_b \otimes z_b z_b^\top$ for each layer.

    $S_b$ is the factor of the output curvature carried back to the layer, $z_b$ its input.
    The nonzero eigenvalues of $B G_k$ are those of the matrix of $\langle z_b, z_{b'} \rangle
    S_b S_{b'}^\top$, of shape (B r, B r).

    Args:
        model: Linear layers with one activation between.
        inputs: shape (B, n).
        labels: classes, shape (B,).
        norm: "frobenius", "spectral" or "trace".
        centered: whether the batch mean is taken out of the $z_b$.

    Example:
        >>> from hessinit_lib import layer_hessians
        >>> model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
        >>> x, y = torch.randn(8, 4), torch.arange(8) % 3
        >>> exact = layer_hessians(model, F.cross_entropy, x, y)["0.weight"].frobenius
        >>> abs(gauss_newton_norms(model, x, y, "frobenius")[0] / exact - 1) < 1e-4
        True
    """
    linear = [module for module in model if isinstance(module, nn.Linear)]
    activation = model[1]
    layer_inputs, slopes = [inputs], []
    for layer in linear[:-1]:
        before = layer(layer_inputs[-1])
        after = activation(before)
        layer_inputs.append(after)
        slopes.append((before > 0).to(after) if isinstance(activation, nn.ReLU) else 1 - after**2)
    factor = loss_curvature(F.cross_entropy, linear[-1](layer_inputs[-1]), labels).factor
    found: list[float] = []
    for index in reversed(range(len(linear))):
        z = layer_inputs[index] - layer_inputs[index].mean(0) if centered else layer_inputs[index]
        found.insert(0, _norm(z, factor, norm))
        if index:
            factor = factor @ linear[index].weight * slopes[index - 1][:, None]
    return found


def _norm(z: Float[Tensor, "b n"], factor: Float[Tensor, "b r m"], norm: str) -> float:
    batch, rank = factor.shape[:2]
    if norm == "trace":
        return (z.square().sum(1) * factor.square().sum((1, 2))).mean().item()
    flat = factor.flatten(0, 1)
    overlap = (z @ z.T).repeat_interleave(rank, 0).repeat_interleave(rank, 1)
    gram = flat @ flat.T * overlap / batch
    if norm == "spectral":
        return torch.linalg.eigvalsh(gram)[-1].item()
    return gram.norm().item()
