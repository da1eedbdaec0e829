"""`layer_hessians`: the norms of every layer's loss Hessian in one call."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from hessinit_lib.hessians.case import Case, what_is_not_finite
from hessinit_lib.hessians.chain.hessians import chain_hessians
from hessinit_lib.hessians.chain.network import Chain
from hessinit_lib.hessians.derivatives import check_derivatives
from hessinit_lib.hessians.equal_functions import equal_functions
from hessinit_lib.hessians.estimate.hessians import estimated_hessians
from hessinit_lib.hessians.ggn.hessians import Known, ggn_hessians
from hessinit_lib.hessians.graph.hessians import graph_hessians
from hessinit_lib.hessians.inputs import Inputs
from hessinit_lib.hessians.isolation import entry
from hessinit_lib.hessians.loss import LossFn
from hessinit_lib.hessians.numerics.precision import PROCESS
from hessinit_lib.hessians.options import NORMS, Options
from hessinit_lib.hessians.report import HessianReport

_SMALL = 1_000_000  # parameters up to which exact norms are had where only ggn would do


@entry
def layer_hessians(
    model: nn.Module,
    loss_fn: LossFn,
    inputs: Inputs,
    targets: Tensor,
    *,
    method: str = "auto",
    norms: Collection[str] = NORMS,
    parts: bool = True,
    tolerance: float = 0.01,
    generator: torch.Generator | None = None,
    max_memory: int | None = None,
    curvature: str = "hessian",
    layers: str | Collection[str] | None = None,
    exclude: str | Collection[str] = (),
    budget: float | None = 200.0,
) -> HessianReport:
    r"""Compute the norms of every layer's Hessian block of the loss.

    For the loss $L$ of a batch and the weight $W^k$, $H_k = D^2_{W^k} L = G_k + R_k$: the
    linearization (generalized Gauss-Newton block) and the residual (the curvature of the
    layers above). Where the model ends in a log-softmax, G is that of the logits below it,
    as for the cross-entropy. No matrix of the size of the parameters is formed. The model, its
    gradients, buffers and mode and the global random state are left as found.

    **Exact**, of the batch-mean loss, where samples are independent and

    - the model is a fully connected network, `nn.Sequential` (also nested) of `nn.Linear`,
      twice differentiable elementwise activations, `nn.Flatten` and inactive dropout: see
      `hessinit_lib.hessians.chain.hessians`; or
    - the outputs (B, C) are piecewise linear in the output of every Linear, convolution and
      Embedding layer (ReLU, pooling, residual sums, concatenation, normalization by fixed
      statistics), so that $R_k = 0$: see `hessinit_lib.hessians.graph.hessians`.

    **Estimated** with a standard error for all else that can be differentiated twice, such
    as attention, layer normalization, recurrent layers, tied weights and any loss: see
    `hessinit_lib.hessians.estimate.hessians`. The report says why.

    Args:
        model: any module with one tensor of outputs, compiled or not. Computed in float64
            if parameters are float64, else in float32. Batch normalization in training
            mode counts with this batch's statistics, held constant, and a warning.
        loss_fn: any function of (outputs, targets) that gives one number. Exact norms need
            a mean over samples that is convex in the outputs, such as cross-entropy, MSE
            or BCE with logits: see `hessinit_lib.hessians.loss`.
        inputs: shape (B, ...), what the model takes, on the model's device; or several
            tensors in a tuple, or in a dict by keyword.
        targets: shape (B, ...), what the loss takes.
        method: "exact" (no sampling, or an error that names what is not covered),
            "estimate", or "auto": exact where there is an exact route, else estimated.
        norms: which norms to compute, of "frobenius" and "spectral"; the others are NaN.
        parts: whether to compute the linearization and the residual besides their sum.
        tolerance: relative standard error allowed for each estimated norm. From 1e-3 on,
            products may be rounded to bfloat16 or TF32 where that is faster and enough; an
            exact spectral norm of float32 is sharp to a twentieth of it.
        generator: for the random numbers of estimates; the same at each call if None.
        max_memory: bytes that the computation may use beyond the graph of the forward
            pass; None for no bound.
        curvature: "hessian" for $H_k$, or "ggn" for $G_k$ alone, the paper's approximated chain
            rule: estimated in a few training steps on any network whose loss is a sum over
            samples, see `hessinit_lib.hessians.ggn.hessians`. Of its spectral norms, those
            beside Frobenius norms are lower bounds with an upper one; asked for alone, they
            are iterated to the tolerance.
        layers: names of parameters, or patterns such as `"*.bias"`: these have a block, also if
            they have one axis. All weights of two or more axes if None.
        exclude: names or patterns of parameters that have none.
        budget: training steps that estimates may take, about, None for any number; what was
            reached then is given with its errors, and the report says so.

    Returns:
        A mapping from parameter names to `LayerHessian`, in model order: the parameters
        with two or more axes that require a gradient. NaN where the network's outputs, the
        loss or its gradient are not finite; the report says why.

    Raises:
        NotImplementedError: active dropout; with `method="exact"` whatever else is not
            covered. The message names it.
        ValueError: options, shapes, batch sizes or class indices that do not fit.

    Source: arXiv 2004.09506 for the principle; Botev, Ritter and Barber, arXiv 1706.03662, for
        the blocks and their recursion; derivation in the book, statements 2 and 3.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x = torch.randn(16, 4, generator=generator)
        >>> y = torch.randint(3, (16,), generator=generator)
        >>> report = layer_hessians(model, nn.CrossEntropyLoss(), x, y)
        >>> list(report)
        ['0.weight', '2.weight']
        >>> report["0.weight"].residual.frobenius  # ReLU: the linearization is exact
        0.0
    """
    options = Options(
        method=method,
        norms=norms,
        parts=parts,
        tolerance=tolerance,
        generator=generator,
        max_memory=max_memory,
        curvature=curvature,
        budget=budget,
    )
    case = Case.checked(model, loss_fn, inputs, targets, layers=layers, exclude=exclude)
    return block_hessians(case, options)


def block_hessians(
    case: Case,
    options: Options,
    known: Known | None = None,
    directions: Mapping[str, Tensor] | None = None,
) -> HessianReport:
    """Do what `layer_hessians` does once its arguments are checked."""
    if options.curvature == "ggn" and options.frobenius:
        found = ggn_hessians(case, options, known=known, directions=directions)
    else:
        found = _computed(case, options)
    # One norm that was asked for tells: the trace comes with Frobenius norms alone.
    asked = "frobenius" if options.frobenius else "spectral"
    if any(math.isnan(getattr(layer, asked)) for layer in found.values()):
        found.not_finite = what_is_not_finite(case)
    return found


def exact_or_ggn(
    case: Case,
    exact: Options,
    ggn: Options,
    known: Known | None = None,
    directions: Mapping[str, Tensor] | None = None,
) -> HessianReport:
    """Compute exact norms of a small network that has a route to them, else Gauss-Newton norms.

    Args:
        case: a model and a batch.
        exact: options of exact norms.
        ggn: options of Gauss-Newton norms.
        known: see `ggn_hessians`; whether there is an exact route is noted there.
        directions: see `ggn_hessians`.

    Raises:
        NotImplementedError: there are neither.
    """
    known = known or Known()
    if sum(parameter.numel() for parameter in case.parameters.values()) > _SMALL:
        known.exact = False
    if known.exact:
        try:
            return block_hessians(case, replace(exact, method="exact"))
        except NotImplementedError:
            known.exact = False
    return block_hessians(case, ggn, known, directions)


def _computed(case: Case, options: Options) -> HessianReport:
    if options.curvature == "ggn":
        return estimated_hessians(case, options)
    why = 'method="estimate"'
    # Factors of the Gauss-Newton block give exact norms, and with random signs estimates of
    # Frobenius norms; all else goes by products of the block with vectors.
    if options.method != "estimate" or not options.spectral:
        try:
            flat = [name for name, weight in case.weights.items() if weight.ndim < 2]
            if flat:
                raise NotImplementedError(f"{flat[0]} has one axis: exact norms are of two or more")
            chain = Chain.of(case.model, case.inputs)
            if chain is None:
                return graph_hessians(case, options)
            assert isinstance(case.inputs, Tensor)  # else there is no chain
            check_derivatives(case, claim=replace(chain, dtype=torch.float64).outputs)
            with PROCESS, equal_functions():
                found = chain_hessians(chain, case.loss_fn, case.inputs, case.targets, options)
            return HessianReport([found[name] for name in case.weights])
        except NotImplementedError as refusal:
            if options.method == "exact":
                raise
            why = str(refusal)
    return estimated_hessians(case, options, why)
