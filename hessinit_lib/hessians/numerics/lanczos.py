"""Eigenvalues of largest size of symmetric operators, by Lanczos iteration.

Operators may be of any size: what they give is scaled where its squares are no float32 numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.numerics.precision import few_threads

Operator = Callable[[Float[Tensor, "p d"]], Float[Tensor, "p d"]]
Operators = Callable[[Float[Tensor, "q d"], list[int]], Float[Tensor, "q d"]]
"""Maps each row by the operator of that number."""

_MAX_STEPS = 400
_SMALL = 1 << 18  # entries of random vectors that are kept for the next call


def in_range(size: float) -> bool:
    """Tell whether the squares of numbers of some size, and their sums, are good in float32.

    Example:
        >>> in_range(1.0), in_range(1e-20), in_range(0.0)
        (True, False, False)
    """
    return 1e-12 <= abs(size) <= 1e12


def power_of_two(size: float) -> float:
    """Give the power of two next to a number: dividing by it changes no digit.

    For zero, infinity and NaN, for which there is none, 1 comes back.

    Example:
        >>> power_of_two(0.3), power_of_two(3e-25) == 2.0**-81, power_of_two(0.0)
        (0.25, True, 1.0)
    """
    return 2.0 ** round(math.log2(size)) if 0 < size < math.inf else 1.0


def all_finite(*tensors: Tensor) -> bool:
    """Tell whether no entry is infinite or NaN; the device is waited for once.

    Example:
        >>> all_finite(torch.ones(2), torch.tensor([1.0, math.nan]))
        False
    """
    sizes = [torch.linalg.vector_norm(each, math.inf) for each in tensors if each.numel()]
    return all(map(math.isfinite, torch.stack(sizes).tolist())) if sizes else True


def random_start(count: int, size: int, like: Tensor) -> Float[Tensor, "p d"]:
    """Make unit vectors that are the same at each call, of the type and device of `like`."""
    make = _unit_vectors if count * size <= _SMALL else _unit_vectors.__wrapped__
    return make(count, size).to(like, copy=True)


@functools.lru_cache(maxsize=4)  # layers of one size follow each other
def _unit_vectors(count: int, size: int) -> Float[Tensor, "p d"]:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(count, size, generator=generator, device="cpu")
    return start / start.norm(dim=1, keepdim=True)


def spectral_norms(
    operators: Operators, start: Float[Tensor, "p d"], tolerance: float = 0.0
) -> list[float]:
    r"""Compute $\max_i |\lambda_i|$ of p symmetric operators at once.

    Lanczos with full reorthogonalization. It stops when each leading Ritz value's residual
    is below 1e-4 of it in float32 and 1e-9 in float64, its error bound min(residual,
    residual^2 / gap) below 1e-6 and 1e-11, and no eigenvalue at the other end can be larger.
    In float32 a tolerance t raises the second number to t / 20, but not the first: a random
    start has so small a part along the leading eigenvector, now and then, that the process
    settles on the next one first, and a small residual makes that rare.

    Args:
        operators: maps rows, shape (q, d), by the operators whose numbers are given: those
            whose norm is known drop out.
        start: where to start, shape (p, d), such as `random_start` gives.
        tolerance: relative error allowed.

    Returns:
        The p norms; NaN where an operator gives non-finite values.

    Raises:
        ArithmeticError: no convergence in 400 steps.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, -3.0, 2.0]))
        >>> (norm,) = spectral_norms(lambda v, _: v @ matrix, random_start(1, 3, matrix))
        >>> round(norm, 5)
        3.0
    """
    count, size = start.shape
    tolerances = (1e-9, 1e-11) if start.itemsize == 8 else (1e-4, max(1e-6, tolerance / 20))
    rounding = 10 * torch.finfo(start.dtype).eps
    steps = min(size, _MAX_STEPS)
    # To look takes as long as a step or two: on a GPU, all that is under way has to end.
    first, every = (4, 2) if start.device.type == "cpu" else (11, 6)
    # Steps first: each takes the vectors of all chains as one matrix.
    basis = start.new_empty(min(steps, 16), count, size)
    torch.div(start, torch.linalg.vector_norm(start, dim=1, keepdim=True), out=basis[0])
    diagonal, beside = np.zeros((2, steps, count))
    chains, norms = [*range(count)], [math.nan] * count
    done, found = 0, list[Tensor]()
    for step in range(1, steps + 1):
        image = operators(basis[step - 1], chains)
        if step == 1:  # what an operator does to a random vector tells its size
            found.append(torch.linalg.vector_norm(image, math.inf, dim=1))
        with few_threads(step * image.numel()):
            if step == len(basis) < steps:  # grow in blocks: most runs end early
                basis = torch.cat((basis, torch.empty_like(basis)))
            along, image = _orthogonalize(basis[max(0, step - 2) : step], image)
            # Rounding left some overlap with all others, which would grow from step to step.
            _, image = _orthogonalize(basis[:step], image)
            lengths = torch.linalg.vector_norm(image, dim=1)
            if step < steps:
                torch.div(image, lengths[:, None], out=basis[step])
        found += [along, lengths]
        if step < steps and (step < first or (step - first) % every):
            continue
        seen = torch.stack(found).cpu().numpy().astype(float)
        if not done:
            units = [1.0 if in_range(size) else power_of_two(size) for size in seen[0].tolist()]
            if any(unit != 1 for unit in units):
                return _scaled(operators, start, tolerance, units)
            seen = seen[1:]
        diagonal[done:step], beside[done:step] = seen[::2], seen[1::2]
        done, found = step, []
        pending = []
        looks = _look(diagonal[:step], beside[:step], rounding, tolerances)
        for place, (chain, (norm, converged)) in enumerate(zip(chains, looks, strict=True)):
            norms[chain] = norm
            if not converged and step < size:
                pending.append(place)
        if not pending:
            return norms
        if len(pending) < len(chains):
            chains = [chains[place] for place in pending]
            basis = basis[: step + 1, pending]
            diagonal, beside = diagonal[:, pending], beside[:, pending]
    raise ArithmeticError(f"Lanczos did not converge in {steps} steps")


def _scaled(
    operators: Operators, start: Float[Tensor, "p d"], tolerance: float, units: list[float]
) -> list[float]:
    """Compute the norms of operators over units, and multiply by these."""
    by_chain = start.new_tensor(units)[:, None]
    norms = spectral_norms(
        lambda v, chosen: operators(v, chosen) / by_chain[chosen], start, tolerance
    )
    return [norm * unit for norm, unit in zip(norms, units, strict=True)]


def _orthogonalize(
    basis: Float[Tensor, "k p d"], image: Float[Tensor, "p d"]
) -> tuple[Float[Tensor, " p"], Float[Tensor, "p d"]]:
    """Give the image's component along the last basis vector, and what is outside of the basis."""
    # Row times matrix: the order that batched products of several chains are fast in.
    overlaps = torch.bmm(image[:, None], basis.permute(1, 2, 0))
    rest = torch.baddbmm(image[:, None], overlaps, basis.transpose(0, 1), alpha=-1)
    return overlaps[:, 0, -1], rest[:, 0]


def _look(
    diagonal: np.ndarray, beside: np.ndarray, rounding: float, tolerances: tuple[float, float]
) -> Iterator[tuple[float, bool]]:
    """Give the norm that each chain shows so far, and whether it can be trusted.

    What comes after a length that is rounding alone does not count: the chain is exhausted.
    """
    steps, chains = diagonal.shape
    scale = np.maximum.accumulate(np.maximum(np.abs(diagonal), beside))
    ended = ~(beside > rounding * scale)  # NaN, too
    after = np.roll(np.logical_or.accumulate(ended), 1, axis=0)
    after[0] = False
    finite = np.asarray(np.isfinite(np.where(after, 0.0, diagonal + beside)).all(0))
    tridiagonal = np.zeros((chains, steps, steps))
    at = np.arange(steps)
    tridiagonal[:, at, at] = np.where(after | ~finite, 0.0, diagonal).T
    # Of which one half is read.
    tridiagonal[:, at[1:], at[:-1]] = np.where(after | ended | ~finite, 0.0, beside)[:-1].T
    last = np.where(ended.any(0), 0.0, beside[-1])
    ritz = np.linalg.eigh(tridiagonal)
    for values, vectors, beta, sound in zip(*ritz, last, finite, strict=True):
        found = _leading_ritz_value(values, vectors, beta, tolerances)
        yield found if sound else (math.nan, True)


def _leading_ritz_value(
    values: np.ndarray, vectors: np.ndarray, beta: float, tolerances: tuple[float, float]
) -> tuple[float, bool]:
    """Give the size of the leading Ritz value of one chain, and whether it can be trusted."""
    top, other = (-1, 0) if values[-1] >= -values[0] else (0, -1)
    residuals = beta * np.abs(vectors[-1])
    norm = abs(float(values[top]))
    gap = 0.0 if len(values) == 1 else abs(values[top] - values[-2 if top == -1 else 1])
    bound = residuals[top] ** 2 / gap if gap > 0 else math.inf
    close = residuals[top] <= tolerances[0] * norm
    sharp = min(residuals[top], bound) <= tolerances[1] * norm
    # The other end may still grow by its own residual.
    settled = (
        values[other] * values[top] >= 0
        or abs(values[other]) + residuals[other] < norm
        or beta == 0
    )
    return norm, bool(close and sharp and settled)
