"""`cross_layer`: which layers interact, by the norms of the Hessian's blocks off the diagonal."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor, nn

from hessinit_lib.hessians.case import Case, what_is_not_finite
from hessinit_lib.hessians.chain.hessians import chain_hessians
from hessinit_lib.hessians.chain.network import Chain
from hessinit_lib.hessians.cross.chain import chain_squares, training_steps
from hessinit_lib.hessians.cross.estimate import Squares, ggn_squares, product_squares
from hessinit_lib.hessians.cross.report import CrossReport
from hessinit_lib.hessians.derivatives import check_derivatives
from hessinit_lib.hessians.equal_functions import equal_functions
from hessinit_lib.hessians.inputs import Inputs
from hessinit_lib.hessians.isolation import entry
from hessinit_lib.hessians.loss import LossFn
from hessinit_lib.hessians.numerics.precision import PROCESS
from hessinit_lib.hessians.options import Options

_SECONDS = 1e11  # multiplications that a core does in some seconds


@entry
def cross_layer(
    model: nn.Module,
    loss_fn: LossFn,
    inputs: Inputs,
    targets: Tensor,
    *,
    method: str = "auto",
    curvature: str = "hessian",
    tolerance: float = 0.05,
    generator: torch.Generator | None = None,
    max_memory: int | None = None,
    layers: str | Collection[str] | None = None,
    exclude: str | Collection[str] = (),
    budget: float | None = 200.0,
) -> CrossReport:
    r"""Compute the Frobenius norms of the Hessian's blocks for all pairs of layers.

    $H_{jk} = D_{W^j} D_{W^k} L$ says how much a change of layer k moves the gradient of layer j.
    $H_{jk} = G_{jk} + R_{jk}$ with the linearization $G_{jk} = J_j^\top (D_z^2 L) J_k / B$. Unlike
    a layer's own residual, $R_{jk}$ is not zero for ReLU networks: the layers multiply each other.

    **Exact** for fully connected networks, as in `layer_hessians`, by work that grows with the
    square of the batch; **estimated** with standard errors where that takes more than the budget
    and more than seconds, and for all else that can be differentiated twice.

    Args:
        model: see `hessinit_lib.layer_hessians`, like all that is not said here.
        loss_fn: function of (outputs, targets) that gives one number.
        inputs: shape (B, ...); or several tensors in a tuple, or in a dict by keyword.
        targets: shape (B, ...), what the loss takes.
        method: "exact", "estimate" or "auto".
        curvature: "hessian", or "ggn" for the linearization alone, in a few training steps.
        tolerance: standard error allowed for each estimated norm, relative to the largest that
            the norm of this pair can be, $(\|H_{jj}\| \|H_{kk}\|)^{1/2}$ for "ggn".
        generator: for the random numbers of estimates; the same at each call if None.
        max_memory: bytes that the computation may use beyond the graph of the forward pass.
        layers: names of parameters, or patterns.
        exclude: names or patterns of parameters that are left out.
        budget: training steps that estimates may take, about, None for any number; and exact
            norms with `method="auto"`.

    Returns:
        The norms, shape (L, L), by parameter name in model order.

    Raises:
        NotImplementedError: active dropout; with `method="exact"` whatever is not covered.
        ValueError: options, shapes, batch sizes or class indices that do not fit; outputs or
            derivatives that are not finite.

    Source: the book's statement 13.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x = torch.randn(16, 4, generator=generator)
        >>> y = torch.randint(3, (16,), generator=generator)
        >>> report = cross_layer(model, nn.CrossEntropyLoss(), x, y)
        >>> report.names, report.frobenius.shape, report.exact
        (('0.weight', '2.weight'), torch.Size([2, 2]), True)
    """
    options = Options(
        method=method, norms=("frobenius",), tolerance=tolerance, generator=generator,
        max_memory=max_memory, curvature=curvature, budget=budget,
    )  # fmt: skip
    case = Case.checked(model, loss_fn, inputs, targets, layers=layers, exclude=exclude)
    why = 'method="estimate"'
    if method != "estimate":
        try:
            return _exact(case, options)
        except NotImplementedError as refusal:
            if method == "exact":
                raise
            why = str(refusal)
    return _estimated(case, options, why)


@torch.no_grad()
def _exact(case: Case, options: Options) -> CrossReport:
    """Compute the norms of a fully connected network."""
    chain = Chain.of(case.model, case.inputs)
    if chain is None or any(weight.ndim < 2 for weight in case.weights.values()):
        raise NotImplementedError(
            "exact norms across layers are those of fully connected networks' weights: "
            "nn.Sequential of Linear and elementwise activations"
        )
    assert isinstance(case.inputs, Tensor)
    steps, work = training_steps(chain, case.samples)
    if options.method == "auto" and steps > options.steps and work > _SECONDS:
        raise NotImplementedError(
            f'exact norms would take about {steps:.0f} training steps: method="exact" gives them'
        )
    check_derivatives(case, claim=replace(chain, dtype=torch.float64).outputs)
    with PROCESS, equal_functions():
        given = (chain, case.loss_fn, case.inputs, case.targets)
        own = chain_hessians(*given, replace(options, parts=True))
        pairs = chain_squares(*given, list(own), options)
    names = tuple(case.weights)
    found = torch.zeros(3, len(names), len(names), dtype=torch.float64)
    for j, name in enumerate(names):
        parts = own[name], own[name].linearization, own[name].residual
        found[:, j, j] = torch.tensor([part.frobenius for part in parts], dtype=torch.float64)
        for k, other in enumerate(names[j + 1 :], j + 1):
            found[:, j, k] = found[:, k, j] = pairs[name, other].clamp(min=0).sqrt()
    frobenius, linearization, residual = found
    if options.curvature == "ggn":
        frobenius, residual = linearization, torch.full_like(residual, torch.nan)
    _check_finite(case, frobenius)
    return CrossReport(
        names, frobenius, linearization, residual, torch.zeros_like(frobenius),
        exact=True, curvature=options.curvature,
    )  # fmt: skip


def _estimated(case: Case, options: Options, why: str) -> CrossReport:
    """Estimate the norms: of G by pairs of passes, of H and R by products with vectors."""
    hessian = options.curvature == "hessian"
    notes = [why, check_derivatives(case, twice=hessian, exact=False)]
    try:
        linear = ggn_squares(case, options)
    except NotImplementedError:
        if not hessian:
            raise
        linear = {}  # samples that mix: by products, like the rest
    whole, residual = linear, Squares()
    if hessian:
        whole, by_products, residual = product_squares(case, options)
        linear = linear or by_products
    names = tuple(case.weights)
    matrices = [_matrix(found, len(names)) for found in (whole, linear, residual)]
    if not residual:
        matrices[2].fill_(torch.nan)
    frobenius, linearization, rest = matrices
    _check_finite(case, frobenius)
    errors = _matrix(whole, len(names), errors=True)
    if options.budget is not None:
        largest = frobenius.diagonal().sqrt().outer(frobenius.diagonal().sqrt())
        notes.append(options.stopped((errors / largest / options.tolerance).flatten().tolist()))
    return CrossReport(
        names, frobenius, linearization, rest, errors,
        exact=False, note="; ".join(filter(None, notes)), curvature=options.curvature,
    )  # fmt: skip


def _matrix(squares: Squares, layers: int, *, errors: bool = False) -> Tensor:
    """Lay norms, or their errors, out by pairs of layers."""
    found = torch.zeros(layers, layers, dtype=torch.float64)
    for (j, k), square in squares.items():
        norm = max(square.mean, 0.0) ** 0.5
        found[j, k] = found[k, j] = square.error / (2 * norm) if errors and norm else norm
    return found


def _check_finite(case: Case, frobenius: Tensor) -> None:
    if not torch.isfinite(frobenius).all():
        raise ValueError(f"norms across layers are not finite: {what_is_not_finite(case)}")
