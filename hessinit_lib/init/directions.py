r"""Directions of the weights: orthogonal maps, mirrored around activations that are not odd."""

from __future__ import annotations

import math

import torch
from torch import nn

from hessinit_lib.init.branches import residual_branches
from hessinit_lib.init.mirrored import mirrored_
from hessinit_lib.init.tensors import normal_
from hessinit_lib.init.trace import Trace


@torch.no_grad()
def draw_directions(found: Trace, *, generator: torch.Generator | None = None) -> None:
    r"""Draw every layer's weight such that signals keep their mean square, in place.

    Layers become orthogonal maps with rows of norm 1, or He's $\sqrt2$ behind a ReLU. Where
    the layer that follows reads a ReLU or another activation that is not odd, the outputs
    are mirrored (see `hessinit_lib.init.mirrored`) and the rows of the layer behind have
    the norm $\sqrt2 / s$, where s is the slope that is left to them (see
    `hessinit_lib.init.oddness`). Embeddings are drawn from $N(0, 1)$.

    Args:
        found: a forward pass of the model: its layers, in which order, behind what.
        generator: source of randomness; the global one if None.

    Source: Saxe, McClelland and Ganguli, arXiv 1312.6120; Balduzzi and others, arXiv
        1702.08591; He and others, arXiv 1502.01852.
    """
    halves = 0  # channels of the last layer's outputs, if they are mirrored
    for index, layer in enumerate(found.layers):
        if isinstance(layer.module, nn.Embedding):
            normal_(layer.weight, 1.0, generator=generator)
            if layer.module.padding_idx is not None:
                layer.weight[layer.module.padding_idx] = 0
            halves = 0
            continue
        blocks = layer.matrices()
        groups, fan_out, fan_in = blocks.shape[:3]
        slope = found.slopes.get(layer.name)
        before = bool(halves) and slope is not None and groups == 1 and fan_in % halves == 0
        following = found.layers[index + 1 : index + 2]
        after = groups == 1 and fan_out % 2 == 0
        after = after and any(other.name in found.slopes for other in following)
        for block in blocks:
            mirrored_(block, inputs=before, outputs=after, generator=generator)
            # Also where there are more rows than columns; a ReLU passes half of the mean square.
            square = 1 if slope is None else 2 / slope**2
            block.mul_(math.sqrt(square * fan_out / block.square().sum().item()))
        halves = fan_out if after else 0


def branch_factors(found: Trace) -> dict[str, float]:
    r"""Give the factor $1 / \sqrt N$ of the last layer of each of N residual branches.

    Each branch then adds 1/N of the mean square that it would add, all together as much as one.

    Args:
        found: a forward pass of the model.

    Returns:
        The factor by the weight's name; none without branches.
    """
    branches = residual_branches(found)
    return {branch[-1]: 1 / math.sqrt(len(branches)) for branch in branches}
