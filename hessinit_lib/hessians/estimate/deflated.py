r"""The norms of one block from its products with vectors, deflated.

A subspace is grown until it holds the leading eigenvectors of H, G and R: their spectral
norms. With V its orthonormal rows and P the projection on its complement,

$$\|M\|_F^2 = 2 \|V M\|_F^2 - \|V M V^\top\|_F^2 + \mathbb{E} |P M P w|^2, \qquad w \sim N(0, I),$$

$$\operatorname{tr} M = \operatorname{tr} V M V^\top + \mathbb{E}\, w^\top P M P w,$$

so only what the subspace leaves is estimated (Hutchinson's estimator, deflated). With
A = (P M P)^2 a draw w^T A w has variance 2 tr A^2, and (w^T A w')^2 of two draws has mean
tr A^2: pairs of draws tell the error, and whether few eigenvectors carry the rest. Those
are better deflated, too, than sampled.

Products with a subspace tell nothing of eigenvectors that it has no part of, as where it
began in the range of a G that is small or zero. So no spectral norm is given before Lanczos
steps from a random vector in the complement. Those find eigenvalues up to theta there, and k
of them multiply the part of an eigenvector of eigenvalue lambda, about 1 / sqrt P at first, by
T_k(lambda / theta), Chebyshev's polynomial (Kuczynski and Wozniakowski, 1992): it would show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.estimate.subspace import Ritz, Subspace
from hessinit_lib.hessians.numerics.estimates import error_of_low_draws, mean_and_error
from hessinit_lib.hessians.numerics.random import standard_normal
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import NOT_FINITE, BlockNorms

# H, G and R as sums of G and R; or H as itself.
PARTS = ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0))
WHOLE = ((1.0,),)
GAUSS_NEWTON = ((1.0, 0.0),)

_PROBES = 8  # drawn at a time

# Rounds of a check, at most: where the spectrum has no gap below its end, nothing is sure.
_ROUNDS = 12

# Effective number of eigenvectors below which the rest is deflated.
_FEW = 10.0
_KNOWN = 0.7  # of that number: draws may show the small ones alone beside a large one


class DeflatedNorms:
    """Ask for products until the norms of a block are known well enough.

    First `start`, then `add_rows` with the products of what `growth` asks for until it asks
    for nothing, then `add_probes` with those of `probes` until `done`, and `add_rows` with
    what `deflation` asks for in between.

    Args:
        size: P, the number of parameters.
        capacity: rows that the subspace may have.
        like: a tensor of the type and device of the vectors.
        options: which norms, and how well.
        limit: products that may be asked for; then `done`, with whatever error is left.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, -5.0, 2.0]))
        >>> norms = DeflatedNorms(3, 3, torch.empty(0), Options(parts=False))
        >>> rows = norms.start(torch.ones(1, 3))
        >>> while len(rows):
        ...     norms.add_rows(rows, (rows @ matrix)[None])
        ...     rows = norms.growth()
        >>> norms.done
        True
        >>> round(norms.norms()[0].spectral, 4)
        5.0
    """

    def __init__(
        self, size: int, capacity: int, like: Tensor, options: Options, limit: float = math.inf
    ) -> None:
        self._limit, self._count = limit, 0
        self._operators = PARTS if options.parts else WHOLE
        if options.curvature == "ggn":
            self._operators = GAUSS_NEWTON
        self._options = options
        self._space = Subspace(size, len(self._operators[0]), capacity, like)
        # What rounding allows is not asked for more sharply.
        self._tolerance = max(options.tolerance, 100 * torch.finfo(like.dtype).eps)
        self._probed: list[_Probes] = []
        self._finite, self._sure = True, False
        seed = options.generator.initial_seed() if options.generator else 0
        # Its own, so that other draws stay what they are.
        self._random = torch.Generator().manual_seed((seed + 1) % 2**63)
        self._check: _Check | None = None
        self._extended = False  # whether the rows asked for are those of the check

    def start(self, vectors: Float[Tensor, "p _"]) -> Float[Tensor, "k _"]:
        """Give the rows to begin with, from vectors that reach what is large in the block."""
        return self._space.new_directions(vectors)[: self._affordable()]

    def _affordable(self, share: float = 1.0) -> int:
        """Rows that may still be asked for of a share of the limit, if two probes are to follow.

        All of the limit where it allows the whole space.
        """
        reserve = 2 if self._options.frobenius else 0
        left = self._space.rows.shape[1] - self._space.count
        if left <= min(self._space.room, self._limit - self._count):
            reserve, share = 0, 1.0
        return int(min(max(0, self._limit * share - self._count - reserve), 1 << 30))

    def add_rows(self, rows: Float[Tensor, "k _"], images: Float[Tensor, "o k _"]) -> None:
        """Take in the products of the rows that were asked for."""
        if self._check is not None and self._extended:
            self._check.places += range(self._space.count, self._space.count + len(rows))
        self._extended = False
        self._count += len(rows)
        self._finite = self._finite and bool(torch.isfinite(images).all())
        self._space.add(rows, images)
        self._probed = []  # they were drawn from a larger complement

    def growth(self) -> Float[Tensor, "k _"]:
        """Give the rows to go on with; none if the spectral norms are known."""
        share = 0.5 if self._options.frobenius else 1.0  # the rest is for the Frobenius norms
        affordable = self._affordable(share)
        wanted = self._growth() if affordable else self._space.rows[:0]
        self._sure = bool(affordable) and not len(wanted)
        return wanted[:affordable]

    def _growth(self) -> Float[Tensor, "k _"]:
        space = self._space
        if not self._options.spectral or space.whole or not self._finite:
            return space.rows[:0]
        leading = [space.leading(weights) for weights in self._operators] if space.count else []
        scale = abs(leading[0].value) if leading else 0.0
        wanted = [ritz.directions for ritz in leading if not self._converged(ritz, scale)]
        if wanted:
            if space.full:
                self._make_room()
            fresh = space.new_directions(torch.cat(wanted))
            if len(fresh):
                return fresh
        sizes = [abs(ritz.value) for ritz in leading] or [0.0] * len(self._operators)
        return self._beyond(sizes, 0.1 * self._tolerance * scale)

    def _beyond(self, sizes: list[float], allowed: float) -> Float[Tensor, "k _"]:
        """Give rows that look for eigenvalues larger than those found; none if that is done."""
        space, check = self._space, self._check
        grown = check and any(
            now > then + allowed for now, then in zip(sizes, check.sizes, strict=True)
        )
        if check is None or grown:
            check = self._check = _Check([], sizes)
        check.rounds += 1
        if space.full:
            self._make_room()
        if not check.places:
            at_random = standard_normal((1, space.rows.shape[1]), self._random, space.rows)
            fresh = space.new_directions(torch.cat((*check.kept, at_random))[:1])
        else:
            wanted = []
            # The part of an eigenvector in a random vector, with a chance of 3 in 4 or more.
            needed = math.log(6 * math.sqrt(space.rows.shape[1]))
            for weights, size in zip(self._operators, sizes, strict=True):
                reach, _, residual = space.beside(weights, check.places)
                gain = math.acosh(max(1.0, (size + allowed) / reach)) if reach else math.inf
                if (check.rounds - 2) * gain < needed:
                    wanted.append(residual)
            if not wanted or check.rounds > _ROUNDS:
                return space.rows[:0]
            # Where H, G and R go almost the same way one of them goes for all.
            fresh = space.new_directions(torch.cat(wanted), 0.3)
        self._extended = True
        return fresh

    def _make_room(self) -> None:
        """Keep the leading Ritz vectors alone; a check goes on from its own."""
        check = self._check
        if check is not None and check.places:
            check.kept = [self._space.beside(self._operators[0], check.places)[1]]
            check.places = []
        self._space.compress(self._operators)

    def _converged(self, ritz: Ritz, scale: float) -> bool:
        """Tell whether a spectral norm is sure to a tenth of the tolerance, of the block's norm.

        A small residual alone could belong to an inner eigenvalue: nothing else may turn
        out to be notably larger.
        """
        allowed = self._tolerance * scale
        close = ritz.residual <= 0.5 * allowed and ritz.error <= 0.1 * allowed
        return close and ritz.rival <= abs(ritz.value) + 0.5 * allowed

    @property
    def done(self) -> bool:
        """Whether the Frobenius norms are known well enough."""
        spent = self._limit - self._count < 2 and (self._probed or not self._affordable())
        return bool(spent) or self.excess <= 1

    @property
    def excess(self) -> float:
        """The largest error of a Frobenius norm, over what is allowed; infinite if unknown."""
        if not self._options.frobenius or self._space.whole:
            return 0.0
        return max(self._excess()) if self._probed else math.inf

    def _excess(self) -> list[float]:
        """Give the errors of the Frobenius norms over what is allowed."""
        found = self.norms()
        allowed = [self._tolerance * found[0].frobenius] * len(found)
        if len(found) > 1:
            allowed[1] = self._tolerance * found[1].frobenius
        return [
            norms.stderr / limit if limit > 0 and norms.stderr > 0 else 0.0
            for norms, limit in zip(found, allowed, strict=True)
        ]

    def deflation(self) -> Float[Tensor, "k _"]:
        """Give rows to go on with where few eigenvectors carry what is still unknown.

        All there are, where sampling costs about as much: twice the least is little.
        """
        return self._deflation()[: self._affordable()]

    def _deflation(self) -> Float[Tensor, "k _"]:
        space = self._space
        excess = self._excess() if self._probed else [0.0]
        drawn = _PROBES * len(self._probed) * max(excess) ** 2
        if (left := space.rows.shape[1] - space.count) <= min(max(2 * _PROBES, drawn), space.room):
            every = standard_normal((left, space.rows.shape[1]), self._random, space.rows)
            return space.new_directions(every)
        if not self._probed or space.full:
            return space.rows[:0]
        worst = excess.index(max(excess))
        last = self._probed[-1]
        mean, square = float(last.lengths[worst].mean()), float(last.pairs[worst])
        if mean**2 >= _FEW * square:
            return space.rows[:0]
        # A random vector times the block is mostly made of these eigenvectors.
        return space.new_directions(last.images[worst])

    def probes(self, generator: torch.Generator) -> Float[Tensor, "p _"]:
        """Draw random vectors in the complement of the subspace, for `add_probes`."""
        rows = self._space.rows
        count = int(min(_PROBES, max(2, self._limit - self._count)))
        drawn = standard_normal((count, rows.shape[1]), generator, rows)
        return self._space.project_out(drawn)

    def add_probes(self, probes: Float[Tensor, "p _"], images: Float[Tensor, "o p _"]) -> None:
        """Take in the products of the probes."""
        self._count += len(probes)
        kept = []
        for weights in self._operators:
            image = sum(w * part for w, part in zip(weights, images, strict=True) if w)
            assert isinstance(image, Tensor)
            kept.append((self._space.project_out(image), (image * probes).sum(1).double()))
        if self._probed:
            self._probed[-1] = self._probed[-1].without_images()
        self._probed.append(_Probes.of(*zip(*kept, strict=True)))

    def norms(self) -> tuple[BlockNorms, ...]:
        """Give the norms of the block, and of its two parts if they were asked for."""
        return tuple(self._norms(index) for index in range(len(self._operators)))

    def _norms(self, index: int) -> BlockNorms:
        space, weights = self._space, self._operators[index]
        images = space.images(weights)
        unknown = not self._probed and not space.whole and self._options.frobenius
        if not torch.isfinite(images).all() or (unknown and self._limit < math.inf):
            return NOT_FINITE
        inner = (images @ space.rows.mT).double()
        square = float(2 * _inner_products(images).trace() - inner.square().sum())
        trace = float(inner.trace())
        square_error = trace_error = 0.0
        if self._probed:
            lengths = torch.cat([each.lengths[index] for each in self._probed])
            traces = torch.cat([each.traces[index] for each in self._probed])
            pairs = torch.stack([each.pairs[index] for each in self._probed]).mean()
            rest, square_error = mean_and_error(lengths, 2 * pairs)
            # Few eigenvectors make a skewed distribution: low draws come with low errors.
            alike = rest**2
            if len(lengths) < _PROBES:  # where one is short by chance, the square is too large
                alike = (lengths.sum() ** 2 - lengths.square().sum()) / len(lengths)
                alike = alike / (len(lengths) - 1)
            carriers = float(alike / pairs) * len(lengths) if pairs > 0 else 1e9
            square_error = float(square_error) * (1 + 2 / math.sqrt(max(carriers, 1.0)))
            degrees = max(_KNOWN * carriers, float(len(lengths)))
            square_error = max(square_error, error_of_low_draws(float(rest), degrees))
            # The variance of the trace is known as well as that.
            rest_trace, trace_error = mean_and_error(traces, 2 * (float(rest) + square_error))
            square += float(rest)
            trace, trace_error = trace + float(rest_trace), float(trace_error)
        frobenius = math.sqrt(max(square, 0.0))
        stderr = square_error / (2 * frobenius) if frobenius else 0.0
        spectral = math.nan
        if self._options.spectral:
            # No row was asked for: the block is zero, unless the limit did not allow one.
            none = math.nan if self._limit < math.inf else 0.0
            spectral = abs(space.leading(weights).value) if space.count else none
        # Where the limit came first, others may be larger; none is larger than the Frobenius norm.
        above = math.inf if not self._options.frobenius else frobenius + 2 * stderr
        sure = self._sure or space.whole or not self._options.spectral
        gap = 0.0 if sure else max(0.0, above - spectral)
        if not self._options.frobenius:
            return BlockNorms(math.nan, spectral, math.nan, spectral_gap=gap)
        return BlockNorms(frobenius, spectral, trace, stderr, trace_error, spectral_gap=gap)


@dataclass
class _Check:
    """Lanczos steps in the complement of what was known.

    Attributes:
        places: its rows in the subspace.
        sizes: the spectral norms that it is to confirm.
        kept: where it goes on if the subspace was compressed.
        rounds: steps, and one.
    """

    places: list[int]
    sizes: list[float]
    kept: list[Float[Tensor, "1 _"]] = field(default_factory=list)
    rounds: int = 0


@dataclass(frozen=True)
class _Probes:
    """Some probes under each of the operators.

    Attributes:
        lengths: |P M P w|^2, shape (operators, p).
        traces: w^T P M P w, shape (operators, p).
        pairs: mean square of the inner products of two P M P w, shape (operators,).
        images: P M P w, for each operator shape (p, P).
    """

    lengths: Float[Tensor, "m p"]
    traces: Float[Tensor, "m p"]
    pairs: Float[Tensor, " m"]
    images: tuple[Tensor, ...]

    @classmethod
    def of(cls, images: tuple[Tensor, ...], traces: tuple[Tensor, ...]) -> _Probes:
        """Sum up the images."""
        lengths, pairs = [], []
        for image in images:
            inner = _inner_products(image)
            lengths.append(inner.diagonal())
            count = len(inner)
            pairs.append((inner.square().sum() - lengths[-1].square().sum()) / (count**2 - count))
        return cls(torch.stack(lengths), torch.stack(traces), torch.stack(pairs), images)

    def without_images(self) -> _Probes:
        """Keep only the numbers."""
        return replace(self, images=())


def _inner_products(rows: Float[Tensor, "p _"]) -> Float[Tensor, "p p"]:
    """Compute inner products of rows in float64, however small their entries are."""
    scale = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    scaled = rows / scale
    return (scaled @ scaled.mT).double() * (scale.double() * scale.mT.double())
