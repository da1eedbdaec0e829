r"""Norms of Gauss-Newton blocks, estimated from a few random mixtures of the factors.

With independent random signs $\epsilon$, a mixture $j_b = \sum_i \epsilon_{bi} j_{bi}$ of a
sample's Jacobian rows takes one backward pass. For two independent mixtures j and j'

$$\mathbb{E}\, (j_b \cdot j'_{b'})^2 = \sum_{i,i'} (j_{bi} \cdot j_{b'i'})^2,$$

so $B^{-2} \sum_{b,b'} (j_b \cdot j'_{b'})^2$ estimates $\|G\|_F^2$ without bias, and m
mixtures give m (m - 1) such sums.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.graph.capture import CapturedLayer
from hessinit_lib.hessians.graph.passes import layer_grams
from hessinit_lib.hessians.numerics.estimates import Estimate, combine
from hessinit_lib.hessians.numerics.precision import may_round
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import BlockNorms

# Mixtures to draw at a time: from fewer, the error is not known well enough.
_FEWEST = 4

# Samples from which on intervals hold: of fewer, single ones rule the error. (Measured: they
# cover 0.93 to 0.97 from 32 on, but at 8 and 16 below 0.90. Exact norms are cheap there.)
_SAMPLES = 32


def squared_sum(products: Float[Tensor, "m b m b"]) -> Estimate:
    r"""Estimate $\sum_{b,b',i,i'} (j_{bi} \cdot j_{b'i'})^2$ from the products of m mixtures.

    To first order (Hoeffding) the error is a sum over samples b and mixtures a of what the
    signs there change; the part of the sum with $j_b^a$ on the left, whose expectation is
    the same for all a, shows how much that is.

    Args:
        products: $j_b^a \cdot j_{b'}^{a'}$ of at least three mixtures.

    Example:
        >>> j = torch.tensor([[[1.0], [2.0]], [[1.0], [-2.0]], [[-1.0], [2.0]]])
        >>> squared_sum(torch.einsum("abp,cdp->abcd", j, j)).mean  # (1 + 4)^2
        25.0
    """
    count = len(products)
    squares = products.double().square()
    own = squares.diagonal(dim1=0, dim2=2).sum(1).T
    rows = (squares.sum((2, 3)) - own) / (count - 1)
    # Two rows share each product, which hides some of their spread. Leaving mixtures out in
    # turn (the jackknife) multiplies by the square of this ratio, which is too much.
    return _by_sample(rows, 4.0 * (count - 1) / (count - 2))


def _by_sample(rows: Float[Tensor, "m b"], scale: float) -> Estimate:
    """Sum over samples, average over mixtures; the error from each sample's own spread."""
    count = len(rows)
    spread = rows.var(0)
    variance, fourth = float(spread.sum()), float(spread.square().sum())
    # Welch and Satterthwaite: a variance from m draws has E s^4 = (1 + 2 / (m - 1)) sigma^4.
    degrees = (count + 1) * variance**2 / fourth if fourth else math.inf
    return Estimate(float(rows.mean(0).sum()), scale * variance / count, degrees)


def estimated_norms(
    logits: Float[Tensor, "b c"],
    layers: list[CapturedLayer],
    columns: Float[Tensor, "r b c"],
    options: Options,
) -> dict[str, BlockNorms] | None:
    """Estimate Frobenius norms and traces of all blocks, to the tolerance.

    Args:
        logits: with their graph.
        layers: those that the logits depend on.
        columns: the factors at the logits.
        options: tolerance, generator, max_memory.

    Returns:
        The norms by name; None if the exact ones cost less.
    """
    rank, batch = columns.shape[:2]
    generator = options.generator or torch.Generator().manual_seed(0)
    sums: dict[str, list[tuple[int, Estimate]]] = {layer.name: [] for layer in layers}
    traces: dict[str, list[tuple[int, Estimate]]] = {layer.name: [] for layer in layers}
    # The smallest errors that were met are 0.5 / sqrt(B m): no use trying if that is too much.
    likely = 0.25 / (batch * options.tolerance**2)
    done, count = 0, max(_FEWEST, math.ceil(likely))
    while batch >= _SAMPLES and count < rank:
        signs = torch.randint(2, (count, batch, rank), generator=generator)
        mixed = torch.einsum("mbr,rbc->mbc", (2 * signs - 1).to(columns), columns)
        for gram in layer_grams(
            logits,
            layers,
            mixed,
            by_rows=True,
            rounded=may_round(logits, options.tolerance),
            limit=options.max_memory,
        ):
            products = gram.products()
            sums[gram.layer.name].append((count, squared_sum(products)))
            own = products.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1).double()
            traces[gram.layer.name].append((count, _by_sample(own, 1.0)))
        done += count
        norms = {name: _norms(combine(sums[name]), combine(traces[name]), batch) for name in sums}
        errors = [norm.stderr / norm.frobenius for norm in norms.values() if norm.frobenius]
        off = max(errors, default=0.0)
        if not off > options.tolerance:
            return norms
        count = max(_FEWEST, math.ceil(1.1 * done * (off / options.tolerance) ** 2) - done)
    return None


def _norms(square: Estimate, trace: Estimate, batch: int) -> BlockNorms:
    norm = math.sqrt(square.mean)
    error = square.error / (2 * norm) if norm else 0.0
    return BlockNorms(
        norm / batch, math.nan, trace.mean / batch, error / batch, trace.error / batch
    )
