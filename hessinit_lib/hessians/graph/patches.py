r"""Every layer as a matrix product per position: its inputs and factors in one form.

A layer whose weight acts on many positions t (pixels, tokens) has, per sample b and factor
i, the Jacobian row

$$j_{bi} = \operatorname{vec} \sum_t s_{bit} u_{bt}^\top,$$

with $u_{bt}$ the patch of the inputs that the weight multiplies at t and $s_{bit}$ the factor at
the layer's output there. The layer's Gauss-Newton block is $B^{-1} \sum_{bi} j_{bi}
j_{bi}^\top$. Grouped convolutions are G such layers side by side. The patches of an
embedding are rows of the unit matrix; they are left as tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hessinit_lib.hessians.graph.capture import CapturedLayer
from hessinit_lib.hessians.graph.nodes import edge_shape
from hessinit_lib.hessians.kinds import CONVOLUTIONS, TRANSPOSED


class Sizes(NamedTuple):
    """Sizes of a layer's patches, shape (B, G, m, T), and factors, shape (B, G, q, T).

    The weight has G q m entries; of an embedding those rows that occur in the batch.
    """

    batch: int
    groups: int
    units: int
    inputs: int
    positions: int

    @property
    def columns(self) -> int:
        """How many entries a Jacobian row has."""
        return self.groups * self.units * self.inputs


def sizes(layer: CapturedLayer, batch: int) -> Sizes:
    """Find the sizes of a layer's patches and factors.

    The first axis of the layer's output is the batch, or batch times positions.

    Example:
        >>> import torch
        >>> from hessinit_lib.hessians.graph.capture import capture
        >>> (layer,), _ = capture(nn.Conv2d(2, 4, kernel_size=3), torch.ones(5, 2, 8, 8))
        >>> sizes(layer, 5)
        Sizes(batch=5, groups=1, units=4, inputs=18, positions=36)
    """
    module, z = layer.module, layer.inputs
    assert z is not None  # only layers that were called come here
    assert layer.edge is not None
    shape = edge_shape(layer.edge)
    if isinstance(module, nn.Embedding):
        seen = tokens(layer, batch).unique()
        return Sizes(batch, 1, shape[-1], int((seen >= 0).sum()), math.prod(shape[:-1]) // batch)
    if isinstance(module, nn.Linear):
        positions = math.prod(shape[:-1]) // batch
        return Sizes(batch, 1, module.out_features, module.in_features, positions)
    assert isinstance(module, CONVOLUTIONS + TRANSPOSED)
    units, inputs = module.out_channels // module.groups, module.in_channels // module.groups
    window, space = math.prod(module.kernel_size), module.weight.ndim - 2
    if isinstance(module, TRANSPOSED):
        units, shape = units * window, z.shape
    else:
        inputs *= window
    frames = math.prod(shape) // (batch * math.prod(shape[-space:]) * shape[-space - 1])
    return Sizes(batch, module.groups, units, inputs, frames * math.prod(shape[-space:]))


def extract_patches(layer: CapturedLayer, out: Float[Tensor, "b g m t"]) -> None:
    """Unfold the inputs of a layer, not an embedding, into patches of any floating type."""
    module, z = layer.module, layer.inputs
    assert z is not None
    if isinstance(module, nn.Linear):
        out.copy_(z.reshape(len(out), 1, -1, module.in_features).mT)
        return
    assert isinstance(module, CONVOLUTIONS + TRANSPOSED)
    space = module.weight.ndim - 2
    z = z.reshape(-1, module.in_channels, *z.shape[-space:])
    if isinstance(module, CONVOLUTIONS):
        assert layer.edge is not None
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        z = F.pad(z.to(out.dtype), _padding(module), mode=mode)
        z = windows(z, *_kernel(module), edge_shape(layer.edge)[-space:])
    unfolded = _by_sample(z, len(out), module.groups, space)
    out.view(unfolded.shape).copy_(unfolded)


def extract_factor(
    layer: CapturedLayer, gradient: Tensor, shape: Sizes
) -> Float[Tensor, "{shape.batch} {shape.groups} {shape.units} {shape.positions}"]:
    """Bring a gradient at the layer's output into the form of factors, (B, G, q, T).

    Example:
        >>> import torch
        >>> from hessinit_lib.hessians.graph.capture import capture
        >>> (layer,), out = capture(nn.Conv2d(2, 4, 3, groups=2), torch.ones(5, 2, 8, 8))
        >>> tuple(extract_factor(layer, torch.ones_like(out), sizes(layer, 5)).shape)
        (5, 2, 2, 36)
    """
    module = layer.module
    if isinstance(module, nn.Linear | nn.Embedding):
        return gradient.reshape(shape.batch, 1, -1, shape.units).mT
    assert isinstance(module, CONVOLUTIONS + TRANSPOSED)
    space = module.weight.ndim - 2
    s = gradient.reshape(-1, module.out_channels, *gradient.shape[-space:])
    if isinstance(module, TRANSPOSED):
        # a_p = sum of W_k z_q over p = stride q + dilation k - padding: inputs and factors
        # change places with those of the convolution that goes the other way.
        assert layer.inputs is not None
        around = [int(p) for p in reversed(module.padding) for _ in (0, 1)]
        s = windows(F.pad(s, around), *_kernel(module), layer.inputs.shape[-space:])
    unfolded = _by_sample(s, shape.batch, module.groups, space)
    return unfolded.reshape(shape.batch, shape.groups, shape.units, shape.positions)


def tokens(layer: CapturedLayer, batch: int) -> Int64[Tensor, "b t"]:
    """Give the row of an embedding's weight at each position; -1 where none gets a gradient."""
    assert isinstance(layer.module, nn.Embedding)
    assert layer.inputs is not None
    found = layer.inputs.reshape(batch, -1).long()
    padding = layer.module.padding_idx
    return found if padding is None else found.masked_fill(found == padding, -1)


def _by_sample(x: Float[Tensor, "n c *rest"], batch: int, groups: int, space: int) -> Tensor:
    """Split groups of channels; what the first axis held besides samples joins the positions.

    Returns:
        A view of shape (B, G, C / G, window..., frames, space...).
    """
    x = x.unflatten(0, (batch, -1)).unflatten(2, (groups, -1))
    return x.movedim(1, -1 - space)


def _padding(module: nn.Module) -> list[int]:
    """Give what F.pad takes: the amounts before and after each axis, the last axis first."""
    assert isinstance(module, CONVOLUTIONS)
    amounts: list[int] = []
    for axis in reversed(range(len(module.kernel_size))):
        if module.padding == "same":
            total = module.dilation[axis] * (module.kernel_size[axis] - 1)
            amounts += [total // 2, total - total // 2]
        elif module.padding == "valid":
            amounts += [0, 0]
        else:
            amounts += [int(module.padding[axis])] * 2
    return amounts


def _kernel(module: nn.Module) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    assert isinstance(module, CONVOLUTIONS + TRANSPOSED)
    return module.kernel_size, module.stride, module.dilation


def windows(
    padded: Float[Tensor, "n c *space"],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    counts: Sequence[int],
) -> Float[Tensor, "n c *both"]:
    """View the patches under a kernel, shape (n, c, window..., positions...)."""
    padded = padded.contiguous()
    steps = padded.stride()[2:]
    return padded.as_strided(
        (*padded.shape[:2], *kernel, *counts),
        (
            *padded.stride()[:2],
            *(d * s for d, s in zip(dilation, steps, strict=True)),
            *(d * s for d, s in zip(stride, steps, strict=True)),
        ),
    )
