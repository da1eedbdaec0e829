"""The loss seen from the logits: per-sample gradient and a factor of the Hessian.

The mean loss is L = (1/B) sum_b l_b. Everything below the logits needs of each l_b just
its gradient d_b and a few vectors s_bi with D^2 l_b = sum_i s_bi s_bi^T. Closed forms for
the common losses, eigenvectors of `output_hessian` for all others that are convex.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hessinit_lib.hessians.cross_entropy import plain_targets, softmax_factor, target_weights
from hessinit_lib.hessians.loss_value import LossFn, Parameters, differentiable, name_of
from hessinit_lib.hessians.numerics.random import standard_normal

_FUNCTIONS: dict[Any, type[nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.mse_loss: nn.MSELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
}


class LossCurvature(NamedTuple):
    r"""Derivatives of the per-sample losses at the logits.

    Attributes:
        gradient: $D l_b$, shape (B, C).
        factor: the rows $s_{bi}$ with $D^2 l_b = \sum_i s_{bi} s_{bi}^\top$, shape (B, r, C).
    """

    gradient: Float[Tensor, "b c"]
    factor: Float[Tensor, "b r c"]


def loss_curvature(
    loss_fn: LossFn,
    logits: Float[Tensor, "b ..."],
    targets: Tensor,
    parameters: Parameters | None = None,
) -> LossCurvature:
    r"""Differentiate a loss twice at the logits, sample by sample.

    Args:
        loss_fn: a function of (logits, targets) that is the mean, or the sum, of one convex
            loss for each sample. Closed forms, r = C - 1 and C: `nn.CrossEntropyLoss`,
            `nn.MSELoss`, `nn.BCEWithLogitsLoss` with all their options, the functions of
            `torch.nn.functional` behind them, and `functools.partial` of these. For
            anything else C + log2 B backward passes through the loss and an
            eigendecomposition of $D^2 l_b$: see `output_hessian`. Piecewise linear losses
            have $D^2 l_b = 0$ almost everywhere.
        logits: outputs of the network, shape (B, C); for a loss without a closed form any
            shape (B, ...), C numbers a sample.
        targets: what the loss takes: class indices (B,) or class probabilities (B, C) for
            cross-entropy; values (B, C) for the squared error and the binary cross-entropy.
        parameters: of the model, see `OutputCurvature`.

    Returns:
        Gradient (B, C) and factor (B, r, C), of the logits' type. NaN where the logits are.

    Raises:
        NotImplementedError: the loss couples samples or is not convex in the outputs; the
            message names it.
        ValueError: the targets do not fit the logits, or the loss is not one number.

    Example:
        >>> out = loss_curvature(F.cross_entropy, torch.zeros(4, 10), torch.arange(4))
        >>> out.factor.shape
        torch.Size([4, 9, 10])
    """
    known = _known(loss_fn) if logits.ndim == 2 else None
    if known is None:
        gradient, hessian = output_hessian(loss_fn, logits, targets, parameters)
        factor = convex_factor(hessian, name_of(loss_fn))
        return LossCurvature(gradient.to(logits.dtype), factor.to(logits.dtype))
    if known.reduction not in ("mean", "sum"):
        raise ValueError(
            f"{type(known).__name__} with reduction={known.reduction!r}: "
            "expected 'mean' or 'sum', one number"
        )
    if isinstance(known, nn.CrossEntropyLoss):
        return _cross_entropy(known, logits, targets)
    if targets.shape != logits.shape:
        # Broadcasting would silently pair every output with every target.
        raise ValueError(
            f"{type(known).__name__}: targets have shape {tuple(targets.shape)}, "
            f"expected that of the outputs, {tuple(logits.shape)}"
        )
    batch, outputs = logits.shape
    # B L: torch averages over outputs as well as samples.
    scale = 1 / outputs if known.reduction == "mean" else batch
    y = targets.to(logits.dtype)
    if isinstance(known, nn.MSELoss):
        gradient, second = 2 * (logits - y), logits.new_full((1, outputs), 2)
    else:
        gradient, second = _binary_cross_entropy(known, logits, y)
    factor = torch.diag_embed((scale * _convex(known, second)).sqrt())
    return LossCurvature(scale * gradient, factor.expand(batch, outputs, outputs))


def on_logits(loss_fn: LossFn, axis: int | None) -> LossFn:
    r"""Make of a loss of log-probabilities one of the logits that they are the log-softmax of.

    The Hessian stays, and its parts become those of the cross-entropy: in log-probabilities
    the negative log-likelihood is linear. Since log-softmax leaves its own values as they are,
    the log-probabilities will do for the logits' values.

    Args:
        loss_fn: function of (log-probabilities, targets).
        axis: that the log-softmax is taken over; None to leave the loss as it is.

    Returns:
        Function of (logits, targets): `nn.CrossEntropyLoss` for `nn.NLLLoss`.

    Example:
        >>> on_logits(F.nll_loss, 1)
        CrossEntropyLoss()
    """
    if axis is None:
        return loss_fn
    known = _known(loss_fn, {F.nll_loss: nn.NLLLoss})
    if known is not None and axis == 1:
        return nn.CrossEntropyLoss(
            known.weight, ignore_index=known.ignore_index, reduction=known.reduction
        )
    return _OnLogits(loss_fn, axis)


class _OnLogits(nn.Module):
    """A loss of the log-softmax of what it is given."""

    def __init__(self, loss_fn: LossFn, axis: int) -> None:
        super().__init__()
        self.loss_fn, self.axis, self.__name__ = loss_fn, axis, name_of(loss_fn)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.loss_fn(logits.log_softmax(self.axis), targets)


def _known(
    loss_fn: LossFn, functions: Mapping[Any, type[nn.Module]] = MappingProxyType(_FUNCTIONS)
) -> Any:
    """Give the module of torch that a loss with a closed form is the same as, or None."""
    function, keywords = loss_fn, {}
    if isinstance(loss_fn, functools.partial) and not loss_fn.args:
        function, keywords = loss_fn.func, loss_fn.keywords
    kind = next((kind for known, kind in functions.items() if function is known), None)
    if kind is not None:
        fits = keywords.keys() <= inspect.signature(kind).parameters.keys()
        return kind(**keywords) if fits else None
    # A subclass may compute anything, so the exact type decides.
    return loss_fn if type(loss_fn) in functions.values() else None


def _convex(loss_fn: LossFn, second: Tensor) -> Tensor:
    """Check that second derivatives, or the weights they are multiples of, are not negative."""
    if (second < 0).any():
        raise NotImplementedError(
            f"loss {name_of(loss_fn)} is not convex in the outputs: "
            f"second derivative {second.min().item():.3g}, expected none below 0"
        )
    return second


def _binary_cross_entropy(
    loss_fn: nn.BCEWithLogitsLoss, logits: Float[Tensor, "b c"], targets: Float[Tensor, "b c"]
) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c"]]:
    """Differentiate w [(1 - y) z + (1 + (w_+ - 1) y) log(1 + e^-z)] twice."""
    weight, positive = (
        logits.new_ones(()) if value is None else value.to(logits)
        for value in (loss_fn.weight, loss_fn.pos_weight)
    )
    log_weight = 1 + (positive - 1) * targets
    gradient = weight * (1 - targets - log_weight * (-logits).sigmoid())
    return gradient, weight * log_weight * logits.sigmoid() * (-logits).sigmoid()


def _cross_entropy(
    loss_fn: nn.CrossEntropyLoss, logits: Float[Tensor, "b c"], targets: Tensor
) -> LossCurvature:
    probabilities, plain = logits.softmax(1), plain_targets(loss_fn, logits, targets)
    if plain is not None:
        return LossCurvature(probabilities - plain, softmax_factor(probabilities))
    weighted = target_weights(loss_fn, logits, targets)
    mass = _convex(loss_fn, weighted.sum(1, keepdim=True))
    # l_b = -sum_c t_bc log p_bc, so D l_b = m_b p_b - t_b with m_b = sum_c t_bc, and
    # D^2 l_b = m_b (diag p_b - p_b p_b^T).
    gradient = mass * probabilities - weighted
    return LossCurvature(gradient, mass.sqrt()[:, None] * softmax_factor(probabilities))


class OutputCurvature:
    r"""A loss differentiated at the outputs: its gradient, and products with its Hessian.

    Both are those of $L$ itself, over one graph from $z$, the outputs, to $L$.

    Args:
        loss_fn: any function of (outputs, targets) that gives one number.
        outputs: $z$, of any shape.
        targets: what the loss takes.
        dtype: type to compute in, that of the outputs if None. Floating-point targets, and
            the tensors of a loss that is a module, are converted to it.
        parameters: of the model. A loss that depends on them past the outputs, such as one
            that adds weight decay, has other derivatives in them: it is refused.

    Attributes:
        value: $L$.
        gradient: $D_z L$, of the outputs' shape.

    Raises:
        ValueError: the loss does not take outputs and targets of these shapes, pairs all
            samples by broadcasting, or does not give one number that can be differentiated.
        NotImplementedError: the loss depends on the model's parameters past the outputs.

    Example:
        >>> curvature = OutputCurvature(nn.MSELoss(), torch.zeros(2, 1), torch.ones(2, 1))
        >>> curvature.gradient.tolist(), curvature.hvp(torch.ones(2, 1)).tolist()
        ([[-1.0], [-1.0]], [[1.0], [1.0]])
    """

    def __init__(
        self,
        loss_fn: LossFn,
        outputs: Tensor,
        targets: Tensor,
        dtype: torch.dtype | None = None,
        parameters: Parameters | None = None,
    ) -> None:
        self._name = name_of(loss_fn)
        self._outputs = outputs.detach().to(dtype or outputs.dtype).requires_grad_()
        with torch.enable_grad():
            value = differentiable(loss_fn, self._outputs, targets, parameters or {})
            (self._gradient,) = torch.autograd.grad(
                value.sum(), self._outputs, create_graph=True, materialize_grads=True
            )
        self.value, self.gradient = value.detach(), self._gradient.detach()

    def hvp(self, vector: Tensor) -> Tensor:
        r"""Multiply $D_z^2 L$ by a vector of the outputs' shape.

        Raises:
            NotImplementedError: torch has no second derivative of an operation in the loss.
        """
        if not self._gradient.requires_grad:  # linear in the outputs, almost everywhere
            return torch.zeros_like(self.gradient)
        try:
            (product,) = torch.autograd.grad(
                self._gradient, self._outputs, vector, retain_graph=True, materialize_grads=True
            )
        except RuntimeError as error:
            raise NotImplementedError(
                f"loss {self._name} cannot be differentiated twice: {error}"
            ) from error
        return product


def output_hessian(
    loss_fn: LossFn,
    outputs: Float[Tensor, "b ..."],
    targets: Tensor,
    parameters: Parameters | None = None,
) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c c"]]:
    r"""Differentiate a loss twice in the outputs; check that it does not couple samples.

    $D^2 l_b = B \, D^2_{z_b} L$ whether L is written as a mean or as a sum. One product for
    each output gives a column of all samples' Hessians. In float64, where the loss allows it:
    second derivatives of saturated losses are small differences.

    Returns:
        $D l_b$, shape (B, C), and $D^2 l_b$, shape (B, C, C), in float64 or in the outputs'
        type; NaN where the outputs are.

    Raises:
        NotImplementedError: the loss couples samples, or has no second derivative in torch.
        ValueError: see `OutputCurvature`.
    """
    batch = len(outputs)
    try:
        curvature = OutputCurvature(loss_fn, outputs, targets, torch.float64, parameters)
    except ValueError:
        # Tensors inside the loss that must have the outputs' type, a device without float64,
        # or an error of the loss itself, which comes again.
        curvature = OutputCurvature(loss_fn, outputs, targets, None, parameters)
    gradient = curvature.gradient.reshape(batch, -1)
    if not torch.isfinite(curvature.value):
        gradient = torch.full_like(gradient, math.nan)

    def hvp(vector: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        return curvature.hvp(vector.reshape(outputs.shape)).reshape(batch, -1)

    check_independence(name_of(loss_fn), hvp, gradient)
    units = torch.eye(gradient.shape[1], dtype=gradient.dtype, device=gradient.device)
    hessian = torch.stack([hvp(unit.expand_as(gradient)) for unit in units], 2)
    # Each half is right up to rounding; their mean is symmetric.
    return batch * gradient, batch / 2 * (hessian + hessian.mT)


def convex_factor(hessian: Float[Tensor, "b c c"], name: str) -> Float[Tensor, "b r c"]:
    r"""Factor positive semidefinite matrices, rows $\sqrt{\lambda_i} v_i^\top$.

    Returns:
        $S_b$ with $S_b^\top S_b$ = `hessian[b]`, shape (B, r, C): without rows that vanish
        for all samples up to rounding, but at least one row. NaN where an entry is not finite.

    Raises:
        NotImplementedError: an eigenvalue is negative beyond rounding; the message names
            the loss.

    Example:
        >>> factor = convex_factor(torch.ones(1, 2, 2), "square of the sum")
        >>> factor.shape, torch.allclose(factor.mT @ factor, torch.ones(2, 2))
        (torch.Size([1, 1, 2]), True)
    """
    if not hessian.isfinite().all():
        return hessian.new_full(hessian[:, :1].shape, math.nan)
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    if torch.equal(torch.diag_embed(diagonal), hessian):  # a sum over outputs: no rounding
        values, rows = diagonal, hessian.new_ones(hessian.shape[1]).diag().expand_as(hessian)
    else:
        values, vectors = torch.linalg.eigh(hessian)
        rows = vectors.mT
    size = values.abs().max().item()
    rounding = torch.finfo(hessian.dtype).eps
    # Saturated losses, softmax say, have Hessians that are differences of numbers near 1.
    if values.min() < -max(size * rounding ** (2 / 3), 10 * hessian.shape[1] * rounding):
        raise NotImplementedError(
            f"loss {name} is not convex in the outputs: its Hessian has the eigenvalue "
            f"{values.min().item():.3g}, expected none below 0"
        )
    kept = (values > hessian.shape[1] * rounding * size).any(0)
    kept[-1] |= not kept.any()
    factor = values.clamp(min=0).sqrt()[:, :, None] * rows
    return factor[:, kept]


def check_independence(
    name: str, hvp: Callable[[Tensor], Tensor], gradient: Float[Tensor, "b c"]
) -> None:
    """Make sure that the Hessian of L has no entries between samples.

    The product with a vector that is zero on some samples has to vanish, exactly, on those.
    Any two samples differ in a bit of their indices, so one product for each bit separates
    all of them.
    """
    batch = len(gradient)
    index = torch.arange(batch, device=gradient.device)
    generator = torch.Generator().manual_seed(0)
    vector = standard_normal(gradient.shape, generator, gradient)
    for bit in range((batch - 1).bit_length()):
        chosen = (index >> bit) & 1 == 1
        product = hvp(vector * chosen[:, None])
        if product[~chosen].nan_to_num(0, 0, 0).any():
            raise NotImplementedError(
                f"loss {name} couples samples: expected a mean or a sum of one loss for each sample"
            )
