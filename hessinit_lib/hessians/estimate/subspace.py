r"""A subspace with its images under a block: what products so far tell about its spectrum.

With rows V orthonormal and the images V G, V R known, Rayleigh and Ritz give the eigenvalues
of largest size of G, R and H = G + R, and the exact part of their Frobenius norms. The
subspace grows by the residuals of the leading Ritz vectors, which for one operator is the
Lanczos process, and here serves all three with the same products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# What of a new vector must lie outside of the subspace, relative to its length.
_NEW = {torch.float32: 1e-4, torch.float64: 1e-10}

# Ritz vectors of either end of each operator that outlive a compression.
_KEPT = 2


@dataclass(frozen=True)
class Ritz:
    """The leading Ritz value of one operator.

    Attributes:
        value: of largest size, with its sign.
        error: bound on its distance from an eigenvalue.
        residual: length of the residual, which bounds it less sharply.
        rival: largest size that another eigenvalue may turn out to have: the next one of
            this end or that of the other end of the spectrum.
        directions: where the subspace should grow, shape (k, P).
    """

    value: float
    error: float
    residual: float
    rival: float
    directions: Float[Tensor, "k _"]


class Subspace:
    """Orthonormal rows and their images under G and R, or under H alone.

    Args:
        size: P, the number of parameters.
        kinds: 2 for images under G and R, 1 for images under H.
        capacity: rows that there is memory for.
        like: a tensor of the type and device of the rows.

    Example:
        >>> space = Subspace(3, 1, 3, torch.empty(0))
        >>> rows = space.new_directions(torch.tensor([[2.0, 0.0, 0.0]]))
        >>> space.add(rows, 5 * rows[None])
        >>> round(space.leading((1.0,)).value, 4)
        5.0
    """

    def __init__(self, size: int, kinds: int, capacity: int, like: Tensor) -> None:
        self._rows = like.new_empty(min(size, capacity), size)
        self._images = like.new_empty(kinds, *self._rows.shape)
        self.count = 0

    @property
    def room(self) -> int:
        """How many more rows there is room for."""
        return len(self._rows) - self.count

    @property
    def full(self) -> bool:
        """Whether there is no room for another row."""
        return not self.room

    @property
    def whole(self) -> bool:
        """Whether the subspace is the whole space."""
        return self.count == self._rows.shape[1]

    @property
    def rows(self) -> Float[Tensor, "m _"]:
        """The orthonormal rows V."""
        return self._rows[: self.count]

    def images(
        self, weights: Sequence[float], places: Sequence[int] | None = None
    ) -> Float[Tensor, "m _"]:
        """Give the images, or some, under a sum of the operators, such as (1, 1) for H = G + R."""
        kept = self._images[:, : self.count] if places is None else self._images[:, places]
        chosen = [(w, kept[k]) for k, w in enumerate(weights) if w]
        if len(chosen) == 1 and chosen[0][0] == 1:
            return chosen[0][1]
        return torch.stack([w * image for w, image in chosen]).sum(0)

    def project_out(self, vectors: Float[Tensor, "p _"]) -> Float[Tensor, "p _"]:
        """Take away what lies in the subspace; twice, since rounding leaves some."""
        for _ in range(2):
            vectors = vectors - (vectors @ self.rows.mT) @ self.rows
        return vectors

    def new_directions(
        self, vectors: Float[Tensor, "p _"], least: float = 0.0
    ) -> Float[Tensor, "k _"]:
        """Orthonormalize vectors against the subspace and each other, as many as fit.

        Returns:
            At most p rows: those that nothing is left of, or less than `least` of their length,
            are dropped.
        """
        found = vectors.new_empty(0, vectors.shape[1])
        for vector in vectors:
            length = vector.norm()
            if len(found) == self.room or not length > 0:
                continue
            rest = self.project_out(vector[None] / length)
            for _ in range(2):
                rest = rest - (rest @ found.mT) @ found
            left = rest.norm()
            if left > max(least, _NEW[vectors.dtype]):
                # Once more after scaling up, so that what rounding left is small again.
                rest = self.project_out(rest / left)
                rest = rest - (rest @ found.mT) @ found
                found = torch.cat((found, rest / rest.norm()))
        return found

    def add(self, rows: Float[Tensor, "p _"], images: Float[Tensor, "o p _"]) -> None:
        """Add rows, as `new_directions` gives them, and their images."""
        after = self.count + len(rows)
        self._rows[self.count : after] = rows
        self._images[:, self.count : after] = images
        self.count = after

    def leading(self, weights: Sequence[float]) -> Ritz:
        """Find the Ritz value of largest size of a sum of the operators."""
        images = self.images(weights)
        values, vectors = self._ritz(images)
        ends = [-1, 0] if values[-1] >= -values[0] else [0, -1]
        if len(values) > 2:  # the neighbor of the largest, too
            ends.append(-2 if ends[0] == -1 else 1)
        chosen = vectors[:, ends].mT.to(images)
        directions = chosen @ images - values[ends, None].to(images) * (chosen @ self.rows)
        sizes = values[ends].abs().tolist()
        residuals = directions.norm(dim=1).tolist()
        gap = abs(float(values[ends[0]] - values[ends[-1]]))
        error = min(residuals[0], residuals[0] ** 2 / gap) if gap > 0 else residuals[0]
        reach = [size + residual for size, residual in zip(sizes, residuals, strict=True)]
        rivals = [i for i in range(1, len(ends)) if reach[i] > sizes[0]]
        return Ritz(
            float(values[ends[0]]),
            error,
            residuals[0],
            max(reach[1:], default=0.0),
            directions[[0, *rivals]],
        )

    def beside(
        self, weights: Sequence[float], places: Sequence[int]
    ) -> tuple[float, Float[Tensor, "1 _"], Float[Tensor, "1 _"]]:
        """Look at some rows alone, the complement of the others, under a sum of the operators.

        Returns:
            Size of their leading Ritz value plus its residual, the Ritz vector, and the residual
            outside of the whole subspace.
        """
        rows, images = self.rows[places], self.images(weights, places)
        values, vectors = _eigh(rows, images)
        chosen = vectors[:, [0, -1]].mT.to(images)
        residuals = self.project_out(chosen @ images)
        reach = values[[0, -1]].abs() + residuals.norm(dim=1)
        best = int(reach.argmax())
        return float(reach[best]), chosen[[best]] @ rows, residuals[[best]]

    def compress(self, operators: Sequence[Sequence[float]]) -> None:
        """Keep only the leading Ritz vectors of each operator, to make room."""
        kept = []
        for weights in operators:
            vectors = self._ritz(self.images(weights))[1]
            kept += [vectors[:, :_KEPT], vectors[:, -_KEPT:]]
        mixed, strength = torch.linalg.svd(torch.cat(kept, 1), full_matrices=False)[:2]
        chosen = mixed[:, strength > 1e-3 * strength[0]].mT.to(self._rows)
        rows = chosen @ self.rows
        images = torch.stack([chosen @ image[: self.count] for image in self._images])
        self.count = 0
        self.add(rows, images)

    def _ritz(
        self, images: Float[Tensor, "m _"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, "m m"]]:
        return _eigh(self.rows, images)


def _eigh(
    rows: Float[Tensor, "m _"], images: Float[Tensor, "m _"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, "m m"]]:
    """Give all Ritz values, ascending, and their vectors' coordinates as columns."""
    small = (rows @ images.mT).double()
    return torch.linalg.eigh((small + small.mT) / 2)
