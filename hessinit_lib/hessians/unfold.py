r"""Every layer as a matrix product per position: its inputs and factors in one form.

A layer whose weight acts on many positions t (pixels, tokens) has, per sample b and factor
i, the Jacobian row

$$j_{bi} = \operatorname{vec} \sum_t s_{bit} u_{bt}^\top,$$

with $u_{bt}$ the patch of the inputs that the weight meets at t and $s_{bit}$ the factor at
the layer's output there. The layer's Gauss-Newton block is $B^{-1} \sum_{bi} j_{bi}
j_{bi}^\top$. Grouped convolutions are G such layers side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hessinit_lib.hessians.capture import CONVOLUTIONS, TRANSPOSED, CapturedLayer
from hessinit_lib.hessians.workspace import Workspace


@dataclass(frozen=True)
class Unfolded:
    """Patches and factors of one layer; its weight has G q m entries.

    Attributes:
        patches: u, shape (B, G, m, T).
        factors: s, for each i a tensor of shape (B, G, q, T).
    """

    patches: Float[Tensor, "b g m t"]
    factors: list[Float[Tensor, "b g q t"]]


@dataclass(frozen=True)
class Lookup:
    """The same of an embedding, whose patches are rows of the unit matrix.

    Attributes:
        tokens: which row of the weight, shape (B, T); -1 where none gets a gradient.
        factors: s, for each i a tensor of shape (B, T, d).
    """

    tokens: Int64[Tensor, "b t"]
    factors: list[Float[Tensor, "b t d"]]


def unfold(
    layer: CapturedLayer, gradients: list[Tensor], batch: int, workspace: Workspace
) -> Unfolded | Lookup:
    """Bring a layer's inputs and factors into the form of one product per position.

    Args:
        layer: what was captured.
        gradients: the factors at the layer's output, one tensor of its shape for each i.
        batch: B. The first axis of the output is the batch, or batch times positions.
        workspace: where the patches are kept, until the next call.

    Example:
        >>> import torch
        >>> from hessinit_lib.hessians.capture import capture
        >>> (layer,), out = capture(nn.Conv2d(2, 4, kernel_size=3), torch.ones(5, 2, 8, 8))
        >>> unfolded = unfold(layer, [torch.ones_like(out)], 5, Workspace(out))
        >>> tuple(unfolded.patches.shape), tuple(unfolded.factors[0].shape)
        ((5, 1, 18, 36), (5, 1, 4, 36))
    """
    module, z = layer.module, layer.inputs
    assert z is not None  # only layers that were called come here
    if isinstance(module, nn.Embedding):
        tokens = z.reshape(batch, -1).long()
        if module.padding_idx is not None:
            tokens = tokens.masked_fill(tokens == module.padding_idx, -1)
        return Lookup(tokens, [g.reshape(batch, -1, g.shape[-1]) for g in gradients])
    z = z.to(gradients[0].dtype)
    if isinstance(module, nn.Linear):
        patches = z.reshape(batch, 1, -1, module.in_features).mT
        return Unfolded(patches, [g.reshape(batch, 1, -1, g.shape[-1]).mT for g in gradients])
    assert isinstance(module, CONVOLUTIONS + TRANSPOSED)
    space = module.weight.ndim - 2
    z = z.reshape(-1, module.in_channels, *z.shape[-space:])
    sizes = gradients[0].shape[-space:]
    outputs = [g.reshape(-1, module.out_channels, *sizes) for g in gradients]
    if isinstance(module, TRANSPOSED):
        # a_p = sum of W_k z_q over p = stride q + dilation k - padding: inputs and factors
        # change places with those of the convolution that goes the other way.
        around = [int(p) for p in reversed(module.padding) for _ in (0, 1)]
        patches = z.flatten(2)
        spread = [_windows(F.pad(s, around), module, z.shape[2:]) for s in outputs]
    else:
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        padded = F.pad(z, _padding(module), mode=mode)
        patches = _windows(padded, module, sizes, workspace)
        spread = [s.flatten(2) for s in outputs]
    return Unfolded(
        _by_sample(patches, batch, module.groups),
        [_by_sample(s, batch, module.groups) for s in spread],
    )


def _by_sample(
    x: Float[Tensor, "n c t"], batch: int, groups: int
) -> Float[Tensor, "b g c_per_g t_all"]:
    """Split groups of channels; what the first axis held besides samples joins the positions."""
    x = x.reshape(batch, -1, groups, x.shape[1] // groups, x.shape[2])
    return x.movedim(1, 3).flatten(3)


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


def _windows(
    padded: Float[Tensor, "n c *space"],
    module: nn.Module,
    sizes: Sequence[int],
    workspace: Workspace | None = None,
) -> Float[Tensor, "n ck t"]:
    """Lay the patches under the kernel side by side: row (c, k), column position."""
    assert isinstance(module, CONVOLUTIONS + TRANSPOSED)
    padded = padded.contiguous()
    steps = padded.stride()[2:]
    view = padded.as_strided(
        (*padded.shape[:2], *module.kernel_size, *sizes),
        (
            *padded.stride()[:2],
            *(d * s for d, s in zip(module.dilation, steps, strict=True)),
            *(d * s for d, s in zip(module.stride, steps, strict=True)),
        ),
    )
    rows = padded.shape[1] * math.prod(module.kernel_size)
    if workspace is not None:
        view = workspace.take("windows", *view.shape).copy_(view)
    return view.reshape(len(padded), rows, math.prod(sizes))
