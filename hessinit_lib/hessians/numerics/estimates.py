"""Estimates from random sketches and probes, with standard errors that hold for few of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.numerics.lanczos import power_of_two
from hessinit_lib.hessians.report import BlockNorms

_NORMAL = 1.959964  # the 97.5 % quantile
_ONE_SIDED = 3.4e-6  # beyond 4.5 standard deviations of a normal distribution

# Samples from which on the intervals of sketched norms hold: of fewer, single ones rule the
# error. (Measured: they cover 0.93 to 0.97 from 32 on, but at 8 and 16 below 0.90. Exact
# norms are cheap there.)
_FEWEST_SAMPLES = 32


def widening(degrees: int) -> float:
    r"""Compute $t_{0.975,\nu} / z_{0.975}$, by which few degrees of freedom widen an interval.

    Args:
        degrees: degrees of freedom $\nu \ge 1$ of the variance's estimate.

    Source: Cornish-Fisher expansion of Student's quantile (Abramowitz and Stegun 26.7.5),
        within 0.1 % from 5 degrees of freedom on and 4 % too small at 2.

    Example:
        >>> round(1.959964 * widening(7), 2)  # tables: 2.365
        2.36
    """
    z, nu = _NORMAL, degrees
    terms = (
        (z**3 + z) / (4 * nu),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * nu**3),
    )
    return 1 + sum(terms) / z


def mean_and_error(
    samples: Float[Tensor, "*k n"], variance: Float[Tensor, "*k"] | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Average the last axis, and give the widened standard error of the average.

    Args:
        samples: independent draws, n of at least 2.
        variance: what is known of their variance from elsewhere; the larger one counts,
            since draws of a skewed distribution mostly show too small a variance.

    Returns:
        Mean and error, each of shape (*k,). Plus and minus 1.96 errors is a 95 % interval.

    Example:
        >>> import torch
        >>> mean, error = mean_and_error(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
        >>> f"{mean:.2f} {error:.3f}"  # 0.764 without widening
        '3.50 1.001'
    """
    count = samples.shape[-1]
    seen = samples.var(-1)
    larger = seen.maximum(seen.new_ones(()) * variance)
    return samples.mean(-1), (larger / count).sqrt() * widening(count - 1)


def error_of_low_draws(mean: float, degrees: float) -> float:
    r"""Give the error of which five reach from a mean of squares to the largest true one.

    The mean of lengths $|B w|^2$, w normal, is about $\operatorname{tr} B^2 \chi^2_\nu / \nu$. With
    q the quantile of $\chi^2_\nu / \nu$ at 3e-6, the true value is below mean / q, which for many
    degrees is about five of the usual errors.

    Args:
        mean: of the draws.
        degrees: $\nu$, of all draws together.

    Source: the larger of two quantiles that are too low, Wilson and Hilferty's (1931) and that
        of the density's first term at 0.

    Example:
        >>> round(error_of_low_draws(1.0, 8.0), 1), round(error_of_low_draws(1.0, 1e4), 4)
        (8.2, 0.0133)
    """
    half = degrees / 2
    first = math.exp((math.log(_ONE_SIDED) + math.lgamma(half + 1)) / half) / half
    cube = 1 - 2 / (9 * degrees) - 4.5 * math.sqrt(2 / (9 * degrees))
    return mean * (1 / max(first, cube**3) - 1) / 5


@dataclass(frozen=True)
class Estimate:
    """A mean, the variance of its error, and the degrees of freedom of that variance."""

    mean: float
    variance: float
    degrees: float

    @property
    def error(self) -> float:
        """Standard error, widened for few degrees of freedom."""
        return math.sqrt(self.variance) * widening(round(min(max(1.0, self.degrees), 1e6)))


def combine(estimates: Sequence[tuple[int, Estimate]]) -> Estimate:
    """Average independent estimates, each with its weight: the sketches it came from.

    Example:
        >>> combine([(1, Estimate(1.0, 2.0, 9.0)), (1, Estimate(3.0, 2.0, 9.0))])
        Estimate(mean=2.0, variance=1.0, degrees=18.0)
    """
    total = sum(weight for weight, _ in estimates)
    mean = sum(weight * each.mean for weight, each in estimates) / total
    parts = [((weight / total) ** 2 * each.variance, each.degrees) for weight, each in estimates]
    variance = sum(part for part, _ in parts)
    fourth = sum(part**2 / degrees for part, degrees in parts)
    return Estimate(mean, variance, variance**2 / fourth if fourth else math.inf)


class Sketch(NamedTuple):
    r"""What `number` sketches tell about $B^2 \|G\|_F^2$ and $B \operatorname{tr} G$ of a block."""

    number: int
    square: Estimate
    trace: Estimate


Products = Mapping[tuple[int, int], Float[Tensor, "b b"]]
"""Inner products of all samples, of pairs of vectors by their places."""


def sketch_of(products: Products, own: Sequence[Float[Tensor, " b"]]) -> Sketch:
    r"""Estimate $\|G\|_F^2$ and $\operatorname{tr} G$ with the variances of these estimates.

    To first order (Hoeffding) the error of the square is a sum over samples and vectors of what
    the signs there change. The part with $g^a_b$ on the left has the same expectation for all a,
    so that its spread over a tells how much that is.

    Args:
        products: $g^a_b \cdot g^{a'}_c$ of pairs a, a' of m vectors, shape (B, B) each. Where left
            and right factors differ, those of both orders.
        own: $|g^a_b|^2$ for each of the vectors, two at least.

    Example:
        >>> g = torch.tensor([[[1.0], [2.0]], [[1.0], [-2.0]], [[-1.0], [2.0]]])
        >>> pairs = {(a, c): g[a] @ g[c].T for a, c in ((0, 1), (0, 2), (1, 2))}
        >>> sketch = sketch_of(pairs, list(g.square().sum(2)))
        >>> sketch.square.mean, sketch.trace.mean  # (1 + 4)^2
        (25.0, 5.0)
    """
    count = len(own)
    rows = own[0].new_zeros(count, len(own[0]), dtype=torch.float64)
    alone = torch.zeros_like(rows[0])
    for a, c in combinations(range(count), 2):
        left = products[a, c]
        right = products[c, a].mT if (c, a) in products else left
        # Squares of small numbers leave the range of float32.
        unit = power_of_two(left.abs().max().item())
        squares = (left / unit) * (right / unit)
        scale = float(unit) ** 2 / (count - 1)
        rows[a] += scale * squares.sum(1, dtype=torch.float64)
        rows[c] += scale * squares.sum(0, dtype=torch.float64)
        alone += scale * squares.diagonal()
    if count == 2:
        # What both vectors move alike, the sample's own term, cancels in the difference.
        deviations = (rows[0] - rows[1]).abs() + alone
        square = _sum_over_samples(rows.mean(0), deviations.square(), 1)
    else:
        # Two rows share a product, which hides some of their variance. Leaving vectors out in
        # turn (the jackknife) multiplies by the square of this ratio, which is too much.
        scale = 4.0 * (count - 1) / (count - 2) / count
        square = _sum_over_samples(rows.mean(0), scale * rows.var(0), count - 1)
    lengths = torch.stack([*own]).double()
    return Sketch(
        count, square, _sum_over_samples(lengths.mean(0), lengths.var(0) / count, count - 1)
    )


def _sum_over_samples(means: Tensor, variances: Tensor, degrees: int) -> Estimate:
    """Sum over samples; by Welch and Satterthwaite, of a variance with few degrees for each."""
    mean, total, fourth = torch.stack(
        (means.sum(), variances.sum(), variances.square().sum())
    ).tolist()
    return Estimate(mean, total, (degrees + 2) * total**2 / fourth if fourth else math.inf)


def sketched_norms(
    sketch: Callable[[int, Mapping[str, BlockNorms]], Iterable[tuple[str, list[Sketch]]]],
    batch: int,
    tolerance: float,
    affordable: Callable[[int, int], bool],
    *,
    least: int = 1,
    most: int | None = None,
) -> dict[str, BlockNorms] | None:
    """Add sketches until the Frobenius norms of all blocks are known to the tolerance.

    Args:
        sketch: draws so many sketches, given the norms so far, and yields what they tell
            about each block that it goes on with.
        batch: B.
        tolerance: relative standard error allowed.
        affordable: of the sketches so far and those still needed, whether the exact norms
            would not cost less.
        least: sketches needed at a time, at least, for their error to be known.
        most: sketches drawn at a time, at most.

    Returns:
        Frobenius norms and traces by block; None where the exact ones cost less.
    """
    found: dict[str, list[Sketch]] = {}
    norms: dict[str, BlockNorms] = {}
    # The smallest relative errors that were met are 0.5 / sqrt(B m): no use trying if m
    # sketches with such an error are too many.
    done, needed = 0, max(least, math.ceil(0.25 / (batch * tolerance**2)))
    while batch >= _FEWEST_SAMPLES and affordable(done, needed):
        count = needed if most is None else min(needed, most)
        for name, sketches in sketch(count, norms):
            found.setdefault(name, []).extend(sketches)
            norms[name] = mean_norms(found[name], batch)
        done += count
        errors = [each.stderr / each.frobenius for each in norms.values() if each.frobenius]
        excess = max([0.0, *errors]) / tolerance
        if excess <= 1:
            return norms
        # The error of a mean falls with the root of their number.
        needed = max(least, math.ceil(1.1 * done * excess**2) - done)
    return None


def mean_norms(sketches: Sequence[Sketch], batch: int) -> BlockNorms:
    """Average sketches of one block to its Frobenius norm and trace, with their errors."""
    square = combine([(each.number, each.square) for each in sketches])
    trace = combine([(each.number, each.trace) for each in sketches])
    norm = math.sqrt(max(square.mean, 0.0))
    error = square.error / (2 * norm) if norm else 0.0
    return BlockNorms(
        norm / batch, math.nan, trace.mean / batch, error / batch, trace.error / batch
    )
