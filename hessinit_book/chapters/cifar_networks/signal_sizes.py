"""How large the weights and activations of every layer are, relative to He's and in itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hessinit_book.statistics.rounding import all_rounded
from hessinit_lib.hessians.noise import without_noise


@torch.no_grad()
def signals(model: nn.Module, inputs: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Measure layers by the spread of their weights and of their outputs.

    Args:
        model: left as it is; batch normalization counts with the inputs' statistics.
        inputs: the probe, shape (B, ...).
        names: weights, by name ("conv.weight").

    Returns:
        Lists in the order of the names: `deviation` of the weights over He's, and
        `activation`, the root mean square of the layer's outputs.

    Example:
        >>> layer = nn.Linear(8, 4, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 0.5)
        >>> signals(nn.Sequential(layer), torch.ones(1, 8), ["0.weight"])
        {'deviation': [0.0], 'activation': [4.0]}
    """
    found: dict[str, float] = {}

    def noting(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def note(_module: nn.Module, _inputs: Any, outputs: Tensor) -> None:
            found[name] = outputs.float().square().mean().sqrt().item()

        return note

    hooks = [
        model.get_submodule(name.rpartition(".")[0]).register_forward_hook(noting(name))
        for name in names
    ]
    # Running statistics must not move: the buffers are copies.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with without_noise(model, inputs):
            torch.func.functional_call(model, buffers, (inputs,))
    finally:
        for hook in hooks:
            hook.remove()
    weights = {name: model.get_parameter(name) for name in names}
    return {
        "deviation": all_rounded(
            (weight.std().item() / math.sqrt(2 / weight[0].numel()) for weight in weights.values()),
            5,
        ),
        "activation": all_rounded((found[name] for name in names), 5),
    }
