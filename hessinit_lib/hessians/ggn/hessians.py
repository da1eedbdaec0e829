r"""Gauss-Newton blocks of any network whose samples do not mix, from a few backward passes.

With $A = D_z^2 L$, $S S^\top = A$ and random signs $\epsilon$, one backward pass from $S \epsilon$
gives $g_b = J_b^\top S_b \epsilon_b$ for each sample b, of all weights at once. Of two such passes,
with independent signs,

$$\|G\|_F^2 = \mathbb{E} \sum_{b,c} (g_b \cdot g'_c)^2 , \qquad
  \operatorname{tr} G = \mathbb{E} \sum_b |g_b|^2 .$$
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.derivatives import check_derivatives
from hessinit_lib.hessians.ggn.passes import Passes
from hessinit_lib.hessians.ggn.spectral import spectral_bounds
from hessinit_lib.hessians.ggn.uses import Plan
from hessinit_lib.hessians.numerics.estimates import Products, Sketch, mean_norms, sketch_of
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import NOT_FINITE, ZERO, BlockNorms, HessianReport, LayerHessian

_MOST = 4  # vectors at a time: what they leave at each weight is held until the last
_MANY = 1 << 20  # vectors, if the budget is none
_GRADIENTS = 24  # per-sample gradients, of all vectors together, that tell an error

# What a call takes in any case, in training steps: forward pass, search for the weights' places,
# check of derivatives; and for each vector: backward pass, gradients and their products.
_ONCE, _EACH = 1.0, 0.8


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


def forecast(samples: int) -> float:
    """Give the training steps that Gauss-Newton norms take, if the first vectors will do."""
    return _ONCE + _EACH * _first(samples)


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
        known.note = check_derivatives(case, exact=False)
    notes = [known.note]
    passes = Passes(case, options.max_memory, known.plan)
    known.plan = passes.plan
    shapes = {name: tuple(weight.shape) for name, weight in case.weights.items()}
    if whole:
        shapes = {"model": (sum(math.prod(shape) for shape in shapes.values()),)}
    blocks = {name: _Block(options) for name in shapes}
    if passes.finite:
        generator = options.generator or torch.Generator().manual_seed(0)
        with torch.no_grad():
            work = _Work(passes, options, generator, blocks, directions or {}, whole)
            notes.append(work.run([*case.weights]))
    layers = []
    for name, block in blocks.items():
        norms = block.norms() if passes.finite else NOT_FINITE
        layers.append(
            LayerHessian.from_parts(
                name, shapes[name], norms, norms, NOT_FINITE, exact=False, curvature="ggn"
            )
        )
    along = {name: blocks[name].along() for name in directions or {}}
    return HessianReport(layers, "; ".join(filter(None, notes)), along=along)


def _first(samples: int) -> int:
    """Count the vectors to begin with: of few samples, two do not tell their error."""
    return 2 if 2 * samples >= _GRADIENTS else max(3, math.ceil(_GRADIENTS / samples / 2))


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
        first, blocks = _first(self.passes.samples), self.blocks
        most = max(first, int(min((self.options.steps - _ONCE) / _EACH, _MANY)))
        needed, done, unknown = first, 0, list(blocks)
        bar = tqdm(desc="Gauss-Newton norms", unit="pass", total=needed, delay=3, leave=False)
        with bar:
            while needed:
                count = min(needed, _MOST) if needed - _MOST != 1 else _MOST - 1
                self._add(names if self.whole else unknown, count)
                done += count
                bar.update(count)
                excess = {name: blocks[name].excess() for name in unknown}
                unknown = [name for name in unknown if excess[name] > 1]
                # The error of a mean falls with the root of their number.
                wanted = (math.ceil(1.1 * done * excess[name] ** 2) for name in unknown)
                needed = min(
                    max(max(wanted, default=done) - done, 3 if unknown else 0), most - done
                )
                needed = needed if needed > 1 else 0
                bar.total = done + needed
        return self.options.stopped(block.excess() for block in blocks.values())

    def _add(self, names: list[str], count: int) -> None:
        """Draw some vectors, and add what they tell about some weights."""
        drawn = [self.passes.hessian.draw(self.generator) for _ in range(count)]
        vectors = [vector for pair in drawn for vector in pair]
        both = len(drawn[0]) == 2  # (e, A e) in place of S e twice
        # Of products with themselves the diagonal will do, unless spectral norms are asked for.
        alone = not (self.options.spectral or both)
        every = ((a, c) for a in range(count) for c in range(count) if both or a + alone <= c)
        pairs = {(a, c): (2 * a, 2 * c + 1) if both else (a, c) for a, c in every}
        total: dict[tuple[int, int], Tensor] = {}
        lengths: list[Tensor] = []
        for name, gradients in self.passes.gradients(names, vectors):
            found, own = gradients.inner_products(list(pairs.values()), squares=alone)
            products = dict(zip(pairs, found, strict=True))
            own = own or [products[a, a].diagonal() for a in range(count)]
            if self.whole:
                total = {pair: total.get(pair, 0) + matrix for pair, matrix in products.items()}
                lengths = [a + b for a, b in zip(lengths or [0] * count, own, strict=True)]
                continue
            self.blocks[name].add(products, own)
            if name in self.directions:
                along = gradients.along(self.directions[name], len(vectors))
                self.blocks[name].add_along(along, both)
        if total:
            self.blocks["model"].add(total, lengths)


class _Block:
    """What is known of one block."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._sketches: list[Sketch] = []
        self._bounds: list[tuple[float, ...]] = []
        self._along: list[float] = []

    def add(self, products: Products, own: Sequence[Tensor]) -> None:
        """Take in the inner products of the per-sample gradients of some vectors."""
        self._sketches.append(sketch_of(products, own))
        if self._options.spectral and (0, 0) in products:
            self._bounds.append((len(own), *spectral_bounds(products)))

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
