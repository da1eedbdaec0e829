r"""Cross-layer blocks of the Hessian of any model, by products with random vectors.

For v of independent normal entries in layer k, one product gives $H_{jk} v$ for all layers j, and
$\mathbb{E} |H_{jk} v|^2 = \|H_{jk}\|_F^2$; likewise for the linearization and the residual.

Source: Hutchinson (1990).
"""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.cross.ggn import Squares
from hessinit_lib.hessians.estimate.hessians import block_products
from hessinit_lib.hessians.numerics.estimates import Estimate
from hessinit_lib.hessians.numerics.random import cpu_generator, standard_normal
from hessinit_lib.hessians.options import Options

_ALL = "all"  # the name of the block of all layers
_ONCE, _FEWEST = 2.0, 6  # training steps of the graph; vectors that tell an error


def product_squares(case: Case, options: Options) -> tuple[Squares, Squares, Squares]:
    r"""Estimate the squared norms of all blocks of H, of its linearization and of its residual.

    A vector for each layer is added until each norm's standard error is within the tolerance,
    relative to $(\|H_{jj}\| \|H_{kk}\|)^{1/2}$, or the budget is spent.

    Args:
        case: a model and a batch.
        options: `tolerance`, `generator`, `budget` and `max_memory` count.

    Returns:
        Estimates for H, G and R; NaN where outputs, loss or its gradient are not finite.

    Raises:
        NotImplementedError, ValueError: see `BlockProducts`.
    """
    names = [*case.weights]
    products = block_products(case, {_ALL: names}, options)
    if not products.finite:
        pairs = combinations_with_replacement(range(len(names)), 2)
        unknown = dict.fromkeys(pairs, Estimate(math.nan, math.nan, 1.0))
        return unknown, unknown, unknown
    generator = cpu_generator(options.generator)
    sizes = [weight.numel() for weight in case.weights.values()]
    each = products.cost[_ALL] * len(names)
    most = max(_FEWEST, int(min((options.steps - _ONCE) / each, 1 << 20)))
    lengths: list[Tensor] = []  # of each round, shape (3, j, k)
    needed = _FEWEST
    with tqdm(desc="cross-layer norms", unit="product", delay=3, leave=False) as bar:
        while True:
            bar.total = (len(lengths) + needed) * len(names)
            for _ in range(needed):
                columns = []
                for place in range(len(names)):
                    v = products.like.new_zeros(1, sum(sizes))
                    piece = v[0].split(sizes)[place]
                    piece.copy_(standard_normal((len(piece),), generator, products.like))
                    found = products.apply({_ALL: v})[_ALL][:, 0].split(sizes, 1)
                    columns.append(torch.stack([_lengths(parts) for parts in found], 1))
                    bar.update()
                lengths.append(torch.stack(columns, 2))
            done = len(lengths)
            squares = [_estimates(torch.stack(lengths)[:, kind]) for kind in range(3)]
            wanted = int(1.1 * done * _excess(squares, options.tolerance) ** 2)
            needed = min(wanted, most) - done
            if needed <= 0:
                return squares[0], squares[1], squares[2]


def _lengths(parts: Tensor) -> Tensor:
    """Give |Hv|^2, |Gv|^2 and |Rv|^2 from G v and R v."""
    linear, residual = parts.double().cpu()
    return torch.stack([x.square().sum() for x in (linear + residual, linear, residual)])


def _estimates(lengths: Tensor) -> Squares:
    """Average over rounds and over both orders of a pair, shape (rounds, j, k)."""
    draws = (lengths + lengths.mT) / 2
    means, variances = draws.mean(0), draws.var(0) / len(draws)
    return {
        (j, k): Estimate(means[j, k].item(), variances[j, k].item(), len(draws) - 1.0)
        for j, k in combinations_with_replacement(range(lengths.shape[1]), 2)
    }


def _excess(squares: list[Squares], tolerance: float) -> float:
    worst = 0.0
    for found in squares:
        for (j, k), square in found.items():
            largest = (squares[0][j, j].mean * squares[0][k, k].mean) ** 0.5
            norm = max(square.mean, 0.0) ** 0.5
            if largest:
                worst = max(worst, square.error / (norm + largest**0.5) / largest**0.5)
    return worst / tolerance
