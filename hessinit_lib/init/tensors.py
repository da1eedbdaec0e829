r"""Schemes for one weight tensor, in the manner of `torch.nn.init`: in place, returned.

All take the weight as a block of shape (out, in, ...), its kernel positions last. They draw
in float32 on the generator's device, so that the same generator gives the same
numbers whatever the type and the device of the weight.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CUT = 2.0  # deviations at which truncated normal numbers end


@torch.no_grad()
def normal_(weight: Tensor, std: float, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw from $N(0, \sigma^2)$.

    Args:
        weight: any shape.
        std: the deviation $\sigma$.
        generator: source of randomness; the global one if None.

    Returns:
        The weight.

    Example:
        >>> w = normal_(torch.empty(400, 300), 0.1, generator=torch.Generator())
        >>> round(w.std().item(), 2)
        0.1
    """
    return weight.copy_(std * _numbers(weight, generator))


@torch.no_grad()
def truncated_(weight: Tensor, std: float, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw normal numbers within two deviations, scaled so that their deviation is `std`.

    The deviation of $N(0, 1)$ within $\pm 2$ is 0.8796: it is divided out.

    Args:
        weight: any shape.
        std: the deviation of what is drawn.
        generator: source of randomness; the global one if None.

    Returns:
        The weight.

    Example:
        >>> w = truncated_(torch.empty(400, 300), 1.0, generator=torch.Generator())
        >>> round(w.abs().max().item(), 2)
        2.27
    """
    numbers = torch.empty(weight.shape, dtype=torch.float32, device=_device(weight, generator))
    torch.nn.init.trunc_normal_(numbers, 0.0, 1.0, -_CUT, _CUT, generator=generator)
    mass = math.erf(_CUT / math.sqrt(2))
    density = math.exp(-(_CUT**2) / 2) / math.sqrt(2 * math.pi)
    return weight.copy_(numbers * (std / math.sqrt(1 - 2 * _CUT * density / mass)))


@torch.no_grad()
def uniform_(weight: Tensor, std: float, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw uniformly from $\pm \sqrt3 \sigma$.

    Args:
        weight: any shape.
        std: the deviation $\sigma$.
        generator: source of randomness; the global one if None.

    Returns:
        The weight.

    Example:
        >>> w = uniform_(torch.empty(400, 300), 1.0, generator=torch.Generator())
        >>> round(w.abs().max().item(), 2)
        1.73
    """
    numbers = torch.rand(weight.shape, generator=generator, device=_device(weight, generator))
    return weight.copy_((2 * numbers - 1) * (math.sqrt(3) * std))


@torch.no_grad()
def orthogonal_(weight: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw a random orthogonal map: $W W^\top = I$ or $W^\top W = I$.

    A convolution's kernel is orthogonal as a matrix (out, in x positions).

    Args:
        weight: shape (out, in, ...).
        generator: source of randomness; the global one if None.

    Returns:
        The weight.

    Source: Saxe, McClelland and Ganguli, arXiv 1312.6120.

    Example:
        >>> w = orthogonal_(torch.empty(3, 5), generator=torch.Generator())
        >>> torch.allclose(w @ w.T, torch.eye(3), atol=1e-6)
        True
    """
    numbers = _numbers(weight, generator).flatten(1)
    wide = numbers.shape[0] < numbers.shape[1]
    q, r = torch.linalg.qr(numbers.T if wide else numbers)
    q *= r.diagonal().sign()  # without this, not all orthogonal maps are equally likely
    return weight.copy_((q.T if wide else q).reshape(weight.shape))


def _numbers(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    device = _device(weight, generator)
    return torch.randn(weight.shape, generator=generator, device=device)


def _device(weight: Tensor, generator: torch.Generator | None) -> torch.device:
    if generator is None:
        return weight.device
    if not isinstance(generator, torch.Generator):
        raise ValueError(f"generator: got {generator!r}, expected a torch.Generator")
    return generator.device
