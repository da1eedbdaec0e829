r"""Frobenius norms of Gauss-Newton blocks, estimated from pairs of random mixtures.

With random signs, $s_b = \sum_i \epsilon_{bi} s_{bi}$ has $\mathbb{E}\, s_b s_b^\top = A_b$.
So for a pair of independent mixtures $s, s'$, and $k_{bb'} = z_b \cdot z_{b'}$,

$$X = B^{-2} \sum_{b,b'} k_{bb'}^2 (s_b \cdot s'_{b'})^2$$

is an unbiased estimate of $\|G\|_F^2$, with two rows a sample in place of all C - 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.chain.backward import LayerCurvature, backward
from hessinit_lib.hessians.chain.network import Stage
from hessinit_lib.hessians.loss import LossCurvature
from hessinit_lib.hessians.numerics.estimates import Estimate, combine
from hessinit_lib.hessians.numerics.precision import fast_products, narrowed
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import BlockNorms

# Samples below which a pair's error is not known well enough: intervals held in 0.93 to 0.97
# of the draws from 32 samples on, in 0.84 to 0.96 with 8. Exact norms are cheap there.
_FEWEST = 32


class Pair(NamedTuple):
    """What one pair of mixtures tells: estimates of the squared norm and of the trace."""

    square: Estimate
    trace: Estimate


def estimated_norms(
    stages: list[Stage], loss: LossCurvature, options: Options
) -> dict[str, BlockNorms] | None:
    """Estimate Frobenius norm and trace of all blocks but the last to the tolerance.

    Args:
        stages: a network without curvature residual, see `has_residual`.
        loss: gradient and factor at the logits.
        options: tolerance and generator.

    Returns:
        Norms by parameter, last layer first. That of the last layer, which costs next to
        nothing, is left to the exact route. None where the exact ones cost less.
    """
    batch, rank, _ = loss.factor.shape
    # An exact norm takes r (r + 1) / 2 products of the size of a pair's, and no second pass
    # over each; a pair's relative error was 0.2 / sqrt B to 0.5 / sqrt B.
    limit = rank * (rank + 1) // 8
    done, count = 0, math.ceil(0.25 / (batch * options.tolerance**2))
    if batch < _FEWEST:
        return None
    generator = options.generator or torch.Generator().manual_seed(0)
    kernels: dict[str, Tensor] = {}
    pairs: dict[str, list[Pair]] = {}
    norms: dict[str, BlockNorms] = {}
    while count and done + count <= limit:
        off = 0.0
        now = min(count, max(1, rank // 2))  # no more rows at a time than all factors have
        layers = backward(stages, _mixtures(loss, now, generator), options.tolerance)
        next(layers)
        for layer in layers:
            name, known = layer.name, norms.get(layer.name)
            if known is not None and known.stderr <= options.tolerance * known.frobenius:
                continue
            kernel = kernels.get(name)
            if kernel is None:
                kernel = layer.kernel(options.tolerance)
                if options.max_memory is None:
                    kernels[name] = kernel
            found = pairs.setdefault(name, [])
            found += pair_estimates(layer, kernel, options.tolerance)
            norms[name] = known = _average(found, batch)
            if known.frobenius:
                off = max(off, known.stderr / known.frobenius / options.tolerance)
        done += now
        # The error of the mean falls with the root of the number of pairs.
        count = math.ceil(1.1 * done * off**2) - done if off > 1 else 0
    return None if count else norms


def _mixtures(loss: LossCurvature, pairs: int, generator: torch.Generator) -> LossCurvature:
    """Draw independent mixtures of each sample's factor rows, two for each pair."""
    batch, rank, _ = loss.factor.shape
    signs = torch.randint(2, (batch, 2 * pairs, rank), generator=generator, device=generator.device)
    return LossCurvature(loss.gradient, torch.bmm((2 * signs - 1).to(loss.factor), loss.factor))


def pair_estimates(
    layer: LayerCurvature, kernel: Float[Tensor, "b b"], tolerance: float
) -> list[Pair]:
    r"""Estimate B^2 times the squared Frobenius norm, and B times the trace, of one block.

    The error of $X = B^{-2} \sum_{bb'} x_{bb'}$ is to first order (Hoeffding) a sum over
    samples of what their own signs change, in $s_b$ and in $s'_b$. Row b of x is quadratic
    in $s_b$, column b the same function of $s'_b$ up to the noise of the other samples: so
    $r_b - c_b$, with r and c their sums, tells both effects of sample b. Its own term
    $x_{bb}$ cancels there; as both signs move it, it is added in full.

    Args:
        layer: its factor holds the mixtures of p pairs, shape (B, 2 p, n).
        kernel: the Gram matrix of the inputs.
        tolerance: relative error allowed, see `fast_products`.

    Returns:
        One for each pair.
    """
    mixtures = layer.factor.unbind(1)
    norms = torch.linalg.vector_norm(layer.factor, dim=2).double()
    sizes = (norms * torch.linalg.vector_norm(layer.inputs, dim=1, keepdim=True)).square().unbind(1)
    pairs = []
    for index in range(0, len(mixtures), 2):
        left, right = mixtures[index], mixtures[index + 1]
        with fast_products(kernel.dtype, tolerance, kernel.numel() * left.shape[1]) as rounded:
            product = narrowed(left, rounded) @ narrowed(right, rounded).mT
        squares = product.to(kernel).mul_(kernel).square_()
        rows, columns, both = torch.stack(
            (squares.sum(1), squares.sum(0), squares.diagonal())
        ).double()
        own, other = sizes[index], sizes[index + 1]
        trace = _by_sample((own + other).sum() / 2, (own - other) / 2)
        pairs.append(Pair(_by_sample(rows.sum(), (rows - columns).abs() + both), trace))
    return pairs


def _by_sample(total: Float[Tensor, ""], deviations: Float[Tensor, " b"]) -> Estimate:
    """Make an estimate whose error is the sum of independent ones, seen once each."""
    squares = deviations.square()
    mean, variance, fourth = torch.stack((total, squares.sum(), squares.square().sum())).tolist()
    # Satterthwaite, (sum of variances)^2 / sum of variances^2, both estimated without bias
    # from normal deviations.
    return Estimate(mean, variance, 3 * variance**2 / fourth - 2 if fourth else math.inf)


def _average(pairs: list[Pair], batch: int) -> BlockNorms:
    square = combine([(1, pair.square) for pair in pairs])
    trace = combine([(1, pair.trace) for pair in pairs])
    norm = math.sqrt(square.mean)
    error = square.error / (2 * norm) if norm else 0.0
    return BlockNorms(
        norm / batch, math.nan, trace.mean / batch, error / batch, trace.error / batch
    )
