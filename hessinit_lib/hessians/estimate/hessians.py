"""Layer Hessians of any model, by products of its blocks with vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hessinit_lib.hessians.case import Case, what_is_not_finite
from hessinit_lib.hessians.derivatives import check_derivatives
from hessinit_lib.hessians.estimate.deflated import DeflatedNorms
from hessinit_lib.hessians.estimate.products import BlockProducts, Blocks, bytes_per_sample
from hessinit_lib.hessians.ggn.hessians import forecast, ggn_hessians
from hessinit_lib.hessians.inputs import Inputs
from hessinit_lib.hessians.isolation import entry
from hessinit_lib.hessians.loss import LossFn
from hessinit_lib.hessians.numerics.random import cpu_generator
from hessinit_lib.hessians.options import Options, separated
from hessinit_lib.hessians.report import NOT_FINITE, BlockNorms, HessianReport, LayerHessian

# Vectors that a subspace starts from, by norms. Where spectral norms are asked for it grows to
# the outliers of the spectrum by itself, to the largest soon; where not, it should reach them.
_START = {("spectral",): 2, ("frobenius", "spectral"): 4, ("frobenius",): 12}

# Training steps that the graph of all gradients takes; and products that a block usually takes,
# for the forecast.
_ONCE, _USUAL = 2.0, 40

# Rows of a subspace: as many as there is memory for, between these.
_FEWEST, _MOST = 16, 64
_MEMORY = 1 << 30  # bytes for the subspaces that are grown together, where none are said


def estimated_hessians(case: Case, options: Options, why: str = "") -> HessianReport:
    r"""Estimate the norms of every layer's Hessian block, of any twice differentiable model.

    Args:
        case: every parameter with two or more axes that requires a gradient is a block; a tied
            parameter is one block.
        options: what to compute. Sampling goes on until the standard errors of
            $\|H_k\|_F$ and $\|G_k\|_F$ are within `tolerance` of them, that of $\|R_k\|_F$
            within `tolerance` of $\|H_k\|_F$. Spectral norms are iterated until their error
            is a tenth of that, and Lanczos steps from another random vector find none larger.
        why: what kept the norms from being computed exactly, for the report.

    Raises:
        NotImplementedError: active dropout; `max_memory` with a loss that couples samples.
        ValueError: outputs that are not one tensor, a loss that is not one number, shapes
            that do not fit.

    Source: Hutchinson (1990), deflated in the manner of Meyer et al., Hutch++ (2021).
    """
    weights = case.weights
    why = "; ".join(filter(None, (why, check_derivatives(case, twice=True, exact=False))))
    products = block_products(case, {name: [name] for name in weights}, options)
    instead = ""
    if options.curvature == "hessian" and options.frobenius:
        instead = f"; curvature='ggn' takes about {forecast(case.samples):.0f}"
    found, note = block_norms(products, options, instead)
    why = "; ".join(filter(None, (why, note)))
    return HessianReport(
        [
            LayerHessian.from_parts(
                name,
                tuple(weight.shape),
                *found[name],
                exact=False,
                products=products.count[name],
                curvature=options.curvature,
            )
            for name, weight in weights.items()
        ],
        why,
    )


@entry
def model_hessian(
    model: nn.Module, loss_fn: LossFn, inputs: Inputs, targets: Tensor, **chosen: Any
) -> LayerHessian:
    r"""Estimate the norms of the Hessian of all weights together, cross blocks included.

    Args:
        model: any module with one tensor of outputs, compiled or not.
        loss_fn: any scalar function of (outputs, targets).
        inputs: shape (B, ...).
        targets: what the loss takes.
        chosen: options by name, those of `hessinit_lib.layer_hessians`.

    Returns:
        Norms of the matrix of shape (P, P), with P the entries of all weights; its name is
        "model", its shape (P,).

    Raises:
        NotImplementedError, ValueError: see `estimated_hessians`.

    Example:
        >>> x, y = torch.ones(8, 4), torch.zeros(8, 2)
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> model_hessian(model, nn.MSELoss(), x, y, norms=("spectral",)).shape
        (18,)
    """
    named, others = separated(chosen)
    options = Options(**others)
    case = Case.checked(model, loss_fn, inputs, targets, **named)
    if options.curvature == "ggn" and options.frobenius:
        return ggn_hessians(case, options, whole=True)["model"]
    check_derivatives(case, twice=True, exact=False)
    products = block_products(case, {"model": list(case.weights)}, options)
    if not products.finite:
        raise ValueError(f"there is no Hessian: {what_is_not_finite(case)}")
    (norms,) = block_norms(products, options).norms.values()
    return LayerHessian.from_parts(
        "model",
        (products.sizes["model"],),
        *norms,
        exact=False,
        products=products.count["model"],
        curvature=options.curvature,
    )


def block_products(case: Case, blocks: Blocks, options: Options) -> BlockProducts:
    """Make the products, of as many samples at a time as the memory allows."""
    chunk = None
    if options.max_memory is not None:
        needed = bytes_per_sample(case.model, case.inputs, list(case.weights))
        # Half is for the subspaces. One sample at a time is the least there is.
        chunk = max(1, int(options.max_memory / 2 / needed))
    whole = options.curvature == "hessian"
    parts = options.parts or not whole
    return BlockProducts(case, blocks, parts=parts, residual=whole, chunk=chunk)


class Found(NamedTuple):
    """Norms of blocks, of their linearizations and residuals, and what to know about them."""

    norms: dict[str, tuple[BlockNorms, BlockNorms, BlockNorms]]
    note: str = ""


@torch.no_grad()
def block_norms(products: BlockProducts, options: Options, instead: str = "") -> Found:
    """Estimate the norms of each block, of its linearization and of its residual.

    Until they are known to the tolerance, or the budget is spent: each block then has as many
    products as all others, but for what those leave that are known sooner.

    Args:
        products: of the blocks.
        options: which norms, how well, at what cost.
        instead: what would cost less, for the forecast.
    """
    none = (NOT_FINITE, NOT_FINITE, NOT_FINITE)
    if not products.finite:
        return Found(dict.fromkeys(products.sizes, none))
    generator = cpu_generator(options.generator)
    found: dict[str, tuple[BlockNorms, BlockNorms, BlockNorms]] = {}
    excess: dict[str, float] = {}
    left, waiting = options.steps - _ONCE, sum(products.cost.values())
    needed = min(options.steps, _ONCE + _USUAL * waiting)
    title = f"layers (about {needed:.0f} training steps{instead})"
    with tqdm(total=len(products.sizes), desc=title, unit="layer", delay=3, leave=False) as bar:
        for capacities in _groups(products, options):
            limit = max(2.0, left // waiting) if math.isfinite(left) else left
            group = {
                name: DeflatedNorms(products.sizes[name], rows, products.like, options, limit)
                for name, rows in capacities.items()
            }
            _grow(products, group, generator, _START[tuple(sorted(set(options.norms)))])
            _sample(products, group, generator)
            for name, norms in group.items():
                total, *parts = norms.norms()
                if options.curvature == "ggn":
                    parts = [total]
                linear, residual, *_ = (*parts, NOT_FINITE, NOT_FINITE)
                found[name] = (total, linear, residual)
                excess[name] = norms.excess
                left -= products.count[name] * products.cost[name]
                waiting = max(waiting - products.cost[name], 1e-9)
            bar.update(len(group))
    return Found(found, options.stopped(excess.values(), instead))


def _grow(
    products: BlockProducts, group: dict[str, DeflatedNorms], generator: torch.Generator, start: int
) -> None:
    """Let the subspaces of a group of blocks grow until they are large enough."""
    sketch = products.range_sketch(start, list(group), generator)
    wanted = {name: norms.start(sketch.pop(name)) for name, norms in group.items()}
    for name, rows in wanted.items():
        if not len(rows):  # G = 0 says nothing about R
            wanted[name] = group[name].growth()
    while wanted := {name: rows for name, rows in wanted.items() if len(rows)}:
        for name, images in products.apply(wanted).items():
            group[name].add_rows(wanted[name], images)
        wanted = {name: group[name].growth() for name in wanted}


def _sample(
    products: BlockProducts, group: dict[str, DeflatedNorms], generator: torch.Generator
) -> None:
    """Draw what the subspaces leave, until every block of a group is known well enough."""
    while unknown := [name for name, norms in group.items() if not norms.done]:
        rows = {name: group[name].deflation() for name in unknown}
        rows = {name: new for name, new in rows.items() if len(new)}
        for name, images in products.apply(rows).items():
            group[name].add_rows(rows[name], images)
        unknown = [name for name in unknown if not group[name].done]
        probes = {name: group[name].probes(generator) for name in unknown}
        for name, images in products.apply(probes).items():
            group[name].add_probes(probes[name], images)


def _groups(products: BlockProducts, options: Options) -> Iterator[dict[str, int]]:
    """Put blocks together as memory allows, with the rows that each subspace may have."""
    # A row, its two images, and as much again for products under way.
    row = 6 * products.like.element_size()
    memory = _MEMORY if options.max_memory is None else options.max_memory // 2
    group: dict[str, int] = {}
    used = 0
    for name, size in products.sizes.items():
        rows = min(size, max(_FEWEST, min(_MOST, memory // (row * size))))
        if group and used + rows * row * size > memory:
            yield group
            group, used = {}, 0
        group[name] = rows
        used += rows * row * size
    yield group
