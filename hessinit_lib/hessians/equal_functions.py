"""Functions of torch without a (right) second derivative, replaced by equal ones that have it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def equal_functions(*, twice: bool = True) -> Iterator[None]:
    """Run forward passes by functions that can be differentiated twice, without checkpoints.

    Unless `twice`, only the latter. Checkpoints recompute a part of the model in the backward
    pass, when its own parameters are back in their place.

    Example:
        >>> x = torch.zeros(1, requires_grad=True)
        >>> with equal_functions():
        ...     (first,) = torch.autograd.grad(F.hardsigmoid(x), x, create_graph=True)
        >>> round(first.item(), 4), first.requires_grad
        (0.1667, True)
    """
    module: Any = torch.utils.checkpoint
    kept = {name: vars(module)[name] for name in _GENERATORS if name in vars(module)}
    function = module.CheckpointFunction
    try:
        vars(module).update(dict.fromkeys(kept, _directly))
        function.apply = staticmethod(lambda run, _preserve, *args: run(*args))
        with _Replaced() if twice else contextlib.nullcontext():
            yield
    finally:
        vars(module).update(kept)
        if "apply" in vars(function):
            del function.apply


# One of them by the version of torch.
_GENERATORS = (
    "_checkpoint_without_reentrant_generator",
    "_checkpoint_without_reentrant_generator_impl",
)


def _directly(*_: Any, **__: Any) -> Iterator[None]:
    yield


class _Replaced(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _EQUAL.get(func, func)(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    axes = [axis for axis in range(v.ndim) if dim == -1 or axis != dim % v.ndim]
    return v * (g / v.square().sum(axes, keepdim=True).sqrt())


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(input + 3) / 6


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float | int = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    if max_norm is not None or scale_grad_by_freq:
        raise NotImplementedError("EmbeddingBag: max_norm and scale_grad_by_freq are not covered")
    flat = input.reshape(-1)
    if offsets is None:
        offsets = torch.arange(0, flat.numel(), input.shape[1], device=input.device)
    elif include_last_offset:
        offsets = offsets[:-1]
    bags = torch.bucketize(torch.arange(flat.numel(), device=input.device), offsets, right=True) - 1
    kept = flat >= 0 if padding_idx is None else flat != padding_idx % len(weight)
    found, bags = F.embedding(flat, weight)[kept], bags[kept]
    if per_sample_weights is not None:
        found = found * per_sample_weights.reshape(-1)[kept, None]
    zeros = found.new_zeros(len(offsets), weight.shape[1])
    if mode == "max":
        rows = [found[bags == bag] for bag in range(len(offsets))]
        return torch.stack([row.amax(0) if len(row) else zeros[0] for row in rows])
    total = zeros.index_add(0, bags, found)
    if mode == "sum":
        return total
    return total / torch.bincount(bags, minlength=len(offsets)).clamp(min=1)[:, None]


_EQUAL: dict[Any, Any] = {
    torch._weight_norm: _weight_norm,  # pyright: ignore[reportPrivateImportUsage]
    F.hardsigmoid: _hardsigmoid,
    F.embedding_bag: _embedding_bag,
}
