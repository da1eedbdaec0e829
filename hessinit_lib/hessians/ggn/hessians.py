r"""Gauss-Newton blocks of any network whose samples do not mix, from a few backward passes.

With $A = D_z^2 L$, $S S^\top = A$ and random signs $\epsilon$, one backward pass from $S \epsilon$
gives $g_b = J_b^\top S_b \epsilon_b$ for each sample b, of all weights at once. Of two such passes,
with independent signs,

$$\|G\|_F^2 = \mathbb{E} \sum_{b,c} (g_b \cdot g'_c)^2 , \qquad
  \operatorname{tr} G = \mathbb{E} \sum_b |g_b|^2 .$$

Source: Hutchinson (1990) for random signs; Martens and Grosse, arXiv 1503.05671, and Dangel,
Kunstner and Hennig, arXiv 1912.10985, for passes from roots of the curvature; pairs of passes and
their error: derivation in the book, statement 12.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.derivatives import Tried, check_derivatives
from hessinit_lib.hessians.ggn.passes import MOST, Passes
from hessinit_lib.hessians.ggn.spectral import spectral_bounds
from hessinit_lib.hessians.ggn.uses import Graph, Plan
from hessinit_lib.hessians.ggn.vectors import BasisDraw, Subset
from hessinit_lib.hessians.numerics.estimates import Products, Sketch, mean_norms, sketch_of
from hessinit_lib.hessians.numerics.precision import rounded_passes
from hessinit_lib.hessians.numerics.random import cpu_generator
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import NOT_FINITE, ZERO, BlockNorms, HessianReport, LayerHessian

_MANY = 1 << 20  # vectors, if the budget is none
_GRADIENTS = 24  # per-sample gradients, of all vectors together, that tell an error
_TYPICAL = 0.85  # largest error stated of two vectors, times the root of the samples

# Numbers up to which sums over pairs of samples are made on the CPU.
_FEW_NUMBERS = 1 << 22

# What a call takes in any case, in training steps: forward pass, search for the weights' places,
# check of derivatives; and for each vector: backward pass, gradients and their products.
_ONCE, _EACH = 1.0, 0.8

# The same more closely, for bases: a backward pass, inner products of a pair, a forward pass.
_PASS, _PAIR, _AGAIN = 0.6, 0.3, 0.4

_EXTRA = 0.25  # of the batch, that may be added to it
_SURE = 0.8  # of the square of the error allowed: what is expected should be below


@dataclass
class Known:
    """What is known of a model from an earlier call.

    Attributes:
        note: of the check of its derivatives.
        plan: of its graph.
        drawing: modules that draw random numbers.
        exact: whether there is an exact route.
    """

    note: str | None = None
    plan: Plan | None = None
    drawing: set[nn.Module] | None = None
    exact: bool = True

    def look(self, outputs: Tensor, weights: Mapping[str, Tensor], samples: int) -> Tried | None:
        """Make a plan of the graph of a few samples, which takes less than of all."""
        if outputs.ndim == 0 or not outputs.numel() or len(outputs) % samples:
            return None
        graph = Graph(outputs, weights, samples, gradients=True)
        self.plan = graph.plan
        return graph.tried


def forecast(samples: int) -> float:
    """Give the training steps that Gauss-Newton norms take, if two vectors will do."""
    return _ONCE + _EACH * _least(samples)


def ggn_hessians(
    case: Case,
    options: Options,
    *,
    whole: bool = False,
    directions: Mapping[str, Tensor] | None = None,
    known: Known | None = None,
) -> HessianReport:
    r"""Estimate the norms of every layer's Gauss-Newton block, of any model.

    Args:
        case: a model and a batch.
        options: what to compute. Vectors are added until the standard errors of the Frobenius
            norms are within `tolerance`, or the budget is spent.
        whole: take all weights as one block, "model".
        directions: u for each weight; $u^\top G u = \mathbb{E} \sum_b (u \cdot g_b)^2$ is then
            estimated by the same vectors, see `HessianReport.along`.
        known: of the same model, from an earlier call; what is found is noted there.

    Raises:
        NotImplementedError: active dropout, a loss that couples samples.
        ValueError: outputs that are not one tensor, a loss that is not one number.
    """
    known = known or Known()
    if known.note is None:
        known.note = check_derivatives(case, exact=False, look=known.look)
    notes = [known.note]
    shapes = {name: tuple(weight.shape) for name, weight in case.weights.items()}
    if whole:
        shapes = {"model": (sum(math.prod(shape) for shape in shapes.values()),)}
    blocks = {name: _Block(options) for name in shapes}
    with rounded_passes(options.tolerance), torch.no_grad():
        passes = Passes(case, options.max_memory, known.plan)
        known.plan = passes.plan
        if passes.finite:
            generator = cpu_generator(options.generator)
            work = _Work(passes, options, generator, blocks, directions or {}, whole)
            notes.append(work.run([*case.weights]))
    layers = []
    for name, block in blocks.items():
        norms = block.norms() if passes.finite else NOT_FINITE
        layers.append(
            LayerHessian.from_parts(
                name,
                shapes[name],
                norms,
                norms,
                NOT_FINITE,
                exact=passes.finite and block.exact and not known.note,
                curvature="ggn",
            )
        )
    along = {name: blocks[name].along() for name in directions or {}}
    return HessianReport(layers, "; ".join(filter(None, notes)), along=along)


def _least(samples: int) -> int:
    """Count the vectors that tell an error: of few samples, two do not."""
    return 2 if 2 * samples >= _GRADIENTS else max(3, math.ceil(_GRADIENTS / samples / 2))


def _first(samples: int, tolerance: float) -> int:
    """Count the vectors to begin with: those that will typically do, if they are few."""
    ratio = _TYPICAL / tolerance
    typical = 2 * ratio * ratio / samples
    return max(_least(samples), min(math.ceil(typical), MOST) if typical <= 2 * MOST else 2)


@dataclass
class _Work:
    """One call: what it adds vectors to, until all blocks are known well enough."""

    passes: Passes
    options: Options
    generator: torch.Generator
    blocks: dict[str, _Block]
    directions: Mapping[str, Tensor]
    whole: bool

    def run(self, names: list[str]) -> str:
        """Add vectors; say so if the budget ends that."""
        with tqdm(desc="Gauss-Newton norms", unit="pass", delay=3, leave=False) as bar:
            if self.passes.hessian.rank:
                self._by_bases(names, bar)
            else:
                self._by_signs(names, bar)
        return self.options.stopped(block.excess() for block in self.blocks.values())

    def _by_signs(self, names: list[str], bar: tqdm) -> None:
        """Add independent vectors."""
        first, blocks = _first(self.passes.samples, self.options.tolerance), self.blocks
        most = max(first, int(min((self.options.steps - _ONCE) / _EACH, _MANY)))
        needed, done, unknown = first, 0, list(blocks)
        while needed:
            bar.total = done + needed
            count = min(needed, MOST) if needed - MOST != 1 else MOST - 1
            drawn = [self.passes.hessian.draw(self.generator) for _ in range(count)]
            both = len(drawn[0]) == 2  # (e, A e) in place of S e twice
            # Of products with themselves the diagonal will do, unless they are asked for.
            alone = not (self.options.spectral or both)
            every = ((a, c) for a in range(count) for c in range(count) if both or a + alone <= c)
            pairs = {(a, c): (2 * a, 2 * c + 1) if both else (a, c) for a, c in every}
            vectors = [vector for pair in drawn for vector in pair]
            self._add(names if self.whole else unknown, vectors, pairs)
            done += count
            bar.update(count)
            excess = {name: blocks[name].excess() for name in unknown}
            unknown = [name for name in unknown if excess[name] > 1]
            # The error of a mean falls with the root of their number.
            wanted = (math.ceil(1.1 * done * excess[name] ** 2) for name in unknown)
            needed = min(max(max(wanted, default=done) - done, 3 if unknown else 0), most - done)
            needed = needed if needed > 1 else 0

    def _by_bases(self, names: list[str], bar: tqdm) -> None:
        """Add vectors of bases: all of a basis for samples that rule the error."""
        passes, generator, samples = self.passes, self.generator, self.passes.samples
        count = min(_first(samples, self.options.tolerance), passes.hessian.rank)
        draw = BasisDraw.of(samples, passes.hessian.rank, count, generator)
        left, unknown = self.options.steps - _ONCE, list(self.blocks)
        # With all vectors of a few samples only norms and traces are estimated.
        plain = self.options.spectral or bool(self.directions)
        while True:
            bar.total = bar.n + draw.count
            own = 0 if self.options.spectral else 1
            every = ((a, c) for a in range(draw.count) for c in range(a + own, draw.count))
            pairs = {pair: pair for pair in (*every, *draw.pairs)}
            vectors = [passes.hessian.product(draw.vectors(a), draw.samples) for a in range(count)]
            self._add(names if self.whole else unknown, vectors, pairs, draw)
            bar.update(count)
            left -= cost(draw.count, len(draw.samples) / samples, len(pairs))
            unknown = [name for name in unknown if self.blocks[name].excess() > 1]
            chosen = next_draw([self.blocks[name] for name in unknown], samples, left, plain)
            if chosen is None:
                return
            count, complete = chosen
            draw = BasisDraw.of(samples, passes.hessian.rank, count, generator, complete)
            if len(draw.samples) != passes.samples and not passes.resample(draw.samples):
                plain = True
                draw = BasisDraw.of(samples, passes.hessian.rank, count, generator)

    def _add(
        self,
        names: list[str],
        vectors: Sequence[Tensor],
        pairs: Mapping[tuple[int, int], tuple[int, int]],
        draw: BasisDraw | None = None,
    ) -> None:
        """Add what some vectors tell about some weights."""
        count = 1 + max(c for _, c in pairs)
        both, alone = len(vectors) > count, (0, 0) not in pairs
        # On a GPU, many operations on a few numbers: these are brought here at once.
        few = len(pairs) * self.passes.samples**2 <= _FEW_NUMBERS
        like = vectors[0].new_empty(0, device="cpu") if few else vectors[0]
        weights = cache(partial(draw.weights, like=like)) if draw else None
        choose = partial(Subset.of, tolerance=self.options.tolerance, generator=self.generator)
        total: dict[tuple[int, int], Tensor] = {}
        lengths: list[Tensor] = []
        for name, gradients in self.passes.gradients(names, vectors):
            found, own, subset = gradients.inner_products(
                list(pairs.values()),
                squares=alone,
                choose=choose if draw and not self.whole else None,
            )
            if few and subset is None:
                found, own = _on_cpu(found, own)
            if name in self.directions:
                along = gradients.along(self.directions[name], len(vectors))
                self.blocks[name].add_along(along, both)
            del gradients  # make room for those of the next weight
            products = dict(zip(pairs, found, strict=True))
            own = own or [products[a, a].diagonal() for a in range(count)]
            if self.whole:
                total = {pair: total.get(pair, 0) + matrix for pair, matrix in products.items()}
                lengths = [a + b for a, b in zip(lengths or [0] * count, own, strict=True)]
                continue
            self.blocks[name].add(products, own, draw, weights, subset)
        if total:
            self.blocks["model"].add(total, lengths, draw, weights)


def _on_cpu(found: list[Tensor], own: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Bring matrices and vectors to the CPU, by one transfer."""
    if found[0].device.type == "cpu":
        return found, own
    flat = torch.cat([each.flatten() for each in (*found, *own)]).cpu()
    parts = flat.split([each.numel() for each in (*found, *own)])
    moved = [part.view(each.shape) for part, each in zip(parts, (*found, *own), strict=True)]
    return moved[: len(found)], moved[len(found) :]


def cost(count: int, share: float, pairs: int) -> float:
    """Give the training steps of passes from vectors on a share of the batch, gradients and all."""
    return share * (_PASS * count * -(-count // MOST) + _PAIR * pairs)


def next_draw(
    blocks: Sequence[_Block], samples: int, left: float, plain: bool
) -> tuple[int, list[int]] | None:
    """Choose how many vectors to draw next, and samples to draw all for, at the least cost.

    Args:
        blocks: those that are not known well enough.
        samples: B.
        left: training steps.
        plain: whether no sample may be given more vectors than others.

    Returns:
        m, and samples; None if there is nothing to do, or nothing that the budget allows.
    """
    if not blocks:
        return None
    last = blocks[0].draw
    assert last is not None
    rank, heavy, done = last.rank, last.all_of, blocks[0].count
    parts = torch.stack([block.parts(samples) for block in blocks])
    excess = torch.tensor([block.excess() for block in blocks], dtype=torch.float64, device="cpu")
    order = parts.sum(0).argsort(descending=True).tolist()
    numbers = [0] if plain or heavy else [0, *(1 << k for k in range(samples.bit_length()))]
    found: list[tuple[float, float, int, list[int]]] = []
    for count, number in product(range(2, min(rank, MOST) + 1), numbers):
        extra = (-(-rank // count) - 1) * (number or len(heavy)) / samples
        if count == rank or extra > _EXTRA:
            continue
        complete = heavy or order[:number]
        pairs = count * (count + (1 if complete else -1)) // 2
        price = cost(count, 1 + extra, pairs) + (_AGAIN if number else 0)
        fewer = (1 / count - 1 / rank) / (1 / last.count - 1 / rank)
        if number:  # in place of what was found so far
            error = (parts.sum(1) - parts[:, complete].sum(1)) * fewer
        else:
            mean = done**2 + count**2 * fewer * done / last.count
            error = excess.square() * mean / (done + count) ** 2
        found.append((float(error.max()), price, count, complete))
    pairs = rank * (rank + 1) // 2
    again = _AGAIN if heavy else 0
    found.append((0.0, cost(rank, 1.0, pairs) + again, rank, []))
    found = [each for each in found if each[1] <= left]
    enough = [each for each in found if each[0] <= _SURE]
    if not found:
        return None
    best = min(enough, key=lambda each: each[1]) if enough else min(found)
    return best[2], best[3]


class _Block:
    """What is known of one block."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._sketches: list[Sketch] = []
        self._bounds: list[tuple[float, ...]] = []
        self._along: list[float] = []
        self.draw: BasisDraw | None = None  # the last one
        self._parts = torch.empty(0, device="cpu")

    @property
    def exact(self) -> bool:
        """Whether all vectors of all samples were used."""
        return not self._sketches or (self.draw is not None and self.draw.exact)

    @property
    def count(self) -> int:
        """Vectors that the estimate is made of."""
        return sum(sketch.number for sketch in self._sketches)

    def parts(self, samples: int) -> Tensor:
        """Give each sample's part of the square of `excess`, shape (B,)."""
        assert self.draw is not None
        found = torch.zeros(samples, dtype=torch.float64, device="cpu")
        found.index_add_(0, self.draw.samples, self._parts.cpu())
        return found / max((2 * self._options.tolerance * self.norms().frobenius ** 2) ** 2, 1e-300)

    def add(
        self,
        products: Products,
        own: Sequence[Tensor],
        draw: BasisDraw | None = None,
        weights: Callable[[tuple[int, int]], Tensor] | None = None,
        subset: Subset | None = None,
    ) -> None:
        """Take in the inner products of the per-sample gradients of some vectors."""
        if draw is None or weights is None:
            self._sketches.append(sketch_of(products, own))
        else:
            if subset is not None:
                weights = partial(draw.weights, like=products[draw.pairs[0]], subset=subset)
            sketch, self._parts = draw.sketch(products, own, weights, subset)
            before = self.draw.all_of if self.draw else []
            if draw.exact or (
                draw.all_of and not before
            ):  # chosen by what was found so far: that cannot be averaged with it
                self._sketches, self._bounds, self._along = [], [], []
            self._sketches.append(sketch)
            self.draw = draw
        if self._options.spectral and (0, 0) in products:
            rank = draw.rank if draw else 0
            self._bounds.append((len(own), *spectral_bounds(products, rank)))

    def add_along(self, products: list[Tensor], both: bool) -> None:
        """Take in the inner products of the per-sample gradients with a fixed direction."""
        step = 2 if both else 1
        pairs = zip(products[::step], products[step - 1 :: step], strict=True)
        self._along += [(left.double() @ right.double()).item() for left, right in pairs]

    def along(self) -> float:
        """Average what all vectors told of u^T G u."""
        return sum(self._along) / len(self._along) if self._along else 0.0

    def norms(self) -> BlockNorms:
        """Average what all vectors told."""
        if not self._sketches:  # the outputs do not depend on it
            return ZERO
        found = mean_norms(self._sketches, 1)
        if not self._bounds:
            return found
        weights = [each[0] / sum(each[0] for each in self._bounds) for each in self._bounds]
        pairs = list(zip(weights, self._bounds, strict=True))
        lower, upper = (sum(w * each[i] for w, each in pairs) for i in (1, 3))
        error = math.sqrt(sum((w * each[2]) ** 2 for w, each in pairs))
        return replace(
            found, spectral=lower, spectral_stderr=error, spectral_gap=max(0.0, upper - lower)
        )

    def excess(self) -> float:
        """Give the error of the Frobenius norm over what is allowed."""
        found = self.norms()
        return found.stderr / (self._options.tolerance * found.frobenius) if found.stderr else 0.0
