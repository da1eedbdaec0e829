"""Random numbers: drawn from generators of the CPU, so that they are the same on every device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_LARGE = 1 << 20  # numbers from which on they are drawn where they are needed


def cpu_generator(generator: torch.Generator | None) -> torch.Generator:
    """Give a generator of the CPU: this one, a new one that this one seeds, or one of seed 0.

    Example:
        >>> cpu_generator(None).initial_seed()
        0
    """
    if generator is None:
        return torch.Generator().manual_seed(0)
    if generator.device.type == "cpu":
        return generator
    return torch.Generator().manual_seed(_seed(generator))


def standard_normal(shape: Sequence[int], generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw standard normal numbers, in the type and on the device of `like`.

    Many of them for another device are drawn there: other ones, from the same seed.

    Example:
        >>> standard_normal((2, 3), cpu_generator(None), torch.zeros(1, dtype=torch.float64)).dtype
        torch.float64
    """
    if like.device.type == "cuda" and math.prod(shape) > _LARGE:
        generator = torch.Generator(like.device).manual_seed(_seed(generator))
    return torch.randn(*shape, generator=generator, device=generator.device).to(like)


def random_signs(shape: Sequence[int], generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw signs -1 and 1, each with probability 1/2, in the type and on the device of `like`."""
    bits = torch.randint(2, tuple(shape), generator=generator, device=generator.device)
    return (2 * bits - 1).to(like)


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
