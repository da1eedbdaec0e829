r"""Mirrored weights: a ReLU network that starts as a linear one.

Let the outputs of a layer come in two halves, one the negative of the other, and let the next
layer read their ReLUs with weights of opposite sign:

$$\begin{pmatrix} V & -V \\ -V & V \end{pmatrix}
  \begin{pmatrix} \max(a, 0) \\ \max(-a, 0) \end{pmatrix}
  = \begin{pmatrix} V a \\ -V a \end{pmatrix}.$$

No sample's signal is cut off, so at the start the Jacobian of the network is one and the same
orthogonal map for all samples, and samples do not grow alike with depth, as they do behind
independent weights. Training leaves the linear start at once.

Nothing of this is special to ReLU: with any activation $\phi$ the next layer reads V times
$\phi(a) - \phi(-a)$, and that is a whenever $\phi(a) = a \, g(a)$ with $g(a) + g(-a) = 1$, as
for GELU, SiLU and Hardswish, and for softplus. The mean of a sigmoid's outputs, which makes deep
sigmoid networks untrainable from independent weights, cancels too: $\tanh(a/2)$ is left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hessinit_lib.init.tensors import orthogonal_


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
