r"""Gram matrices of Jacobian rows, from which all norms of a Gauss-Newton block follow.

For the block $G = B^{-1} J^\top J$ with J of shape (B r, P), $J J^\top$ has the same
nonzero eigenvalues as $J^\top J$: the smaller of the two gives all the norms, and no matrix
of shape (P, P) is formed unless it is the smaller one. J itself is formed in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hessinit_lib.hessians.chain.backward import LayerCurvature
from hessinit_lib.hessians.graph.capture import CapturedLayer
from hessinit_lib.hessians.graph.patches import extract_factor, extract_patches, sizes, tokens
from hessinit_lib.hessians.numerics.precision import fast_products
from hessinit_lib.hessians.numerics.workspace import Workspace, piece_entries

# Entries of J held at a time: much fewer make the products small and slow, many more leave
# the cache and gain nothing.
_PIECE = 1 << 22

# Rows up to which a symmetric product is not worth splitting.
_SPLIT = 150

# Rows up to which, on a GPU, the matrix of their products is made.
_FEW_ROWS = 4096

# Multiplications from which on rounding to bfloat16 pays, and its errors average out.
_LARGE = 1 << 27


class Piece(NamedTuple):
    """Some of a layer's channels: groups, and units of them."""

    groups: slice
    units: slice


class LayerGram:
    """The Gram matrix of one layer, put together from pieces of its factors.

    Args:
        layer: what was captured.
        batch: B.
        rank: r, the number of factors.
        by_rows: J J^T, even where it is the larger matrix.
        factored: keep J of a layer with one position a sample as its two factors, the
            inputs and the gradients at the outputs.
        rounded: whether large products may be rounded to bfloat16.
        max_entries: of factors and of J in a piece, unless a channel has more.

    Attributes:
        pieces: what is to be added, in any order.
        factored: whether `curvature` takes the place of `matrix`.
        kept_bytes: held from the first piece to the last.
        transient_bytes: held while a piece is added.

    Example:
        >>> from hessinit_lib.hessians.graph.capture import capture
        >>> (layer,), out = capture(torch.nn.Linear(4, 3), torch.ones(2, 5, 4))
        >>> gram, workspace = LayerGram(layer, 2, 1), Workspace(out)
        >>> factors = torch.empty(gram.shape(gram.pieces[0]))
        >>> gram.fill(factors, gram.pieces[0], 0, torch.ones_like(out))
        >>> gram.add([(gram.pieces[0], factors)], workspace)
        >>> gram.matrix()  # all entries of J are 5
        tensor([[300., 300.],
                [300., 300.]])
    """

    def __init__(
        self,
        layer: CapturedLayer,
        batch: int,
        rank: int,
        *,
        by_rows: bool = False,
        factored: bool = False,
        rounded: bool = False,
        max_entries: int | None = None,
    ) -> None:
        self.layer, self.sizes, self._rank = layer, sizes(layer, batch), rank
        self._embedding = isinstance(layer.module, nn.Embedding)
        _, groups, units, inputs, positions = self.sizes
        rows, columns = batch * rank, self.sizes.columns
        # With one position a sample, J J^T is the Hadamard product of two small Gram
        # matrices. Multiplications of either way:
        direct = units + (1 if self._embedding else inputs)
        smaller = rows if by_rows else min(rows, columns)
        self._hadamard = positions == groups == 1 and rows * direct <= columns * smaller
        self._by_rows = by_rows or self._hadamard or columns >= rows
        # On a GPU few rows are best left in one matrix, of which all layers' are alike.
        factored = factored and (layer.weight.device.type == "cpu" or rows > _FEW_ROWS)
        self.factored = factored and self._hadamard and not self._embedding
        rounded = rounded and self._by_rows and not (self._hadamard or self._embedding)
        self._round_factors = rounded and rows * positions * columns >= _LARGE
        self._round_rows = rounded and rows**2 * columns >= _LARGE
        self._matrix: Tensor | None = None
        self._jacobian: list[Tensor] = []
        self.pieces = self._cut(rows, max_entries)
        self.kept_bytes, self.transient_bytes = self._count_bytes(rows, columns)

    def _cut(self, rows: int, max_entries: int | None) -> list[Piece]:
        _, groups, units, inputs, positions = self.sizes
        every = slice(None)
        if self._hadamard or self._embedding:
            return [Piece(every, every)]
        channels, inner = (units, inputs) if groups == 1 else (groups, units * inputs)
        size = piece_entries(self.layer.weight, _PIECE) // (rows * inner)
        if max_entries is not None:
            size = min(size, max_entries // (rows * max(inner, inner // inputs * positions)))
        size = max(1, size)
        chosen = [slice(at, min(at + size, channels)) for at in range(0, channels, size)]
        return [Piece(every, part) if groups == 1 else Piece(part, every) for part in chosen]

    def _count_bytes(self, rows: int, columns: int) -> tuple[int, int]:
        batch, groups, units, inputs, positions = self.sizes
        kept = rows**2 if self._by_rows else columns**2 + rows * columns
        part = max(math.prod(self.shape(piece)[1:4]) for piece in self.pieces)
        if self.factored:
            kept, transient = rows * units + batch * inputs, 4 * batch**2 + 3 * rows * units
        elif self._hadamard:
            transient = 2 * batch**2 + 2 * rows * units + batch * inputs
        elif self._embedding:
            transient = min(_PIECE, rows * columns) + 2 * rows * units * positions
        else:
            transient = batch * (groups * inputs * positions + 2 * part * inputs)
        width = self.layer.weight.element_size()
        return width * kept, width * transient

    @property
    def dtype(self) -> torch.dtype:
        """The type to hold factors in."""
        return torch.bfloat16 if self._round_factors else self.layer.weight.dtype

    def shape(self, piece: Piece) -> tuple[int, int, int, int, int]:
        """Give the shape of a piece's factors: (B, groups, r, units, T)."""
        batch, groups, units, _, positions = self.sizes
        chosen = (len(range(groups)[piece.groups]), self._rank, len(range(units)[piece.units]))
        return (batch, *chosen, positions)

    def size(self, piece: Piece) -> int:
        """Give the bytes of a piece's factors."""
        return math.prod(self.shape(piece)) * self.dtype.itemsize

    def fill(
        self, factors: Float[Tensor, "b g r q t"], piece: Piece, index: int | None, gradient: Tensor
    ) -> None:
        """Write one factor, the gradient at the layer's output, into its place; all if None."""
        if index is not None:
            whole = extract_factor(self.layer, gradient, self.sizes)
            factors[:, :, index].copy_(whole[:, piece.groups, piece.units])
            return
        every = self.sizes._replace(batch=self.sizes.batch * self._rank)
        whole = extract_factor(self.layer, gradient.flatten(0, 1), every)
        whole = whole.unflatten(0, (self._rank, -1))[:, :, piece.groups, piece.units]
        factors.copy_(whole.permute(1, 2, 0, 3, 4))

    def add(
        self, filled: list[tuple[Piece, Float[Tensor, "b _ r _ t"]]], workspace: Workspace
    ) -> None:
        """Add some pieces."""
        if self._hadamard:
            ((_, factors),) = filled
            self._matrix = factors.clone() if self.factored else self._hadamard_product(factors)
            return
        for rows in self._rows(filled, workspace):
            if not self._by_rows:
                self._jacobian.append(rows.clone())
                continue
            first = self._matrix is None
            if self._matrix is None:
                self._matrix = rows.new_empty(len(rows), len(rows), dtype=self.layer.weight.dtype)
            if self._round_rows and rows.dtype != torch.bfloat16:
                narrow = workspace.take("rounded", rows.shape, torch.bfloat16)
                rows = narrow.copy_(rows)
            _add_symmetric_product(rows, self._matrix, first)

    def matrix(self) -> Float[Tensor, "d d"]:
        """Give J J^T or J^T J, whichever is smaller; once, when all pieces are added."""
        if not self._by_rows:
            jacobian = torch.cat(self._jacobian, 1)
            self._jacobian.clear()
            self._matrix = jacobian.new_empty(2 * jacobian.shape[1:])
            _add_symmetric_product(jacobian.mT, self._matrix, True)
        matrix, self._matrix = self._matrix, None  # not held twice
        assert matrix is not None
        _mirror(matrix)
        return matrix

    def curvature(self) -> LayerCurvature:
        """Give factors and inputs of a layer with one position a sample; only if `factored`.

        The block's norms then follow from products of B rows; J J^T has B r.
        """
        factors, self._matrix = self._matrix, None
        assert factors is not None
        inputs = factors.new_empty(self.sizes.batch, 1, self.sizes.inputs, 1)
        extract_patches(self.layer, inputs)
        name, shape = self.layer.name, tuple(self.layer.weight.shape)
        return LayerCurvature(name, shape, inputs.flatten(1), factors[:, 0, :, :, 0], None)

    def products(self) -> Float[Tensor, "r b r b"]:
        """Give J J^T by factor and sample; only with `by_rows`."""
        matrix, batch = self.matrix(), self.sizes.batch
        if self._hadamard:
            return matrix.view(self._rank, batch, self._rank, batch)
        return matrix.view(batch, self._rank, batch, self._rank).permute(1, 0, 3, 2)

    def _hadamard_product(self, factors: Float[Tensor, "b 1 r q 1"]) -> Float[Tensor, "d d"]:
        """J J^T where every sample has one position: (u_b . u_b') (s_bi . s_b'i')."""
        batch, rank = self.sizes.batch, self._rank
        if self._embedding:
            seen = tokens(self.layer, batch)
            kernel = ((seen == seen.mT) & (seen >= 0)).to(factors.dtype)
        else:
            inputs = factors.new_empty(batch, 1, self.sizes.inputs, 1)
            extract_patches(self.layer, inputs)
            kernel = inputs.flatten(1) @ inputs.flatten(1).mT
        # Factors first, samples last: then the kernel's rows are what is multiplied.
        rows = factors.flatten(2).view(batch, rank, -1).transpose(0, 1).flatten(0, 1)
        gram = rows.new_empty(len(rows), len(rows))
        _add_symmetric_product(rows, gram, True)
        gram.view(rank, batch, rank, batch).mul_(kernel[:, None])
        return gram

    def _rows(
        self, filled: list[tuple[Piece, Float[Tensor, "b _ r _ t"]]], workspace: Workspace
    ) -> Iterator[Float[Tensor, "d _"]]:
        """Form J, shape (B r, G q m), in pieces of columns; each is gone when the next is made."""
        if self._embedding:
            for _, factors in filled:
                yield from _rows_of_embedding(tokens(self.layer, self.sizes.batch), factors)
            return
        batch, groups, _, inputs, positions = self.sizes
        patches = workspace.take("patches", (batch, groups, inputs, positions), self.dtype)
        extract_patches(self.layer, patches)
        for piece, factors in filled:
            count = factors.shape[1]
            chosen = patches[:, piece.groups].flatten(0, 1)
            stacked = factors.flatten(2, 3).flatten(0, 1)
            rows = workspace.take("rows", (*stacked.shape[:2], inputs), self.dtype)
            with fast_products(self.dtype, 0.0, stacked.numel() * inputs):
                torch.bmm(stacked, chosen.mT, out=rows)
            if count == 1:
                yield rows.view(batch * self._rank, -1)
            else:
                split = rows.view(batch, count, self._rank, -1)
                yield split.transpose(1, 2).reshape(batch * self._rank, -1)


def _rows_of_embedding(
    tokens: Int64[Tensor, "b t"], factors: Float[Tensor, "b 1 r d t"]
) -> Iterator[Float[Tensor, "b_r _"]]:
    """Form J in pieces of columns: only the rows of the weight that occur in the batch."""
    batch, _, rank, units, positions = factors.shape
    by_position = factors[:, 0].permute(0, 3, 1, 2)
    seen, place = tokens.unique(return_inverse=True)
    sample = torch.arange(batch, device=seen.device)[:, None].expand(batch, positions)
    first = int((seen < 0).sum())  # the padding token, if any
    size = max(1, _PIECE // (batch * rank * units))
    for start in range(first, len(seen), size):
        count = min(size, len(seen) - start)
        chosen = (place >= start) & (place < start + count)
        into = sample[chosen] * count + place[chosen] - start
        piece = factors.new_zeros(batch * count, rank, units)
        piece.index_add_(0, into, by_position[chosen])
        yield piece.view(batch, count, rank, units).transpose(1, 2).reshape(batch * rank, -1)


def _add_symmetric_product(
    left: Float[Tensor, "d _"], total: Float[Tensor, "d d"], first: bool
) -> None:
    """Add X X^T to the total, in place, but not to all of what lies below its diagonal.

    The `first` time, what the total holds does not count.
    """
    if len(left) <= _SPLIT or left.device.type != "cpu":
        _add_product(left, left, total, first)
        return
    half = len(left) // 2
    _add_product(left[:half], left[half:], total[:half, half:], first)
    _add_symmetric_product(left[:half], total[:half, :half], first)
    _add_symmetric_product(left[half:], total[half:, half:], first)


def _add_product(
    left: Float[Tensor, "d _"],
    right: Float[Tensor, "e _"],
    total: Float[Tensor, "d e"],
    first: bool,
) -> None:
    if left.dtype != total.dtype:
        product = left @ right.mT
        _ = total.copy_(product) if first else total.add_(product)
        return
    with fast_products(left.dtype, 0.0, left.numel() * len(right)):
        total.addmm_(left, right.mT, beta=0.0 if first else 1.0)


def _mirror(total: Float[Tensor, "d d"]) -> None:
    """Copy what `_add_symmetric_product` left out from above the diagonal."""
    if len(total) > _SPLIT and total.device.type == "cpu":
        half = len(total) // 2
        total[half:, :half] = total[:half, half:].mT
        _mirror(total[:half, :half])
        _mirror(total[half:, half:])
