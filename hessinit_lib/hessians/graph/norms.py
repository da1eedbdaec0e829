"""Norms of Gauss-Newton blocks from their Gram matrices."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.graph.gram import LayerGram
from hessinit_lib.hessians.numerics.lanczos import (
    in_range,
    power_of_two,
    random_start,
    spectral_norms,
)
from hessinit_lib.hessians.numerics.precision import few_threads
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import BlockNorms


class GramNorms(NamedTuple):
    """The Gram matrix of a block; on a CPU its Frobenius norm and trace, times B, shape (2,)."""

    name: str
    matrix: Float[Tensor, "d d"]
    numbers: Float[Tensor, 2] | None

    @property
    def nbytes(self) -> int:
        """What is held."""
        return self.matrix.nbytes


def gram_norms(gram: LayerGram) -> GramNorms:
    """Compute the Frobenius norm and the trace of a block from its Gram matrix."""
    matrix = gram.matrix()
    numbers = None
    if matrix.device.type == "cpu":  # while it is near the cores
        numbers = torch.stack((_frobenius_norm(matrix), matrix.diagonal().sum()))
    return GramNorms(gram.layer.name, matrix, numbers)


def all_norms(grams: Sequence[GramNorms], batch: int, options: Options) -> dict[str, BlockNorms]:
    """Compute the norms of some blocks from their Gram matrices."""
    if not grams:
        return {}
    known = [gram.numbers for gram in grams if gram.numbers is not None]
    matrices = [gram.matrix for gram in grams]
    if known:
        numbers = torch.stack(known)
    else:  # on a GPU: all by the same operations
        matrices = _padded(matrices)
        traces = matrices.diagonal(dim1=1, dim2=2).sum(1)
        numbers = torch.stack((torch.linalg.vector_norm(matrices, dim=(1, 2)), traces), 1)
    found: list[tuple[float, float]] = []
    for matrix, (norm, trace) in zip(matrices, numbers.tolist(), strict=True):
        if not in_range(trace):
            unit = power_of_two(trace)
            norm = _frobenius_norm(matrix / unit).item() * unit
        found.append((norm, trace))
    largest = largest_eigenvalues(matrices) if options.spectral else [math.nan] * len(grams)
    return {
        gram.name: BlockNorms(
            norm / batch if options.frobenius else math.nan, value / batch, trace / batch
        )
        for gram, value, (norm, trace) in zip(grams, largest, found, strict=True)
    }


def _frobenius_norm(matrix: Float[Tensor, "d d"]) -> Float[Tensor, ""]:
    """Compute the norm; on a CPU row by row: in float32, one sum over all loses digits there."""
    if matrix.device.type != "cpu":
        return torch.linalg.vector_norm(matrix)
    return torch.linalg.vector_norm(torch.linalg.vector_norm(matrix, dim=1))


def largest_eigenvalues(
    grams: list[Float[Tensor, "_ _"]] | Float[Tensor, "l d d"],
) -> list[float]:
    """Compute the largest eigenvalue of each matrix, those of one size together.

    Args:
        grams: symmetric, without negative eigenvalues; NaN for one that is not finite.

    Example:
        >>> largest_eigenvalues([torch.tensor([[3.0]]), torch.zeros(2, 2), torch.tensor([[1.0]])])
        [3.0, 0.0, 1.0]
    """
    if len(grams) and grams[0].device.type != "cpu":
        return _together(grams if isinstance(grams, Tensor) else _padded(grams))
    by_size: dict[int, list[int]] = {}
    for index, gram in enumerate(grams):
        by_size.setdefault(len(gram), []).append(index)
    found = [0.0] * len(grams)
    for size, members in by_size.items():
        chosen = [grams[index] for index in members]

        def apply(v: Tensor, places: list[int], chosen: list[Tensor] = chosen) -> Tensor:
            return torch.stack([chosen[k] @ row for k, row in zip(places, v, strict=True)])

        with few_threads(4 * size**2):  # which are read once: that takes the time
            norms = spectral_norms(apply, random_start(len(members), size, chosen[0]))
        for index, norm in zip(members, norms, strict=True):
            found[index] = norm
    return found


def _padded(matrices: list[Float[Tensor, "_ _"]]) -> Float[Tensor, "l d d"]:
    """Put matrices together, with zeros where one is smaller."""
    size = max(map(len, matrices))
    return torch.stack(
        [m if len(m) == size else F.pad(m, (0, size - len(m)) * 2) for m in matrices]
    )


def _together(matrices: Float[Tensor, "l d d"]) -> list[float]:
    """Find the largest eigenvalues by products of all matrices at once."""

    @functools.lru_cache(maxsize=1)  # the places seldom change
    def chosen(places: tuple[int, ...]) -> Tensor:
        return matrices if len(places) == len(matrices) else matrices[[*places]]

    def apply(v: Tensor, places: list[int]) -> Tensor:
        return torch.bmm(v[:, None], chosen(tuple(places)))[:, 0]

    count, size, _ = matrices.shape
    return spectral_norms(apply, random_start(count, size, matrices))
