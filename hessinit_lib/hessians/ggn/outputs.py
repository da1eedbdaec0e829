r"""Random vectors whose covariance is the Hessian of the loss in the outputs.

For $A = D_z^2 L$ and random signs $\epsilon$, $v = S \epsilon$ with $S S^\top = A$ has
$\mathbb{E}\, v v^\top = A$. Which S is right is not read from the loss but tried: A is compared
with what it is taken for by products with random vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.ggn.vectors import balanced_signs
from hessinit_lib.hessians.loss import (
    OutputCurvature,
    check_independence,
    convex_factor,
)
from hessinit_lib.hessians.loss_value import LossFn, name_of
from hessinit_lib.hessians.numerics.lanczos import all_finite

_LARGEST = 128  # outputs of a block whose Hessian is formed
_COLUMNS = 64  # of S, for one sample, of which a random basis is drawn
_MANY = 100_000  # outputs for which float64 is not tried first
_DRAWN = 100_003  # random numbers in a vector, a prime

Draw = Callable[[torch.Generator], tuple[Tensor, ...]]
r"""Gives $(v,)$, or where there is no S $(\epsilon, A \epsilon)$; of the outputs' shape."""

Columns = Callable[[Tensor, Tensor], Tensor]
"""Multiplies S of some samples, (n,), by a vector each, (n, rank)."""


class OutputHessian:
    r"""The Hessian A of a loss in the outputs, by products and by random vectors.

    Args:
        case: its loss is a function of the outputs, or of the logits.
        loss_fn: function of (outputs, targets) that gives one number.
        outputs: z, shape (n, ...), n a multiple of the number of samples.
        softmax: the axis that this loss is known to take a softmax over.

    Attributes:
        finite: whether the loss and its gradient are.
        softmax: the axis of a softmax, if A is that of one.
        rank: columns of S for each sample, where they are few; 0 if not, or if there is no S.

    Raises:
        ValueError: see `OutputCurvature`.
        NotImplementedError: the loss couples samples, or has no second derivative in torch.

    Example:
        >>> x, y = torch.zeros(2, 3), torch.tensor([0, 1])
        >>> case = Case(torch.nn.Flatten(), torch.nn.CrossEntropyLoss(), x, y)
        >>> hessian = OutputHessian(case, case.loss_fn, x)
        >>> generator = torch.Generator().manual_seed(0)
        >>> (v,) = zip(*(hessian.draw(generator) for _ in range(1000)))
        >>> (torch.stack(v)[:, 0].T @ torch.stack(v)[:, 0] / 1000 * 18).round()
        tensor([[ 2., -1., -1.],
                [-1.,  2., -1.],
                [-1., -1.,  2.]])
    """

    def __init__(
        self, case: Case, loss_fn: LossFn, outputs: Tensor, softmax: int | None = None
    ) -> None:
        self.softmax, self.rank = softmax, 0
        self._columns: Columns | None = None
        self._like, self._name, self._samples = outputs.detach(), name_of(loss_fn), case.samples
        # Second derivatives of saturated losses are small differences.
        types = list(dict.fromkeys((torch.float64, outputs.dtype)))
        if outputs.numel() > _MANY:
            types.reverse()
        found: Draw | None = None
        for dtype in types:
            try:
                self._curvature = OutputCurvature(
                    loss_fn, self._like, case.targets, dtype, case.parameters
                )
            except ValueError:  # see `output_hessian`
                if dtype == types[-1]:
                    raise
                continue
            numbers = (self._curvature.value, self._curvature.gradient)
            self.finite = all_finite(*numbers)
            self._z = self._like.to(dtype)
            found = self._structured() if self.finite else self._without_factor
            if found is not None:
                break
        self.draw: Draw = found or self._unstructured()
        if found is not None and self.finite:
            del self._curvature, self._z  # the graph of the loss is no longer needed

    def _structured(self) -> Draw | None:
        """Try whether A is what losses have: of a softmax, or diagonal."""
        vector = self._vector(torch.Generator().manual_seed(0))
        image = self._curvature.hvp(vector)

        def softmax(axis: int) -> tuple[Tensor, Tensor, Tensor]:
            """Give p, the factors that A would have for each softmax, and its product then."""
            p = self._z.softmax(axis)
            product = _softmax_hvp(p, vector, axis)
            slope = (vector * product).sum(axis, keepdim=True)
            mass = (vector * image).sum(axis, keepdim=True) / slope
            mass = mass.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
            return p, mass, mass * product

        if self.softmax is not None:
            p, mass, _ = softmax(self.softmax)
            return self._draw_softmax(p, mass, self.softmax)
        bound = max(1e-6, torch.finfo(image.dtype).eps ** (2 / 3)) * image.norm()
        for axis in sorted({1, self._z.ndim - 1} & {*range(1, self._z.ndim)}, reverse=True):
            p, mass, product = softmax(axis)
            if (product - image).norm() <= bound:
                self.softmax = axis
                return self._draw_softmax(p, mass, axis)
        diagonal = self._curvature.hvp(torch.ones_like(vector)).clamp(min=0)
        if (diagonal * vector - image).norm() <= bound:
            root = self._cast(diagonal.sqrt())
            self._few(self._like[0].numel(), partial(_diagonal_columns, root))
            return partial(self._of_diagonal, root)
        return None

    def _draw_softmax(self, p: Tensor, mass: Tensor, axis: int) -> Draw:
        root, mass = self._cast(p.sqrt()), self._cast(mass.sqrt())
        count, classes = self._like[0].numel(), self._like.shape[axis]
        self._few(count // classes * (classes - 1), partial(_softmax_columns, root, mass, axis))
        return partial(self._of_softmax, root, mass, axis)

    def product(self, vectors: Tensor, samples: Tensor) -> Tensor:
        """Multiply S of some samples, (n,), by a vector each, (n, rank)."""
        assert self._columns is not None
        return self._columns(vectors.to(self._like), samples.to(self._like.device))

    def _few(self, rank: int, columns: Columns) -> None:
        """Note the columns of S, if they are few and each sample's outputs are one entry."""
        if 0 < rank <= _COLUMNS and len(self._like) == self._samples:
            self.rank, self._columns = rank, columns

    def _of_softmax(
        self, root: Tensor, mass: Tensor, axis: int, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Multiply S = diag sqrt p - p sqrt p^T, of S S^T = diag p - p p^T, by signs."""
        signs = self._signs(generator, axis)
        mean = (root * signs).sum(axis, keepdim=True)
        return (signs.sub_(root * mean).mul_(root).mul_(mass),)

    def _of_diagonal(self, root: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (root * self._signs(generator),)

    def _unstructured(self) -> Draw:
        """Form the Hessians of small blocks; or do without S."""
        generator = torch.Generator().manual_seed(0)
        other = self._vector(generator)
        image = self._curvature.hvp(other)
        for blocks in self._block_shapes():
            factor = self._block_factor(blocks, other, image, 1e-5 * image.norm())
            if factor is not None:
                several = factor.shape[0] // self._samples * factor.shape[1]
                self._few(several, partial(_block_columns, factor.to(self._like), self._like.shape))
                return partial(self._of_blocks, factor)
        rows = self._curvature.gradient.reshape(self._samples, -1)

        def hvp(vector: Tensor) -> Tensor:
            return self._curvature.hvp(vector.view_as(self._z)).reshape(rows.shape)

        check_independence(self._name, hvp, rows)
        return self._without_factor

    def _block_shapes(self) -> Iterator[tuple[int, int]]:
        """Give the numbers of blocks that A may be made of, and their sizes: small ones first."""
        for size in (self._z.shape[-1], self._z.numel() // self._samples):
            if 1 < size <= _LARGEST:
                yield self._z.numel() // size, size

    def _block_factor(
        self, blocks: tuple[int, int], other: Tensor, image: Tensor, bound: Tensor
    ) -> Tensor | None:
        """Give the rows of S for each block if A is made of these and convex, shape (n, r, c)."""
        columns = [
            self._curvature.hvp(unit.repeat(blocks[0]).view_as(self._z)).reshape(blocks)
            for unit in self._z.new_ones(blocks[1]).diag()
        ]
        hessian = torch.stack(columns, 2)
        hessian = (hessian + hessian.mT) / 2
        product = (hessian @ other.reshape(*blocks, 1)).view_as(image)
        if (product - image).norm() > bound:
            return None
        try:
            return convex_factor(hessian, self._name)
        except NotImplementedError:
            return None

    def _of_blocks(self, factor: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        signs = balanced_signs(len(factor), factor.shape[1], generator).to(factor)
        return (self._cast(torch.einsum("nr,nrc->nc", signs, factor).reshape(self._z.shape)),)

    def _without_factor(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        signs = self._signs(generator)
        return signs, self._cast(self._curvature.hvp(signs.to(self._z)))

    def _cast(self, vector: Tensor) -> Tensor:
        return vector.to(self._like)

    def _signs(self, generator: torch.Generator, axis: int = -1) -> Tensor:
        """Draw signs, balanced over the entries along an axis."""
        moved = self._like.movedim(axis, -1).shape
        rows = balanced_signs(math.prod(moved[:-1]), moved[-1], generator)
        return rows.to(self._like).view(moved).movedim(-1, axis)

    def _vector(self, generator: torch.Generator) -> Tensor:
        count = self._z.numel()  # of many, the numbers come again: to draw them takes long
        drawn = torch.empty(min(count, _DRAWN), device="cpu").uniform_(-1, 1, generator=generator)
        return drawn.to(self._z).repeat(-(-count // _DRAWN))[:count].view(self._z.shape)


def _softmax_hvp(p: Tensor, vector: Tensor, axis: int) -> Tensor:
    """Multiply diag p - p p^T by a vector."""
    return p * (vector - (p * vector).sum(axis, keepdim=True))


def _softmax_columns(
    root: Tensor, mass: Tensor, axis: int, vectors: Tensor, samples: Tensor
) -> Tensor:
    """Multiply S by vectors orthogonal to sqrt p: those of a Householder reflection without one."""
    s = root[samples].movedim(axis, -1)
    q = torch.nn.functional.pad(vectors.view(*s.shape[:-1], -1), (0, 1))
    h = torch.cat((s[..., :-1], s[..., -1:] + 1), -1)
    q = q - h * ((h * q).sum(-1, keepdim=True) / h[..., -1:])
    return mass[samples] * (s * q).movedim(-1, axis)


def _diagonal_columns(root: Tensor, vectors: Tensor, samples: Tensor) -> Tensor:
    return root[samples] * vectors.view_as(root[samples])


def _block_columns(factor: Tensor, shape: torch.Size, vectors: Tensor, samples: Tensor) -> Tensor:
    blocks = factor.view(shape[0], -1, *factor.shape[1:])[samples]
    found = torch.einsum("nkr,nkrc->nkc", vectors.view(*blocks.shape[:3]), blocks)
    return found.reshape(len(samples), *shape[1:])
