r"""Random vectors for the columns of S: signs, or some of an orthonormal basis for each sample.

With r columns, m vectors of a random basis for each sample are a sample without replacement of
the r there are. Of $\|K\|_F^2 = \sum_{ij} (w_i^\top K w_j)^2$, a sum over any two bases, they show
some terms, each with a known chance; divided by it, these estimate the sum without bias
(Horvitz and Thompson, 1952). All r give it exactly. The basis is the same for all samples, and
the places in it are spread evenly over samples, so that what is alike for all samples is
summed over the whole basis, without error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hessinit_lib.hessians.numerics.estimates import Estimate, Products, Sketch
from hessinit_lib.hessians.numerics.lanczos import power_of_two

_WIDEST = 1024  # columns of a Hadamard matrix

_LONG = 4.0  # times the mean: squared lengths of gradients that are always taken
_LEAST = 64  # others that are taken, at least


@dataclass(frozen=True)
class Subset:
    r"""Some rows of a draw, whose inner products tell those of all.

    Those with long gradients, and a random part of the others: k of n'. A sum over pairs of the
    others is multiplied by n' (n' - 1) / (k (k - 1)), one over these and all by n' / k.

    Attributes:
        rows: which ones, shape (k,).
        scale: how many rows each stands for, 1 or n' / k, shape (k,).
    """

    rows: Tensor
    scale: Tensor

    @classmethod
    def of(cls, lengths: Tensor, tolerance: float, generator: torch.Generator) -> Subset | None:
        r"""Choose rows by $|g_b|^2$, shape (n,), if a part of them will do.

        The error of the norm that this makes is to be at most a quarter of the tolerance, if sums
        over one sample's pairs differ as the lengths do.
        """
        if len(lengths) <= 2 * _LEAST:
            return None
        long = lengths > _LONG * lengths.mean()
        others = (~long).nonzero()[:, 0]
        count = len(others)
        variation = count * float(lengths[others].std()) / max(float(lengths.sum()), 1e-300)
        wanted = 1 / (1 / max(count, 1) + (tolerance / 4 / max(variation, 0.25)) ** 2)
        number = max(_LEAST, math.ceil(wanted))
        if not 2 * (number + len(lengths) - count) < len(lengths):
            return None
        order = _permutation(count, generator)[:number].to(others.device)
        rows = torch.cat((long.nonzero()[:, 0], others[order.sort()[0]]))
        scale = torch.ones_like(rows, dtype=torch.float64)
        scale[len(lengths) - count :] = count / number
        return cls(rows, scale)

    def factors(self) -> Tensor:
        """Give what the products of each pair count by, shape (k, k)."""
        light = self.scale > 1
        ratio, number = float(self.scale.max()), int(light.sum())
        both = ratio * (ratio * number - 1) / (number - 1)
        found = torch.where(light[:, None] & light, both, self.scale[:, None].maximum(self.scale))
        found.diagonal().copy_(self.scale)
        return found

    def widened(self, estimate: Estimate, means: Tensor, hidden: Tensor) -> Estimate:
        """Add to the variance of a sum over pairs what the choice of rows makes.

        Args:
            estimate: of the sum, for these rows.
            means: the sums over the pairs of each row, times `scale`, shape (k,).
            hidden: a part of them that is no pair.
        """
        light = self.scale > 1
        number, ratio = int(light.sum()), float(self.scale.max())
        each = (2 * means - hidden)[light]  # a sample is on the left, and on the right
        variance = (1 - 1 / ratio) * number * float(each.var())
        both = estimate.variance + variance
        fourth = estimate.variance**2 / estimate.degrees + variance**2 / (number - 1)
        return Estimate(estimate.mean, both, both**2 / fourth if fourth else math.inf)


@dataclass(frozen=True)
class BasisDraw:
    """m of r vectors of a basis for each of B samples; all r for some of these.

    A sample with all has several rows, with m vectors each.

    Attributes:
        rank: r.
        samples: which sample a row belongs to, shape (n,).
        places: which vectors of the basis, -1 for none, shape (n, m).
        basis: orthonormal rows, shape (r, r).
        complete: whether a row's sample has all vectors, shape (n,).
        groups: rows that take each place once are in one group, shape (n,).

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> draw = BasisDraw.of(5, 4, 2, generator, complete=[3])
        >>> draw.samples.tolist(), draw.places[4:].tolist()
        ([0, 1, 2, 4, 3, 3], [[0, 1], [2, 3]])
    """

    rank: int
    samples: Tensor
    places: Tensor
    basis: Tensor
    complete: Tensor
    groups: Tensor

    @classmethod
    def of(
        cls,
        samples: int,
        rank: int,
        count: int,
        generator: torch.Generator,
        complete: Sequence[int] = (),
    ) -> BasisDraw:
        """Draw `count` vectors for each sample, all for those in `complete`."""
        full = list(range(samples)) if count == rank else sorted(complete)
        light = [sample for sample in range(samples) if sample not in set(full)]
        copies = -(-rank // count)
        order = _permutation(len(light), generator)
        groups = torch.arange(len(light), device="cpu") // rank
        starts = [_permutation(rank, generator) for _ in range(0, len(light), rank)]
        start = torch.cat([*starts, order[:0]])[: len(light)]
        shift = _permutation(rank, generator)[:count]
        every = torch.arange(copies * count, device="cpu")
        every = torch.where(every < rank, every, -1).view(copies, count)
        basis = torch.randn(rank, rank, generator=generator, dtype=torch.float64, device="cpu")
        repeated = [sample for sample in full for _ in range(copies)]
        return cls(
            rank,
            groups.new_tensor(light + repeated),
            torch.cat(((start[order][:, None] + shift) % rank, every.repeat(len(full), 1))),
            torch.linalg.qr(basis)[0] if light else basis.new_ones(rank).diag(),
            torch.arange(len(light) + copies * len(full), device="cpu") >= len(light),
            torch.cat((groups[order], groups.new_zeros(copies * len(full)))),
        )

    @property
    def count(self) -> int:
        """Give m."""
        return self.places.shape[1]

    @property
    def exact(self) -> bool:
        """Whether all samples have all vectors."""
        return bool(self.complete.all())

    @property
    def all_of(self) -> list[int]:
        """The samples with all vectors, if others have fewer."""
        return [] if self.exact else sorted({*self.samples[self.complete].tolist()})

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The pairs of vectors whose inner products tell the norm."""
        own = 0 if self.complete.any() else 1
        return [(a, c) for a in range(self.count) for c in range(a + own, self.count)]

    def vectors(self, index: int) -> Tensor:
        """Give one vector for each row, of length sqrt r, shape (n, r)."""
        places = self.places[:, index]
        chosen = self.basis[places.clamp(min=0)] * (places >= 0)[:, None]
        return chosen * math.sqrt(self.rank)

    def weights(self, pair: tuple[int, int], like: Tensor, subset: Subset | None = None) -> Tensor:
        """Give what squared inner products count by in the sum, of all rows or some, (n, n)."""
        r, m = self.rank, self.count
        if self.exact:
            return like.new_tensor(1 / r**2)
        light = int((~self.complete).sum())
        own = bool(self.complete.any())
        # The chance that two samples have the same place, for one vector.
        times, rest = divmod(light, r)
        equal = times * (rest * (times + 1) + (r - rest) * (times - 1))
        equal /= max(light * (light - 1), 1)
        same = m * own * equal + m * (m - 1) * (1 - equal) / (r - 1)
        places, complete = self.places.to(like.device), self.complete.to(like.device)
        if subset is not None:
            places, complete = places[subset.rows], complete[subset.rows]
        found = torch.where(
            places[:, pair[0], None] == places[:, pair[1]],
            like.new_tensor(1 / (r * same) if same else 0.0),
            like.new_tensor((1 - 1 / r) / max(m * m - m * (not own) - same, 1e-9)),
        )
        within = 1 / (m * r) if pair[0] == pair[1] else (1 - 1 / r) / (m * (m - 1))
        found.fill_diagonal_(within)
        if own:
            found[complete] = found[:, complete] = 1 / (m * r)
            found[complete[:, None] & complete] = 1 / r**2
        return found if subset is None else found.mul_(subset.factors())

    def sketch(
        self,
        products: Products,
        own: Sequence[Tensor],
        weights: Callable[[tuple[int, int]], Tensor],
        subset: Subset | None = None,
    ) -> tuple[Sketch, Tensor]:
        r"""Estimate $\|G\|_F^2$ and $\operatorname{tr} G$ with the variances of these estimates.

        The sum over all rows with one vector on the left has the same mean for each of the
        m vectors; its spread tells the error, less what is left out of r.

        Args:
            products: $g^a_b \cdot g^{a'}_c$ of all `pairs`, shape (n, n) each.
            own: $|g^a_b|^2$ of each vector, shape (n,).
            weights: gives those of a pair.
            subset: the rows whose products these are, all if None.

        Returns:
            The estimates; and of the first one's variance the part of each row, shape (n,).
        """
        m, light = self.count, ~self.complete.to(own[0].device)
        lengths = torch.stack([*own]).double()
        squared = lengths.square() / self.rank
        if subset is not None:
            squared = squared[:, subset.rows] * subset.scale
        rows, alone = torch.zeros_like(squared), torch.zeros_like(squared[0])
        for a, c in self.pairs:
            product, weight = products[a, c], weights((a, c))
            # Squares of small numbers leave the range of float32.
            unit = power_of_two(product.abs().max().item())
            squares = (product / unit).square_().mul_(weight)
            scale = m * float(unit) ** 2
            rows[a] += scale * squares.sum(1).double()
            if a < c:
                rows[c] += scale * squares.sum(0).double()
                alone += scale * squares.diagonal()
        if not self.complete.any():  # the products of vectors with themselves were left out
            rows += squared
        parts = torch.where(light, 1.0, m / self.rank)
        if self.exact:
            exact = (
                Estimate(float(x.mean(0).sum()), 0.0, math.inf) for x in (rows, parts * lengths)
            )
            return Sketch(m, *exact), torch.zeros_like(alone)
        # Two rows share a product, which hides some of their variance.
        shared = 4.0 * (1 + 1 / (2 * (m - 2))) if m > 2 else 4.0
        hidden = alone if m == 2 else torch.zeros_like(alone)
        square, parts_of_it = self._spread(rows, light, shared, hidden, subset)
        trace, _ = self._spread(parts * lengths, light, 1.0, torch.zeros_like(lengths[0]))
        return Sketch(m, square, trace), parts_of_it

    def _spread(
        self,
        rows: Tensor,
        light: Tensor,
        factor: float,
        hidden: Tensor,
        subset: Subset | None = None,
    ) -> tuple[Estimate, Tensor]:
        """Sum the means of rows over samples; the variance by samples or by groups of them."""
        m = self.count
        factor *= (1 - m / self.rank) / (m * (m - 1))
        means, parts = rows.mean(0), rows.new_zeros(len(light))
        chosen, scale = light, rows.new_ones(())
        if subset is not None:  # none has all vectors
            chosen, scale = torch.ones_like(means, dtype=torch.bool), subset.scale
        deviations = (rows - means)[:, chosen]
        by_sample = factor * deviations.square().sum(0) / scale
        parts[light if subset is None else subset.rows] = by_sample
        kept = (means[chosen].square() / scale).sum()
        effective = float(means[chosen].sum() ** 2 / kept) if kept else 1.0
        # Of few samples that matter, two vectors may be alike by chance.
        chance = 2 * factor * (m - 1) * float(kept) / effective**2
        chance += float((hidden[chosen].square() / scale).sum() * (1 - m / self.rank))
        spreads = [by_sample]
        if subset is None:
            groups = self.groups.to(light.device)[light]
            grouped = deviations.new_zeros(m, int(groups.max()) + 1)
            grouped.index_add_(1, groups, deviations)
            spreads.append(factor * grouped.square().sum(0))
        found = []
        for each in spreads:
            total, fourth = float(each.sum()), float(each.square().sum())
            degrees = max(1.0, (m - 1) * total**2 / fourth) if fourth else math.inf
            found.append(Estimate(float(means.sum()), total + chance, degrees))
        best = min(found, key=lambda each: each.error)
        return best if subset is None else subset.widened(best, means, hidden), parts


def balanced_signs(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    r"""Draw random signs, each row uniform, whose columns are orthogonal over groups of rows.

    Rows of a Hadamard matrix in random order, with random signs of rows and columns. Any two
    columns of one row are then independent, as of independent signs; but the products of two
    columns cancel over a group of rows, so that quadratic forms that are alike for all samples
    sum to their mean without error. What differs between samples has the usual error.

    Args:
        rows: samples.
        columns: signs of each.
        generator: of random numbers.

    Returns:
        Shape (rows, columns), of type int8.

    Example:
        >>> signs = balanced_signs(8, 5, torch.Generator().manual_seed(0)).long()
        >>> bool((signs.T @ signs == 8 * torch.eye(5)).all())
        True
    """
    size = 1 << (columns - 1).bit_length()
    signs = _bits((rows, 1), generator)
    if size > _WIDEST or size > 2 * rows:
        signs = _bits((rows, columns), generator)
        return signs.mul_(2).sub_(1)
    hadamard = signs.new_ones(1, 1)
    while len(hadamard) < size:
        hadamard = torch.cat((hadamard, hadamard), 1), torch.cat((hadamard, -hadamard), 1)
        hadamard = torch.cat(hadamard)
    groups = []
    for start in range(0, rows, size):
        order = _permutation(size, generator)[: rows - start]
        flips = _bits((columns,), generator)
        groups.append(hadamard[order, :columns] * flips.mul_(2).sub_(1))
    return torch.cat(groups) * signs.mul_(2).sub_(1)


def _permutation(size: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(size, generator=generator, device="cpu")


def _bits(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=generator, dtype=torch.int8, device="cpu")
