"""What happens between layers in a forward pass: activations, attention, sums of branches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# An activation counts as flat where its slope is below this part of its steepest one.
FLAT = 0.05

_RECTIFIERS = {torch.relu, torch.relu_, F.relu, Tensor.relu, Tensor.relu_, F.relu6}
_TANHS = {torch.tanh, torch.tanh_, F.tanh, Tensor.tanh, Tensor.tanh_}
_SIGMOIDS = {torch.sigmoid, torch.sigmoid_, F.sigmoid, Tensor.sigmoid, Tensor.sigmoid_}
_SMOOTH = {F.gelu, F.silu, F.elu, F.selu, F.leaky_relu, F.softplus, F.mish, F.hardswish}
_SOFTMAXES = {torch.softmax, F.softmax, Tensor.softmax}
_SUMS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__}


@dataclass(frozen=True)
class Activation:
    """An activation that followed a layer.

    Attributes:
        kind: "relu", "tanh", "sigmoid" or "smooth".
        dead: share of its units that are zero for every sample and position.
        flat: share of its values where the slope is below `FLAT` of the steepest.
    """

    kind: str
    dead: float
    flat: float


class Events(TorchFunctionMode):
    """Note activations and sums while a model runs, whether they are modules or functions.

    Args:
        where: gives, at any time of the forward pass, the index of the call of a layer that
            came last (-1 before the first), and the axis of its units.

    Attributes:
        activations: by that index; of several after one layer, the first.
        attention: share of the rows of softmax, of more than two axes, that look at one
            position only; by that index.
        sums: root mean squares of (the larger part, the sum), for each addition of two
            tensors of the same shape that both depend on parameters.

    Example:
        >>> with Events(lambda: (0, -1)) as events:
        ...     _ = torch.relu(torch.tensor([[1.0, -1.0], [2.0, -3.0]]))
        >>> events.activations[0].dead
        0.5
    """

    def __init__(self, where: Callable[[], tuple[int, int]]) -> None:
        super().__init__()
        self._where = where
        self.activations: dict[int, Activation] = {}
        self.attention: dict[int, float] = {}
        self.sums: list[tuple[float, float]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, and look at what it gave."""
        parts = [part for part in args[:2] if isinstance(part, Tensor)]
        # Before the call, which may write into a part.
        largest = max(map(_rms, parts)) if func in _SUMS and _are_branches(parts) else None
        result = func(*args, **(kwargs or {}))
        if func is F.multi_head_attention_forward:
            shown = {**(kwargs or {}), "need_weights": True, "average_attn_weights": False}
            with torch.no_grad():
                self._attend(func(*args, **shown)[1], 1)  # this layer is counted when it ends
        elif func is F.scaled_dot_product_attention:
            self._attend(_attention(*args, **(kwargs or {})))
        elif func in _SOFTMAXES and result.ndim > 2:
            axis = kwargs["dim"] if kwargs and "dim" in kwargs else args[1]
            self._attend(result.movedim(axis, -1))
        elif largest is not None:
            self.sums.append((largest, _rms(result)))
        elif kind := _kind(func):
            index, axis = self._where()
            if index >= 0:
                # What is masked is off by design.
                masked = torch.isinf(args[0]) if kind == "sigmoid" and args else None
                self.activations.setdefault(index, _look(kind, result.detach(), axis, masked))
        return result

    def _attend(self, rows: Tensor, later: int = 0) -> None:
        index = self._where()[0] + later
        if index >= 0 and rows.shape[-1] > 1:
            spread = 1 - rows.detach().square().sum(-1)
            self.attention.setdefault(index, _share(spread < FLAT))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute the rows of softmax that `scaled_dot_product_attention` does not show."""
    with torch.no_grad():
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        logits = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones_like(logits, dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            logits = logits.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            logits = logits + attn_mask
        return logits.softmax(-1).nan_to_num()


def _kind(func: Callable[..., Any]) -> str | None:
    kinds = (("relu", _RECTIFIERS), ("tanh", _TANHS), ("sigmoid", _SIGMOIDS), ("smooth", _SMOOTH))
    return next((kind for kind, functions in kinds if func in functions), None)


def _are_branches(parts: list[Tensor]) -> bool:
    return (
        len(parts) == 2
        and parts[0].shape == parts[1].shape
        and parts[0].ndim > 1
        and all(part.requires_grad for part in parts)
    )


def _look(kind: str, values: Tensor, axis: int, masked: Tensor | None) -> Activation:
    others = [i for i in range(values.ndim) if i != axis % values.ndim]
    dead, flat = 0.0, 0.0
    if kind == "relu":
        dead = _share((values == 0).all(dim=others) if others else values == 0)
    elif kind == "tanh":
        flat = _share(1 - values**2 < FLAT)
    elif kind == "sigmoid":
        kept = values if masked is None else values[~masked]
        flat = _share(4 * kept * (1 - kept) < FLAT) if kept.numel() else 0.0
    return Activation(kind, dead, flat)


def _share(mask: Tensor) -> float:
    return mask.double().mean().item()


def _rms(values: Tensor) -> float:
    return values.detach().double().square().mean().sqrt().item()
