"""`layer_hessians`: the norms of every layer's loss Hessian in one call."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from hessinit_lib.hessians.chain import chain_hessians
from hessinit_lib.hessians.graph import graph_hessians
from hessinit_lib.hessians.losses import LossFn
from hessinit_lib.hessians.network import check_batch, is_chain
from hessinit_lib.hessians.options import NORMS, Options
from hessinit_lib.hessians.report import HessianReport


def layer_hessians(
    model: nn.Module,
    loss_fn: LossFn,
    inputs: Tensor,
    targets: Tensor,
    *,
    method: str = "auto",
    norms: Collection[str] = NORMS,
    parts: bool = True,
    tolerance: float = 0.01,
    generator: torch.Generator | None = None,
    max_memory: int | None = None,
) -> HessianReport:
    r"""Compute the norms of every layer's Hessian block, exactly, in one pass.

    For the batch-mean loss $L$ and the weight $W^k$ of shape (n, m),

    $$H_k = D^2_{W^k} L = \frac1B \sum_b A_b \otimes z_b z_b^\top,$$

    with $z_b$ the layer's inputs and $A_b$ the Hessian of sample $b$'s loss in the layer's
    pre-activations. $H_k = G_k + R_k$ is reported with its two parts: the linearization
    (generalized Gauss-Newton block) and the residual. No matrix of the size of the
    parameters is formed. The model, its gradients, buffers and mode and the global random
    state are left as found.

    Args:
        model: either a fully connected network, `nn.Sequential` (also nested) of
            `nn.Linear`, twice differentiable (almost everywhere) elementwise activations,
            `nn.Flatten`, `nn.Identity` and inactive dropout; or any module that is
            piecewise linear above each of its Linear, convolution and Embedding layers
            (ReLU, pooling, residual sums, concatenation, normalization in evaluation
            mode), where the block is its linearization: see
            `hessinit_lib.hessians.graph.graph_hessians`. Computed in float64 if the
            parameters are float64, else in float32.
        loss_fn: cross-entropy or MSE, averaged over the batch: `nn.CrossEntropyLoss()`,
            `nn.MSELoss()`, `F.cross_entropy` or `F.mse_loss`.
        inputs: shape (B, ...), what the model takes, on the model's device.
        targets: class indices (B,), or probabilities or values (B, C).
        method: "exact" (no sampling, or an error that names what is not covered),
            "estimate", or "auto": exact where there is an exact route, else estimated.
        norms: which norms to compute, of "frobenius" and "spectral"; the others are NaN.
        parts: whether to compute the linearization and the residual besides their sum.
        tolerance: relative standard error allowed for each estimated norm. From 1e-4 on,
            products may be rounded to bfloat16 or TF32 where that is faster and enough.
        generator: for the random numbers of estimates; the same at each call if None.
        max_memory: bytes that the computation may use beyond the graph of the forward
            pass; None for no bound.

    Returns:
        A mapping from parameter names to `LayerHessian`, in model order: the weights that
        require a gradient. NaN where the network's outputs are not finite.

    Raises:
        NotImplementedError: a function, module, loss or reduction that is not covered,
            active dropout, batch statistics, tied weights; the message names it.
        ValueError: shapes, batch sizes or class indices that do not fit.

    Source: arXiv 2004.09506 for the principle; derivation in the book, statements 2 and 3.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x = torch.randn(16, 4, generator=generator)
        >>> y = torch.randint(3, (16,), generator=generator)
        >>> report = layer_hessians(model, nn.CrossEntropyLoss(), x, y)
        >>> list(report)
        ['0.weight', '2.weight']
        >>> report["0.weight"].residual.frobenius  # ReLU: the linearization is exact
        0.0
    """
    options = Options(
        method=method,
        norms=norms,
        parts=parts,
        tolerance=tolerance,
        generator=generator,
        max_memory=max_memory,
    )
    check_batch(inputs, targets)
    if is_chain(model, inputs):
        return chain_hessians(model, loss_fn, inputs, targets, options)
    return graph_hessians(model, loss_fn, inputs, targets, options)
