"""What the signals of a network tell: their sizes, how much alike they are, and their loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_book.statistics.rounding import all_rounded, rounded
from hessinit_book.training.cosines import cosine_distance
from hessinit_lib.hessians.noise import without_noise


@torch.no_grad()
def signals(
    model: nn.Module, inputs: Tensor, labels: Tensor, names: Sequence[str]
) -> dict[str, Any]:
    """Measure layers by their weights and outputs, and the network by its loss.

    Args:
        model: left as it is; batch normalization counts with the inputs' statistics.
        inputs: the probe, shape (B, ...).
        labels: shape (B,).
        names: weights, by name ("conv.weight").

    Returns:
        Lists in the order of the names: `deviation` of the weights over He's, `activation`, the
        root mean square of the layer's outputs, and their `cosine_distance` between samples;
        and the `loss` [nat].

    Example:
        >>> layer = nn.Linear(8, 4, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 0.5)
        >>> found = signals(nn.Sequential(layer), torch.ones(2, 8), torch.arange(2), ["0.weight"])
        >>> found["deviation"], found["activation"], found["cosine_distance"], found["loss"]
        ([0.0], [4.0], [0.0], 1.38629)
    """
    found: dict[str, tuple[float, float]] = {}

    def noting(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def note(_module: nn.Module, _inputs: Any, outputs: Tensor) -> None:
            size = outputs.float().square().mean().sqrt().item()
            found[name] = size, cosine_distance(outputs)

        return note

    hooks = [
        model.get_submodule(name.rpartition(".")[0]).register_forward_hook(noting(name))
        for name in names
    ]
    try:
        loss = probe_loss(model, inputs, labels)
    finally:
        for hook in hooks:
            hook.remove()
    weights = {name: model.get_parameter(name) for name in names}
    return {
        "deviation": all_rounded(
            (weight.std().item() / math.sqrt(2 / weight[0].numel()) for weight in weights.values()),
            5,
        ),
        "activation": all_rounded((found[name][0] for name in names), 5),
        "cosine_distance": all_rounded((found[name][1] for name in names), 5),
        "loss": rounded(loss),
    }


@torch.no_grad()
def probe_loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Compute the loss [nat] on the probe, see `signals`; NaN where the outputs are no numbers."""
    # Running statistics must not move: the buffers are copies.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with without_noise(model, inputs):
        outputs = torch.func.functional_call(model, buffers, (inputs,))
    return F.cross_entropy(outputs.float(), labels).item()
