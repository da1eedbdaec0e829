r"""Norms of Gauss-Newton blocks, estimated from a few random sketches of the factors.

With independent random signs $\epsilon$, a sketch $j_b = \sum_i \epsilon_{bi} j_{bi}$ of a
sample's Jacobian rows takes one backward pass. For two independent sketches j and j'

$$\mathbb{E}\, (j_b \cdot j'_{b'})^2 = \sum_{i,i'} (j_{bi} \cdot j_{b'i'})^2,$$

so $B^{-2} \sum_{b,b'} (j_b \cdot j'_{b'})^2$ estimates $\|G\|_F^2$ without bias, and m
sketches give m (m - 1) such sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.graph.backward import layer_grams
from hessinit_lib.hessians.graph.capture import CapturedLayer
from hessinit_lib.hessians.numerics.estimates import Estimate, Sketch, random_signs, sketched_norms
from hessinit_lib.hessians.numerics.precision import may_round
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import BlockNorms

# Sketches to draw at a time: from fewer, the error is not known well enough.
_FEWEST = 4


def graph_sketched_norms(
    logits: Float[Tensor, "b c"],
    layers: list[CapturedLayer],
    columns: Float[Tensor, "r b c"],
    options: Options,
) -> dict[str, BlockNorms] | None:
    """Estimate Frobenius norms and traces of all blocks to the tolerance.

    None if the exact ones cost less.
    """
    rank, batch = columns.shape[:2]
    generator = options.generator or torch.Generator().manual_seed(0)

    def sketch(count: int, _: object) -> Iterator[tuple[str, list[Sketch]]]:
        signs = random_signs((count, batch, rank), generator, columns)
        for gram in layer_grams(
            logits,
            layers,
            torch.einsum("mbr,rbc->mbc", signs, columns),
            by_rows=True,
            rounded=may_round(logits, options.tolerance),
            limit=options.max_memory,
        ):
            products = gram.products()
            own = products.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1).double()
            yield gram.layer.name, [Sketch(count, squared_sum(products), _sum_of_means(own, 1.0))]

    # The exact norms take a backward pass for each factor.
    return sketched_norms(
        sketch, batch, options.tolerance, lambda done, needed: needed < rank, least=_FEWEST
    )


def squared_sum(products: Float[Tensor, "m b m b"]) -> Estimate:
    r"""Estimate $\sum_{b,b',i,i'} (j_{bi} \cdot j_{b'i'})^2$ from the products of m sketches.

    To first order (Hoeffding) the error is a sum over samples b and sketches a of what the
    signs there change; the part of the sum with $j_b^a$ on the left, whose expectation is
    the same for all a, shows how much that is.

    Args:
        products: $j_b^a \cdot j_{b'}^{a'}$ of at least three sketches.

    Example:
        >>> j = torch.tensor([[[1.0], [2.0]], [[1.0], [-2.0]], [[-1.0], [2.0]]])
        >>> squared_sum(torch.einsum("abp,cdp->abcd", j, j)).mean  # (1 + 4)^2
        25.0
    """
    count = len(products)
    squares = products.double().square()
    own = squares.diagonal(dim1=0, dim2=2).sum(1).T
    rows = (squares.sum((2, 3)) - own) / (count - 1)
    # Two rows share each product, which hides some of their variance. Leaving sketches out in
    # turn (the jackknife) multiplies by the square of this ratio, which is too much.
    return _sum_of_means(rows, 4.0 * (count - 1) / (count - 2))


def _sum_of_means(draws: Float[Tensor, "m b"], scale: float) -> Estimate:
    """Average over sketches, sum over samples; the error from each sample's own variance."""
    count = len(draws)
    variances = draws.var(0)
    variance, fourth = float(variances.sum()), float(variances.square().sum())
    # Welch and Satterthwaite: a variance from m draws has E s^4 = (1 + 2 / (m - 1)) sigma^4.
    degrees = (count + 1) * variance**2 / fourth if fourth else math.inf
    return Estimate(float(draws.mean(0).sum()), scale * variance / count, degrees)
