r"""Gradients over time: how much of them gets to the first steps of a recurrent layer?

For inputs $x_1, \dots, x_T$ this is $\|\nabla_{x_1} L\| / \|\nabla_{x_T} L\|$; for a cell that is
called step by step, the same of its outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hessinit_lib.init.tensors import orthogonal_

GATED = (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)
"""What learns to forget less: a gate opens, where a plain layer has but its matrix."""


def watch_inputs(model: nn.Module, inputs: dict[nn.Module, Tensor]) -> list[RemovableHandle]:
    """Fill in what recurrent layers of one direction get in their first call, as part of the graph.

    Gives the hooks that do so, to be removed.
    """

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        given = args[0] if args else kwargs.get("input")
        if module in inputs or not isinstance(given, Tensor) or given.ndim != 3:
            return None
        if not given.requires_grad:  # data: joined to the graph by a zero
            given = given + 0 * next(module.parameters()).flatten()[0]
        inputs[module] = given
        return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "input": given})

    return [
        module.register_forward_pre_hook(before, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, nn.RNNBase) and not module.bidirectional
    ]


def over_time(module: nn.Module, found: Sequence[Tensor | None]) -> tuple[int, float]:
    """Compare gradients in a layer's inputs, or in the outputs of a cell's calls, by time.

    Returns:
        How many steps get any, and the largest norm in the first eighth of them over that in
        the last eighth; 1.0 for a single one.

    Example:
        >>> steps, ratio = over_time(nn.GRU(1, 1), [torch.logspace(-3, 0, 4)[:, None, None]])
        >>> steps, round(ratio, 6)
        (4, 0.001)
    """
    none = next((each.new_zeros(1) for each in found if each is not None), torch.zeros(1))
    steps: Any = [none if each is None else each for each in found]
    if isinstance(module, nn.RNNBase) and found[0] is not None:
        steps = found[0].movedim(1 if module.batch_first else 0, 0)
    norms = torch.stack([each.detach().double().norm() for each in steps])
    if not torch.isfinite(norms).all():
        return len(norms), torch.inf
    reached = int(norms.nonzero().max()) + 1 if norms.any() else 1
    part = max(1, reached // 8)
    ratio = norms[:part].max() / norms[reached - part : reached].max()
    return reached, ratio.item() if reached > 1 else 1.0


def orthogonal_blocks(weight: Tensor) -> None:
    """Draw each square block of a recurrent matrix by `orthogonal_`, the same at each call."""
    size = weight.shape[-1]
    for block in weight.detach().view(-1, size, size):
        orthogonal_(block, generator=torch.Generator(weight.device).manual_seed(0))


def open_gates(module: nn.Module) -> None:
    """Let a gated layer remember: orthogonal recurrent weights, and a bias of 1 to keep its state.

    Example:
        >>> layer = nn.LSTM(2, 3)
        >>> open_gates(layer)
        >>> layer.bias_ih_l0.tolist()[3:6], layer.bias_hh_l0.tolist()[3:6]
        ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    """
    for name, value in module.named_parameters(recurse=False):
        part = len(value) // (3 if isinstance(module, GATED[1::2]) else 4)
        if name.startswith("weight_hh"):
            orthogonal_blocks(value)
        elif name.startswith("bias"):  # of both kinds the second gate keeps the state
            value.detach()[part : 2 * part] = float(name.startswith("bias_ih"))
