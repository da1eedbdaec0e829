"""Statements 13 and 14 on networks so small that all matrices can be formed."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

from hessinit_book.chapters.safe_step.kernels import coherence, softmax_roots
from hessinit_book.networks.dense import critical_network
from hessinit_book.randomness import generator
from hessinit_book.statistics.rounding import rounded
from hessinit_lib.hessians import cross_layer

WIDTHS = [5, 6, 4, 3]
_LIMIT_WIDTHS, _LIMIT_DRAWS, _SAMPLES = (64, 128, 256, 512), 32, 4


def checks(seed: int) -> dict[str, dict[str, Any]]:
    """Compare formulas with dense matrices, bounds with what they bound, a rate with its law."""
    stream = generator(seed, "checks")
    blocks, norms, pairs, bounds, seconds = [], [], [], [], []
    for activation in ("tanh", "relu"):
        model = critical_network(activation, WIDTHS, stream, 1.5, torch.float64)
        x = torch.randn(4, WIDTHS[0], generator=stream, dtype=torch.float64) + 1
        y = torch.randint(WIDTHS[-1], (4,), generator=stream)
        dense = _hessian(model, x, y)
        report = cross_layer(model, F.cross_entropy, x, y, method="exact")
        linear = _linearized(model, x)
        for (j, lower), (k, upper) in itertools.combinations(enumerate(report.names), 2):
            true = dense[upper][lower].detach().reshape(model.get_parameter(upper).numel(), -1)
            built = _formula(model, x, y, j, k)
            blocks.append(float((built - true).norm() / true.norm()))
            norms.append(abs(float(report.frobenius[k, j] / true.norm()) - 1))
            pairs.append(_pair_error(linear[upper], linear[lower]))
        found = coherence(model.float(), x.float())
        layers, whole = found.layers, found.whole
        bounds += [max(layers) / whole, whole / sum(layers)]
        seconds.append(found.least * sum(layers) / whole)
    off, wide_seconds = _wide_limit(seed)
    return {
        f"statement_{key}": {"what": what, "value": rounded(value), "allowed": allowed}
        for key, what, value, allowed in (
            ("13", "blocks between layers by their formula against dense ones", max(blocks), 1e-10),
            ("13_norms", "norms of `cross_layer` against dense blocks", max(norms), 1e-10),
            ("13_pairs", "mean over all signs against dense linearizations", max(pairs), 1e-10),
            ("14", "largest eigenvalue over its bounds", max(bounds), 1 + 1e-5),
            (
                "14_second_order",
                "bound by second order over the ratio",
                max(seconds + wide_seconds),
                1 + 1e-5,
            ),
            ("14_width", "power of the width in the wide limit, off from -1", off, 0.35),
        )
    }


def _hessian(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    weights = {name: p.detach() for name, p in model.named_parameters() if p.ndim > 1}
    return hessian(lambda w: F.cross_entropy(functional_call(model, w, (x,)), y))(weights)


def _formula(model: nn.Sequential, x: Tensor, y: Tensor, j: int, k: int) -> Tensor:
    """Build the block of layers j < k, counted from 0, by parts 1 of statement 13."""
    total = torch.zeros(())
    linear = [place for place, module in enumerate(model) if isinstance(module, nn.Linear)]
    low, high = linear[j], linear[k]
    for sample, label in zip(x, y, strict=True):
        below = model[:low](sample)
        a_low = model[low](below)
        between = model[low + 1 : high]
        z = between(a_low)

        def loss(a: Tensor, label: Tensor = label) -> Tensor:
            return F.cross_entropy(model[high + 1 :](a)[None], label[None])

        a_high = model[high](z)
        q = jacrev(between)(a_low)
        d, curved = jacrev(loss)(a_high), hessian(loss)(a_high)
        moved = curved @ model[high].weight @ q
        t = moved[:, None] * z[None, :, None] + d[:, None, None] * q
        total = total + t[:, :, :, None] * below
    return (total / len(x)).reshape(model[high].weight.numel(), -1).detach()  # pyright: ignore[reportCallIssue]


def _linearized(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    r"""Give $J_b^\top S_b$ of each layer for two of the samples, shape (2, weights, C)."""
    weights = {name: p.detach() for name, p in model.named_parameters() if p.ndim > 1}
    roots = softmax_roots(functional_call(model, weights, (x[:2],)).detach())
    jacobians: Any = jacrev(lambda w: functional_call(model, w, (x[:2],)))(weights)
    return {name: j.detach().flatten(2).mT @ roots.mT for name, j in jacobians.items()}


def _pair_error(upper: Tensor, lower: Tensor) -> float:
    """Compare part 4 of statement 13, for all signs in both passes, with the dense block."""
    true = torch.einsum("bic,bjc->ij", upper, lower).norm() / 2
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2 * WIDTHS[-1]))).double()
    e = signs.view(len(signs), 2, -1)
    above, below = (torch.einsum("bic,sbc->sbi", m, e) for m in (upper, lower))
    products = [torch.einsum("sbi,tci->stbc", g, g) for g in (above, below)]
    mean = (products[0] * products[1]).sum((2, 3)).mean() / 4
    return abs(float(mean.sqrt() / true) - 1)


def _wide_limit(seed: int) -> tuple[float, list[float]]:
    """Fit the power of the width in the mean of one less the ratio; samples of equal cosines.

    Returns:
        How far the power is from -1, and the bounds of part 3 over the ratios.
    """
    stream = generator(seed, "wide limit")
    base = torch.eye(_SAMPLES + 1)
    x = 0.6 * base[0] + 0.8 * base[1:]  # cosines 0.36
    roots = torch.diag(torch.tensor([1.0, 0.6, 0.3]).sqrt()).expand(_SAMPLES, 3, 3)
    means, seconds = [], []
    for width in _LIMIT_WIDTHS:
        lacking = []
        for _ in range(_LIMIT_DRAWS):
            model = critical_network("relu", [_SAMPLES + 1, width, width, width, 3], stream)
            found = coherence(model, x, roots)
            ratio = found.whole / sum(found.layers)
            lacking.append(1 - ratio)
            seconds.append(found.least / ratio)
        means.append(math.log(sum(lacking) / len(lacking)))
    widths = torch.tensor(_LIMIT_WIDTHS).double().log()
    centered = widths - widths.mean()
    slope = float(centered @ torch.tensor(means).double() / centered.square().sum())
    return abs(slope + 1), seconds
