r"""Norms of Gauss-Newton blocks, estimated from pairs of random sketches of the factors.

With random signs, a sketch $s_b = \sum_i \epsilon_{bi} s_{bi}$ has $\mathbb{E}\, s_b s_b^\top
= A_b$. So for a pair of independent sketches $s, s'$, and $k_{bb'} = z_b \cdot z_{b'}$,

$$X = B^{-2} \sum_{b,b'} k_{bb'}^2 (s_b \cdot s'_{b'})^2$$

is an unbiased estimate of $\|G\|_F^2$, with two rows a sample in place of all C - 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.chain.backward import LayerCurvature, backward
from hessinit_lib.hessians.chain.network import Stage
from hessinit_lib.hessians.loss import LossCurvature
from hessinit_lib.hessians.numerics.estimates import Estimate, Sketch, sketched_norms
from hessinit_lib.hessians.numerics.precision import fast_products, narrowed
from hessinit_lib.hessians.numerics.random import cpu_generator, random_signs
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import BlockNorms


def chain_sketched_norms(
    stages: list[Stage], loss: LossCurvature, options: Options
) -> dict[str, BlockNorms] | None:
    """Estimate Frobenius norm and trace of all blocks but the last to the tolerance.

    The network has no curvature residual, see `Chain.has_residual`. Blocks come last layer first;
    that of the last layer, which costs next to nothing, is left to the exact route. None where
    the exact norms cost less.
    """
    batch, rank, _ = loss.factor.shape
    tolerance = options.tolerance
    generator = cpu_generator(options.generator)
    kernels: dict[str, Tensor] = {}

    def sketch(count: int, known: Mapping[str, BlockNorms]) -> Iterator[tuple[str, list[Sketch]]]:
        layers = backward(stages, _sketched_loss(loss, count, generator), tolerance)
        next(layers)
        for layer in layers:
            name, norms = layer.name, known.get(layer.name)
            if norms is not None and norms.stderr <= tolerance * norms.frobenius:
                continue
            kernel = kernels.get(name)
            if kernel is None:
                kernel = layer.kernel(tolerance)
                if options.max_memory is None:
                    kernels[name] = kernel
            yield name, pair_sketches(layer, kernel, tolerance)

    # An exact norm takes r (r + 1) / 2 products of the size of a pair's, and no second pass
    # over each. No more rows at a time than all factors have.
    limit, most = rank * (rank + 1) // 8, max(1, rank // 2)
    return sketched_norms(
        sketch, batch, tolerance, lambda done, needed: done + needed <= limit, most=most
    )


def _sketched_loss(loss: LossCurvature, pairs: int, generator: torch.Generator) -> LossCurvature:
    """Draw independent sketches of each sample's factor rows, two for each pair."""
    batch, rank, _ = loss.factor.shape
    signs = random_signs((batch, 2 * pairs, rank), generator, loss.factor)
    return LossCurvature(loss.gradient, torch.bmm(signs, loss.factor))


def pair_sketches(
    layer: LayerCurvature, kernel: Float[Tensor, "b b"], tolerance: float
) -> list[Sketch]:
    r"""Estimate B^2 times the squared Frobenius norm, and B times the trace, of one block.

    The error of $X = B^{-2} \sum_{bb'} x_{bb'}$ is to first order (Hoeffding) a sum over
    samples of what their own signs change, in $s_b$ and in $s'_b$. Row b of x is quadratic
    in $s_b$, column b the same function of $s'_b$ up to the noise of the other samples: so
    $r_b - c_b$, with r and c their sums, tells both effects of sample b. Its own term
    $x_{bb}$ cancels there; as both signs move it, it is added in full.

    The layer's factor holds the sketches of p pairs, shape (B, 2 p, n); each pair gives one
    estimate. For the tolerance see `fast_products`.
    """
    rows = layer.factor.unbind(1)
    norms = torch.linalg.vector_norm(layer.factor, dim=2).double()
    sizes = (norms * torch.linalg.vector_norm(layer.inputs, dim=1, keepdim=True)).square().unbind(1)
    pairs = []
    for index in range(0, len(rows), 2):
        left, right = rows[index], rows[index + 1]
        with fast_products(kernel.dtype, tolerance, kernel.numel() * left.shape[1]) as rounded:
            product = narrowed(left, rounded) @ narrowed(right, rounded).mT
        squares = product.to(kernel).mul_(kernel).square_()
        by_row, by_column, both = torch.stack(
            (squares.sum(1), squares.sum(0), squares.diagonal())
        ).double()
        square = _sum_of_deviations(by_row.sum(), (by_row - by_column).abs() + both)
        own, other = sizes[index], sizes[index + 1]
        trace = _sum_of_deviations((own + other).sum() / 2, (own - other) / 2)
        pairs.append(Sketch(1, square, trace))
    return pairs


def _sum_of_deviations(total: Float[Tensor, ""], deviations: Float[Tensor, " b"]) -> Estimate:
    """Make an estimate whose error is the sum of independent ones, seen once each."""
    squares = deviations.square()
    mean, variance, fourth = torch.stack((total, squares.sum(), squares.square().sum())).tolist()
    # Satterthwaite, (sum of variances)^2 / sum of variances^2, both estimated without bias
    # from normal deviations.
    return Estimate(mean, variance, 3 * variance**2 / fourth - 2 if fourth else math.inf)
