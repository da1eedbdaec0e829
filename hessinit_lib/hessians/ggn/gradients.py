r"""Per-sample gradients of a weight, and their inner products.

Where a weight meets the samples, its gradient is a sum over positions t of products of what comes
in there, x, and the gradient of what comes out, s:

$$g_b = \sum_t s_{bt} \otimes x_{bt} , \qquad
  g_b \cdot g'_c = \sum_{t,u} (s_{bt} \cdot s'_{cu}) (x_{bt} \cdot x_{cu}) ,$$

and what takes fewer multiplications is computed: the gradients or the sums over pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import product

import torch
from torch import Tensor

from hessinit_lib.hessians.ggn.factors import Products
from hessinit_lib.hessians.ggn.vectors import Subset

PIECE = 1 << 22
"""Entries of per-sample gradients, or of products of positions, held at a time."""

_TRAFFIC = 30  # multiplications in the time that an entry is written and read in

Choose = Callable[[Tensor], Subset | None]
"""Gives a subset of the samples for the mean of $|g_b|^2$ over vectors, (B,), if one will do."""


class SampleGradients:
    """The per-sample gradients of one weight for n vectors at the outputs.

    Args:
        samples: B.
        weight: their shape, type and device are its own.
        products: parts of them.
        others: parts of shape (n, B, *shape).
        piece: entries held at a time.
    """

    def __init__(
        self,
        samples: int,
        weight: Tensor,
        products: Sequence[Products],
        others: Sequence[Tensor],
        piece: int = PIECE,
    ) -> None:
        self._samples, self._piece, self._products = samples, piece, products
        self._size, self._like = weight.numel(), weight.new_empty(0)
        self._height = products[0].shape[0] if products else (*weight.shape, 1)[0]
        self._others = [other.reshape(*other.shape[:2], self._height, -1) for other in others]

    def inner_products(
        self,
        pairs: Sequence[tuple[int, int]],
        *,
        squares: bool = False,
        choose: Choose | None = None,
    ) -> tuple[list[Tensor], list[Tensor], Subset | None]:
        r"""Compute $g_b \cdot g'_c$ for pairs of vectors, and $|g_b|^2$ for all.

        Args:
            pairs: of vectors.
            squares: whether $|g_b|^2$ is asked for.
            choose: gives a subset of the samples for the mean of $|g_b|^2$, if a part will do;
                asked where all pairs of positions are multiplied.

        Returns:
            For each pair shape (B, B), or of the subset; for each vector shape (B,) and in
            float64, if asked for; the subset.
        """
        vectors = sorted({index for pair in pairs for index in pair})
        found = [self._like.new_zeros(self._samples, self._samples) for _ in pairs]
        own = [found[0].new_zeros(self._samples, dtype=torch.float64) for _ in vectors if squares]
        if not self._products and not self._others:
            return found, own, None
        if self._products and self._by_positions(pairs):
            self._add_squares(own, vectors)
            subset = choose(torch.stack(own).mean(0)) if choose and squares else None
            if subset is not None:
                found = [total.new_zeros(2 * [len(subset.rows)]) for total in found]
            self._add_positions(found, pairs, None if subset is None else subset.rows)
            return found, own, subset
        for piece in self._pieces(len(vectors)):
            rows = {index: self._gradients(index, piece) for index in vectors}
            for total, (i, j) in zip(found, pairs, strict=True):
                total += rows[i] @ rows[j].mT
            for total, index in zip(own, vectors, strict=False):
                total += torch.linalg.vector_norm(rows[index], dim=1).double().square()
        return found, own, None

    def along(self, direction: Tensor, vectors: int) -> list[Tensor]:
        """Compute the inner products of each g_b with a tensor of the weight's shape, (B,) each."""
        flat = direction.reshape(self._height, -1)
        found = [self._like.new_zeros(self._samples) for _ in range(vectors)]
        for piece in self._pieces():
            for index, total in enumerate(found):
                total += self._gradients(index, piece) @ flat[piece].reshape(-1)
        return found

    def formed(self, rows: Tensor) -> None:
        """Write the gradients of the first vector to `rows`, shape (B, entries)."""
        rows = rows.view(self._samples, self._height, -1)
        for piece in self._pieces():
            rows[:, piece] = self._gradients(0, piece).view_as(rows[:, piece])

    def _pieces(self, vectors: int = 1) -> Iterator[slice]:
        """Cut the weight's rows so that the gradients of some vectors are held piece by piece."""
        step = max(1, self._piece * self._height // (vectors * self._samples * self._size))
        for start in range(0, self._height if self._products or self._others else 0, step):
            yield slice(start, min(start + step, self._height))

    def _gradients(self, index: int, piece: slice) -> Tensor:
        """Give some rows of the weight's gradient for one vector, shape (B, entries)."""
        parts = [each.gradients(index, piece) for each in self._products]
        parts += [each[index, :, piece] for each in self._others]
        return reduce(torch.add, (part.reshape(self._samples, -1) for part in parts))

    def _by_positions(self, pairs: Sequence[tuple[int, int]]) -> bool:
        """Tell whether products of all pairs of positions take fewer multiplications."""
        if self._others or any(each.rows[0].shape[1] > 1 for each in self._products):
            return False
        count = self._samples * sum(each.positions for each in self._products)
        vectors = len({index for pair in pairs for index in pair})
        # What comes in is multiplied once for all vectors.
        rows = sum(each.rows[0].shape[3] for each in self._products)
        columns = sum(0 if each.indexed else each.width for each in self._products)
        # What is written and read costs as much as some multiplications.
        formed = self._samples * sum(0 if p.indexed else p.positions for p in self._products)
        direct = self._size * vectors * (formed + _TRAFFIC * self._samples)
        direct += self._size * len(pairs) * self._samples**2
        return count**2 * (columns + len(pairs) * (rows + _TRAFFIC)) < direct

    def _add_positions(
        self, found: list[Tensor], pairs: Sequence[tuple[int, int]], rows: Tensor | None
    ) -> None:
        """Add the sums over pairs of positions, of all samples or some."""
        products, count = self._products, len(found[0])
        if rows is not None:
            products = [each.of(rows) for each in products]
        for left, right in product(products, products):
            step = max(1, self._piece // (left.positions * right.positions * count))
            for some in (slice(start, start + step) for start in range(0, count, step)):
                seen: Tensor | None = None
                for total, (i, j) in zip(found, pairs, strict=True):
                    (s, x), (t, y) = left.sides(i), right.sides(j)
                    s, x = s[some], x[some]
                    if left.transposed != right.transposed:  # as of a tied weight
                        inner = _inner(s, y) * _inner(x, t)
                    else:
                        seen = _inner(x, y) if seen is None else seen  # the same for all vectors
                        inner = _inner(s, t).mul_(seen)
                    one = inner.shape[1] == inner.shape[3] == 1
                    total[some] += inner[:, 0, :, 0] if one else inner.sum((1, 3))

    def _add_squares(self, own: list[Tensor], vectors: Sequence[int]) -> None:
        for left in self._products:
            for right in self._products:
                for total, index in zip(own, vectors, strict=False):
                    (s, x), (t, y) = left.sides(index), right.sides(index)
                    if left.transposed != right.transposed:
                        product = _inner_of_each(s, y) * _inner_of_each(x, t)
                    else:
                        product = _inner_of_each(s, t) * _inner_of_each(x, y)
                    total += product.sum((1, 2), dtype=torch.float64)


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """Compute inner products of all positions, (B, T, B', T'); indices stand for unit vectors."""
    if left.dtype == right.dtype == torch.int64:
        return (left[:, :, None, None] == right) & (right >= 0)
    if left.dtype == torch.int64:
        return _inner(right, left).permute(2, 3, 0, 1)
    flat = left.flatten(0, 1)
    if right.dtype == torch.int64:
        columns = flat[:, right.clamp(min=0).flatten()] * (right >= 0).flatten()
        return columns.view(*left.shape[:2], *right.shape)
    return (flat @ right.flatten(0, 1).mT).view(*left.shape[:2], *right.shape[:2])


def _inner_of_each(left: Tensor, right: Tensor) -> Tensor:
    """Compute inner products of the positions of each sample, (B, T, T'), as `_inner` does."""
    if left.dtype == right.dtype == torch.int64:
        return (left[:, :, None] == right[:, None]) & (right >= 0)[:, None]
    if left.dtype == torch.int64:
        return _inner_of_each(right, left).mT
    if right.dtype == torch.int64:
        places = right.clamp(min=0)[:, None].expand(-1, left.shape[1], -1)
        return left.gather(2, places) * (right >= 0)[:, None]
    return left @ right.mT
