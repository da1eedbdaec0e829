"""All eigenvalues of Gauss-Newton blocks, from Gram matrices of their factors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessinit_lib.hessians.graph.capture import capture
from hessinit_lib.hessians.graph.conditions import check_exact
from hessinit_lib.hessians.graph.independence import check_independence
from hessinit_lib.hessians.graph.passes import layer_grams
from hessinit_lib.hessians.losses import LossFn, loss_curvature

# Side of the largest matrix whose eigenvalues are computed: half a minute on two cores.
_LARGEST = 6000


def gram_eigenvalues(
    model: nn.Module,
    loss_fn: LossFn,
    inputs: Tensor,
    targets: Tensor,
    name: str | None,
    matrix: str,
) -> Float[Tensor, " k"]:
    r"""Compute the eigenvalues of $G_k$, or of G of all weights, that can differ from zero.

    $G = B^{-1} J^\top J$ has the nonzero eigenvalues of $B^{-1} J J^\top$; the rows of J for
    all weights are those of the layers side by side, so their Gram matrices add up.

    Args:
        model: see `hessinit_lib.hessians.graph.graph_hessians`; the layers of every trainable
            weight must be covered, what lies above them may be smooth.
        loss_fn: see `hessinit_lib.hessians.losses.loss_curvature`.
        inputs: shape (B, ...).
        targets: shape (B,) or (B, C).
        name: the weight; None for all of them.
        matrix: "linearization", or "hessian" where it is the same.

    Returns:
        Ascending, float64, shape (k,).

    Raises:
        NotImplementedError: not covered, or a Gram matrix that is too large.

    Example:
        >>> x, y = torch.ones(8, 4), torch.zeros(8, 2)
        >>> values = gram_eigenvalues(nn.Linear(4, 2), nn.MSELoss(), x, y, None, "hessian")
        >>> round(float(values[-1]), 3)
        4.0
    """
    layers, outputs = capture(model, inputs)
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(inputs):
        raise NotImplementedError("expected outputs of shape (B, C)")
    if matrix == "residual" or (matrix == "hessian" and name is None and len(layers) > 1):
        raise NotImplementedError(f"matrix={matrix!r} is no Gauss-Newton matrix")
    chosen = [layer for layer in layers if name in (None, layer.name) and layer.edge is not None]
    if matrix == "hessian":
        check_exact(outputs, chosen)
    if not chosen or not torch.isfinite(outputs).all():
        raise NotImplementedError(f"the outputs do not depend on {name}, or are not finite")
    check_independence(outputs, chosen)
    with torch.no_grad():
        columns = loss_curvature(loss_fn, outputs.detach(), targets).factor.transpose(0, 1)
        rows = columns.shape[0] * columns.shape[1]
        if min(rows, chosen[0].weight.numel() if name else rows) > _LARGEST:
            raise NotImplementedError(f"a Gram matrix of side {rows}: at most {_LARGEST}")
        grams = layer_grams(outputs, chosen, columns, by_rows=name is None)
        total = sum(gram.matrix() for gram in grams)
        assert isinstance(total, Tensor)
        return torch.linalg.eigvalsh(total.double()) / len(inputs)
