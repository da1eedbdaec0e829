r"""Cross-layer blocks of any network, estimated: by pairs of passes, or by products with vectors.

The passes that tell the norms of the layers' own blocks of the Gauss-Newton matrix tell those of
all pairs: with $g_b^k$ the gradient of sample b in layer k for random vectors at the outputs, and
$g'$ for others,

$$\|G_{jk}\|_F^2 = \mathbb{E} \sum_{b,c} (g_b^j \cdot g_c'^j) (g_b^k \cdot g_c'^k) ,$$

if samples do not mix. For the whole Hessian, and v of independent normal entries in layer k, one
product gives $H_{jk} v$ for all layers j, and $\mathbb{E} |H_{jk} v|^2 = \|H_{jk}\|_F^2$; likewise
for the linearization and the residual.

Source: Hutchinson (1990) for products; of passes, the book's statement 13.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, combinations_with_replacement

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.estimate.hessians import block_products
from hessinit_lib.hessians.ggn.passes import MOST, Passes
from hessinit_lib.hessians.numerics.estimates import Estimate, Sketch, combine, sketch_of
from hessinit_lib.hessians.numerics.random import cpu_generator, standard_normal
from hessinit_lib.hessians.options import Options

# Training steps of a call, and of a vector with its gradients' products or of a graph; and how many
# vectors tell an error, of pairs and of products.
_ONCE, _EACH, _GRAPH = 1.0, 1.1, 2.0
_FEWEST_PASSES, _FEWEST_PRODUCTS = 3, 6
_ALL = "all"  # the name of the block of all layers

Squares = dict[tuple[int, int], Estimate]
r"""Estimates of $\|G_{jk}\|_F^2$ by places j <= k."""


def ggn_squares(case: Case, options: Options) -> Squares:
    r"""Estimate the squared norms of all blocks, those of single layers included.

    Vectors are added until the standard error of each norm is within the tolerance, relative to
    $(\|G_{jj}\| \|G_{kk}\|)^{1/2}$, which is the largest it can be; or the budget is spent.

    Args:
        case: a model and a batch.
        options: `tolerance`, `generator`, `budget` and `max_memory` count.

    Returns:
        The estimates; NaN where outputs, loss or its gradient are not finite.

    Raises:
        NotImplementedError, ValueError: see `Passes`.
    """
    names = [*case.weights]
    with torch.no_grad():
        passes = Passes(case, options.max_memory)
        if not passes.finite:
            return _unknown(len(names))
        generator = cpu_generator(options.generator)
        found: dict[tuple[int, int], list[Sketch]] = {}
        most = max(_FEWEST_PASSES, int(min((options.steps - _ONCE) / _EACH, 1 << 20)))
        needed, done = _FEWEST_PASSES, 0
        with tqdm(desc="cross-layer norms", unit="pass", delay=3, leave=False) as bar:
            while True:
                bar.total = done + needed
                count = min(needed, max(MOST, _FEWEST_PASSES))
                for pair, sketch in _drawn(passes, names, count, generator).items():
                    found.setdefault(pair, []).append(sketch)
                done += count
                bar.update(count)
                squares = _squares(found, len(names))
                wanted = int(1.1 * done * _excess(squares, squares, options.tolerance) ** 2)
                needed = min(max(wanted - done, _FEWEST_PASSES), most - done)
                if wanted <= done or needed < _FEWEST_PASSES:
                    return squares


def _drawn(
    passes: Passes, names: Sequence[str], count: int, generator: torch.Generator
) -> dict[tuple[int, int], Sketch]:
    """Go back from some vectors, and give what they tell about each pair of layers."""
    drawn = [passes.hessian.draw(generator) for _ in range(count)]
    both = len(drawn[0]) == 2  # (e, A e) in place of S e twice
    every = list(combinations(range(count), 2))
    pairs = {(a, c): (2 * a, 2 * c + 1) if both else (a, c) for a, c in every}
    if both:
        pairs |= {(c, a): (2 * c, 2 * a + 1) for a, c in every}
    vectors = [vector for pair in drawn for vector in pair]
    products: dict[int, Mapping[tuple[int, int], Tensor]] = {}
    places = {name: place for place, name in enumerate(names)}
    for name, gradients in passes.gradients(names, vectors):
        matrices, _, _ = gradients.inner_products(list(pairs.values()))
        products[places[name]] = dict(zip(pairs, matrices, strict=True))
    like = next(iter(vectors))
    nothing = [like.new_zeros(passes.samples) for _ in range(count)]  # lengths are not asked for
    return {
        (j, k): sketch_of(_joined(products[j], products[k], every), nothing)
        for j, k in combinations_with_replacement(sorted(products), 2)
    }


def _joined(
    lower: Mapping[tuple[int, int], Tensor],
    upper: Mapping[tuple[int, int], Tensor],
    every: Sequence[tuple[int, int]],
) -> dict[tuple[int, int], Tensor]:
    """Lay the inner products of two layers out so that each is multiplied by the other's."""
    found: dict[tuple[int, int], Tensor] = {}
    for a, c in every:
        found[a, c], found[c, a] = lower[a, c], upper.get((c, a), upper[a, c].mT)
    return found


def _squares(found: Mapping[tuple[int, int], Sequence[Sketch]], layers: int) -> Squares:
    nothing = Estimate(0.0, 0.0, 1.0)  # the outputs do not depend on one of them
    return {
        pair: combine([(each.number, each.square) for each in found[pair]])
        if pair in found
        else nothing
        for pair in combinations_with_replacement(range(layers), 2)
    }


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
        unknown = _unknown(len(names))
        return unknown, unknown, unknown
    generator = cpu_generator(options.generator)
    sizes = [weight.numel() for weight in case.weights.values()]
    each = products.cost[_ALL] * len(names)
    most = max(_FEWEST_PRODUCTS, int(min((options.steps - _GRAPH) / each, 1 << 20)))
    lengths: list[Tensor] = []  # of each round, shape (3, j, k)
    needed = _FEWEST_PRODUCTS
    with tqdm(desc="cross-layer norms", unit="product", delay=3, leave=False) as bar:
        while True:
            bar.total = (len(lengths) + needed) * len(names)
            for _ in range(needed):
                columns = []
                for place in range(len(names)):
                    v = products.like.new_zeros(1, sum(sizes))
                    piece = v[0].split(sizes)[place]
                    piece.copy_(standard_normal((len(piece),), generator, products.like))
                    column = products.apply({_ALL: v})[_ALL][:, 0].split(sizes, 1)
                    columns.append(torch.stack([_lengths(parts) for parts in column], 1))
                    bar.update()
                lengths.append(torch.stack(columns, 2))
            done = len(lengths)
            squares = [_estimates(torch.stack(lengths)[:, kind]) for kind in range(3)]
            excess = max(_excess(found, squares[0], options.tolerance) for found in squares)
            wanted = int(1.1 * done * excess**2)
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


def _unknown(layers: int) -> Squares:
    pairs = combinations_with_replacement(range(layers), 2)
    return dict.fromkeys(pairs, Estimate(math.nan, math.nan, 1.0))


def _excess(squares: Squares, whole: Squares, tolerance: float) -> float:
    r"""Give the largest error of a norm over the tolerance.

    Relative to $(\|H_{jj}\| \|H_{kk}\|)^{1/2}$, with the norms of `whole`.
    """
    worst = 0.0
    for (j, k), square in squares.items():
        largest = (max(whole[j, j].mean, 0.0) * max(whole[k, k].mean, 0.0)) ** 0.5
        norm = max(square.mean, 0.0) ** 0.5
        if largest:
            worst = max(worst, square.error / (norm + largest**0.5) / largest**0.5)
    return worst / tolerance
