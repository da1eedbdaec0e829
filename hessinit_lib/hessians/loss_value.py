"""The value of a loss: evaluated in one place, where what does not fit is said in one line."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hessinit_lib.hessians.graph.nodes import inputs_first

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
    call: Callable[..., Any] = loss_fn
    if isinstance(loss_fn, nn.Module):
        state = {key: _converted(p, dtype) for key, p in loss_fn.named_parameters()}
        state.update((key, _converted(b, dtype).clone()) for key, b in loss_fn.named_buffers())
        call = functools.partial(torch.func.functional_call, loss_fn, state)
    given = _converted(targets, dtype).clone()
    # Class targets in few bits, which torch takes for int64 alone.
    tries = [given] if given.dtype not in _SMALL_INTEGERS else [given, given.long()]
    value: Any = None
    for number, tried in enumerate(tries, 1):
        pair = (outputs.clone(), tried)
        try:
            with _NoPairing():
                value = call(pair) if call is not loss_fn else call(*pair)
            break
        except _PairedError as error:
            raise ValueError(
                f"loss {name} pairs outputs of shape {tuple(outputs.shape)} with targets of shape "
                f"{tuple(targets.shape)} by broadcasting ({error}): expected the same shape"
            ) from None
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            if number == len(tries):
                raise ValueError(
                    f"loss {name} refused outputs of shape {tuple(outputs.shape)} and targets of "
                    f"shape {tuple(targets.shape)}, {targets.dtype}: {_first_line(error)}"
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


class _PairedError(Exception):
    """Broadcasting made all pairs of samples."""


class _NoPairing(TorchFunctionMode):
    """Refuse to broadcast a column (B, 1) against a row (B,), which makes all pairs of samples.

    Losses that pair samples on purpose write out both axes.
    """

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        shapes = [tuple(part.shape) for part in args[:2] if isinstance(part, Tensor)]
        if len(shapes) == 2 and shapes[0] != shapes[1] and func in _ELEMENTWISE:
            raise _PairedError(f"{shapes[0]} and {shapes[1]}")
        result = func(*args, **(kwargs or {}))
        if len(shapes) == 2 and isinstance(result, Tensor):
            row, column = sorted(shapes, key=len)
            batch = row[0] if len(row) == 1 else 0
            if batch > 1 and column == (batch, 1) and result.shape == (batch, batch):
                raise _PairedError(f"{column} and {row} give {(batch, batch)}")
        return result


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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
    names = {id(parameter): name for name, parameter in parameters.items()}
    reached = list(loss_fn.parameters()) if isinstance(loss_fn, nn.Module) else []
    if value.grad_fn is not None:
        nodes = inputs_first(value.grad_fn)
        reached += [node.variable for node in nodes if hasattr(node, "variable")]
    found = [names[id(parameter)] for parameter in reached if id(parameter) in names]
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
