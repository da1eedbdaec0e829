r"""Mirrored weights: a ReLU network that is linear at initialization.

Let the outputs of a layer come in two halves, one the negative of the other, and let the next
layer read their ReLUs with weights of opposite sign:

$$\begin{pmatrix} V & -V \\ -V & V \end{pmatrix}
  \begin{pmatrix} \max(a, 0) \\ \max(-a, 0) \end{pmatrix}
  = \begin{pmatrix} V a \\ -V a \end{pmatrix}.$$

No sample's signal is cut off, so at first the Jacobian of the network is one and the same
orthogonal map for all samples, and samples do not grow alike with depth, as they do behind
independent weights. Training breaks the symmetry at once.

Nothing of this is special to ReLU: with any activation $\phi$ the next layer reads V times
$\phi(a) - \phi(-a)$, and that is a whenever $\phi(a) = a \, g(a)$ with $g(a) + g(-a) = 1$, as
for GELU, SiLU and Hardswish, and for softplus. The mean of a sigmoid's outputs, which makes deep
sigmoid networks untrainable from independent weights, cancels too: $\tanh(a/2)$ is left.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hessinit_lib.init.forward_graph import ForwardGraph, residual_branches
from hessinit_lib.init.tensors import normal_, orthogonal_


@torch.no_grad()
def mirrored_(
    weight: Tensor,
    *,
    inputs: bool = True,
    outputs: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draw an orthogonal block $V$ and mirror it.

    Args:
        weight: shape (out, in, ...); halves along the mirrored axes, so these are even.
        inputs: whether the inputs are ReLUs of mirrored outputs.
        outputs: whether the outputs are to be mirrored.
        generator: source of randomness; the global one if None.

    Returns:
        The weight, $V$ with each entry repeated with the signs above. Not scaled: with both
        halves the map has norm 2, of which ReLU passes one half.

    Raises:
        ValueError: an odd number of channels on an axis that is to be mirrored.

    Source: Balduzzi and others, "The shattered gradients problem", arXiv 1702.08591
        ("looks linear").

    Example:
        >>> first, second = torch.empty(6, 4), torch.empty(2, 6)
        >>> generator = torch.Generator().manual_seed(0)
        >>> _ = mirrored_(first, inputs=False, generator=generator)
        >>> _ = mirrored_(second, outputs=False, generator=generator)
        >>> x = torch.randn(5, 4, generator=generator)
        >>> torch.allclose((x @ first.T).relu() @ second.T, x @ (second @ first).T / 2, atol=1e-6)
        True
    """
    fan_out, fan_in = weight.shape[:2]
    for mirrored, size, what in ((outputs, fan_out, "outputs"), (inputs, fan_in, "inputs")):
        if mirrored and size % 2:
            raise ValueError(f"{size} {what}: expected an even number, two halves to mirror")
    rows = fan_out // 2 if outputs else fan_out
    columns = fan_in // 2 if inputs else fan_in
    block = orthogonal_(weight.new_empty(rows, columns, *weight.shape[2:]), generator=generator)
    if inputs:
        block = torch.cat((block, -block), 1)
    if outputs:
        block = torch.cat((block, -block), 0)
    return weight.copy_(block)


@torch.no_grad()
def draw_directions(graph: ForwardGraph, *, generator: torch.Generator | None = None) -> None:
    r"""Draw every layer's weight such that signals keep their mean square, in place.

    Layers become orthogonal maps with rows of norm 1, or He's $\sqrt2$ behind a ReLU. Where
    the layer that follows reads a ReLU or another activation that is not odd, the outputs
    are mirrored (see `hessinit_lib.init.mirrored`) and the rows of the layer behind have
    the norm $\sqrt2 / s$, s the activation's `mirrored_slope`. Stacked matrices (queries, keys
    and values; gates) are drawn one by one; the biases of weights that `apply` does not know
    become zero. Embeddings and other tables, such as positions, are drawn from $N(0, 1)$.

    Args:
        graph: of a forward pass of the model.
        generator: source of randomness; the global one if None.

    Source: Saxe, McClelland and Ganguli, arXiv 1312.6120; Balduzzi and others, arXiv
        1702.08591; He and others, arXiv 1502.01852.
    """
    halves = 0  # channels of the last layer's outputs, if they are mirrored
    for index, layer in enumerate(graph.layers):
        weight = layer.weight.detach()
        if isinstance(layer.module, nn.Embedding):
            normal_(weight, 1.0, generator=generator)
            if layer.module.padding_idx is not None:
                weight[layer.module.padding_idx] = 0
            layer.put(weight)
            halves = 0
            continue
        blocks = layer.matrices(weight)
        groups, fan_out, fan_in = blocks.shape[:3]
        slope = graph.slopes.get(layer.name)
        before = bool(halves) and slope is not None and fan_in % halves == 0
        before = before and (groups == 1 or layer.key != "weight")  # groups read a part each
        following = graph.layers[index + 1 : index + 2]
        after = groups == 1 and fan_out % 2 == 0
        after = after and any(other.name in graph.slopes for other in following)
        for block in blocks:
            mirrored_(block, inputs=before, outputs=after, generator=generator)
            # Also where there are more rows than columns; a ReLU passes half of the mean square.
            square = 1 if slope is None else 2 / slope**2
            norm = block.square().sum().item() * layer.factor**2
            block.mul_(math.sqrt(square * fan_out / norm))
        layer.put(weight)
        if layer.bias is not None:
            layer.bias.zero_()
        halves = fan_out if after else 0
    for table in graph.tables:
        normal_(table, 1.0, generator=generator)


def branch_factors(graph: ForwardGraph) -> dict[str, float]:
    r"""Give the factor $1 / \sqrt N$ of the last layer of each of N residual branches.

    Each branch then adds 1/N of the mean square that it would add, all together as much as one.
    """
    branches = residual_branches(graph)
    return {branch[-1]: 1 / math.sqrt(len(branches)) for branch in branches}
