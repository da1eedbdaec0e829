r"""How much of an activation function is odd, read from the graph of a forward pass.

Behind mirrored outputs (a, -a) weights of opposite sign read only $\phi(a) - \phi(-a)$, twice
the odd part of the activation $\phi$ (see `hessinit_lib.init.mirrored`). For
$\phi(a) = a \, g(a)$ with $g(a) + g(-a) = 1$ that is a itself: ReLU, GELU, SiLU and Hardswish
are of this kind, and softplus and log-sigmoid have the same difference. For a sigmoid it is
$\tanh(a/2)$. All that initialization needs to know of it is its slope at 0.
"""

from __future__ import annotations

from collections.abc import Collection
from math import log, tanh
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

_SLOPES = {
    **dict.fromkeys(("Relu", "Gelu", "Silu", "Hardswish", "Softplus", "LogSigmoid"), 1.0),
    "Sigmoid": 1 / 2,
    "Hardsigmoid": 1 / 3,
    "Mish": 2 * tanh(log(2)),
}


def mirrored_slope(reads: Tensor, layers: Collection[Node]) -> float | None:
    r"""Give the slope at 0 of $\phi(a) - \phi(-a)$ for the activation that a layer reads.

    The way back from what the layer reads is followed through reshapes, pooling and
    concatenations, to the first activation or layer.

    Args:
        reads: the layer's input, with the graph.
        layers: where the graph has outputs of layers.

    Returns:
        $\phi'(0+) + \phi'(0-)$; None where there is nothing to mirror: no activation, or an
        odd one, such as tanh. An unknown one that gave no number below 0 is taken for a ReLU.

    Example:
        >>> import torch
        >>> a = torch.randn(4, 3, requires_grad=True)
        >>> [mirrored_slope(f(a), ()) for f in (torch.relu, torch.sigmoid, torch.tanh)]
        [1.0, 0.5, None]
    """
    node: Any = reads.grad_fn
    while node is not None and node not in layers:
        kind = node.name().partition("Backward")[0]
        if kind in _SLOPES:
            return _SLOPES[kind]
        if kind == "LeakyRelu":
            return 1 + node._saved_negative_slope
        if kind == "Hardtanh":  # ReLU6, too: from 0 to 6
            ends = node._saved_min_val, node._saved_max_val
            return 1.0 if 0 in ends else None
        sides = [side for side, _ in node.next_functions if side is not None]
        if "Norm" in kind or (len(sides) != 1 and kind != "Cat"):
            break
        node = sides[0]
    return 1.0 if reads.min() >= 0 else None
