"""The value of a loss: evaluated in one place, where what does not fit is said in one line."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hessinit_lib.errors import first_line
from hessinit_lib.hessians.graph.nodes import parameters_below

LossFn = Callable[..., Tensor]
Parameters = Mapping[str, nn.Parameter]
"""Of a model, by name."""


def evaluate(loss_fn: LossFn, outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute a loss in the type of the outputs; the loss may write into what it is given.

    Returns:
        One number, with the graph from the outputs.

    Raises:
        ValueError: see `OutputCurvature`.

    Example:
        >>> evaluate(nn.MSELoss(), torch.zeros(3, 1), torch.ones(3))
        Traceback (most recent call last):
        ValueError: loss MSELoss pairs outputs of shape (3, 1) with targets of shape (3,) ...
    """
    name, dtype = name_of(loss_fn), outputs.dtype
    if not isinstance(targets, Tensor):
        raise ValueError(f"targets: got {type(targets).__name__}, expected a tensor")
    call = loss_fn
    if isinstance(loss_fn, nn.Module):
        state = {key: _converted(p, dtype) for key, p in loss_fn.named_parameters()}
        state.update((key, _converted(b, dtype).clone()) for key, b in loss_fn.named_buffers())

        def call(*pair: Tensor) -> Any:
            return torch.func.functional_call(loss_fn, state, pair)

    given = _converted(targets, dtype).clone()
    # Class targets in few bits, which torch takes for int64 alone.
    tries = [given] if given.dtype not in _SMALL_INTEGERS else [given, given.long()]
    value: Any = None
    for number, tried in enumerate(tries, 1):
        pair = (outputs.clone(), tried)
        try:
            with _LossMode():
                value = call(*pair)
            break
        except _PairedError as error:
            raise ValueError(
                f"loss {name} pairs outputs of shape {tuple(outputs.shape)} with targets of shape "
                f"{tuple(targets.shape)} by broadcasting ({error}): expected the same shape"
            ) from None
        except (torch.OutOfMemoryError, RecursionError):
            raise
        except Exception as error:  # whatever a user's function raises
            if number == len(tries):
                raise ValueError(
                    f"loss {name} refused outputs of shape {tuple(outputs.shape)} and targets of "
                    f"shape {tuple(targets.shape)}, {targets.dtype}: {first_line(error)}"
                ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = getattr(value, "shape", None)
        shown = type(value).__name__ if shape is None else f"shape {tuple(shape)}"
        raise ValueError(
            f"loss {name} gave {shown}, expected one number: the mean or the sum over the batch"
        )
    return value.sum()


_SMALL_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32)

_ELEMENTWISE = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
_BROADCASTING = (F.poisson_nll_loss, F.gaussian_nll_loss, F.kl_div)
"""Losses that broadcast inside: all they give is one number."""
_WEIGHTED = (
    F.cross_entropy,
    F.nll_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
)


class _PairedError(Exception):
    """Broadcasting made all pairs of samples."""


class _LossMode(TorchFunctionMode):
    """Refuse to pair samples by broadcasting; convert weights of classes to the outputs' type.

    A column (B, 1) against a row (B,) makes all pairs of samples. It is refused between what
    depends on the outputs and what does not: losses that pair samples with each other do so
    on purpose.
    """

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        parts = [part for part in (*args, *kwargs.values()) if isinstance(part, Tensor)][:2]
        shapes = [tuple(part.shape) for part in parts]
        differ = len(parts) == 2 and shapes[0] != shapes[1]
        if differ and func in _ELEMENTWISE:
            raise _PairedError(f"{shapes[0]} and {shapes[1]}")
        if func in _WEIGHTED and parts:
            dtype = parts[0].dtype  # the outputs' type: the loss was written for the model's
            args = tuple(_converted_weight(part, dtype) for part in args)
            kwargs = {key: _converted_weight(part, dtype) for key, part in kwargs.items()}
        result = func(*args, **kwargs)
        one_sided = differ and parts[0].requires_grad != parts[1].requires_grad
        count = parts[0].numel() if one_sided else 0
        if count > 1 and count == parts[1].numel() and len(shapes[0]) != len(shapes[1]):
            pairs = torch.broadcast_shapes(*shapes) if _broadcasts(*shapes) else ()
            given = tuple(result.shape) if isinstance(result, Tensor) else ()
            if math.prod(pairs) > count and (given == pairs or func in _BROADCASTING):
                raise _PairedError(f"{shapes[0]} and {shapes[1]} give {tuple(pairs)}")
        return result


def _broadcasts(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    pairs = zip(reversed(first), reversed(second), strict=False)
    return all(a == b or 1 in (a, b) for a, b in pairs)


def _converted_weight(part: Any, dtype: torch.dtype) -> Any:
    constant = isinstance(part, Tensor) and part.is_floating_point() and not part.requires_grad
    return part.to(dtype) if constant else part


def differentiable(
    loss_fn: LossFn, outputs: Tensor, targets: Tensor, parameters: Parameters
) -> Tensor:
    """Compute a loss as `evaluate` does, and make sure that the outputs alone determine it.

    Raises:
        ValueError: see `OutputCurvature`.
        NotImplementedError: see `refuse_reach`.
    """
    value = evaluate(loss_fn, outputs, targets)
    refuse_reach(loss_fn, value, parameters)
    if not value.requires_grad:
        raise ValueError(
            f"loss {name_of(loss_fn)} gave a constant: expected a differentiable function"
        )
    return value


def refuse_reach(loss_fn: LossFn, value: Tensor, parameters: Parameters) -> None:
    """Refuse a loss whose value depends on parameters of the model past the outputs.

    Raises:
        NotImplementedError: it does; the message names the first of them.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> refuse_reach(nn.MSELoss(), weight.square().sum(), {"w": weight})
        Traceback (most recent call last):
        NotImplementedError: loss MSELoss depends on w past the outputs ...
    """
    own = {id(p) for p in loss_fn.parameters()} if isinstance(loss_fn, nn.Module) else set()
    found = [name for name, parameter in parameters.items() if id(parameter) in own]
    found += parameters_below(value.grad_fn, parameters)
    if found:
        raise NotImplementedError(
            f"loss {name_of(loss_fn)} depends on {found[0]} past the outputs (a weight penalty, "
            "or another call of the model): expected a function of outputs and targets; weight "
            "decay of c |W|^2 adds 2 c to each eigenvalue"
        )


def name_of(loss_fn: object) -> str:
    """Give the name of a loss as its author knows it, for messages."""
    return getattr(loss_fn, "__name__", type(loss_fn).__name__)


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype) if tensor.is_floating_point() else tensor
