"""Random streams that are named, independent, and never global."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Make the random generator of one purpose in one run.

    Streams of different purposes are independent, so that drawing more numbers for one
    (say, batches) leaves the others (say, initial weights) as they are.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for.
        device: where the numbers are drawn.

    Example:
        >>> a, b = generator(0, "weights"), generator(0, "weights")
        >>> bool((torch.rand(3, generator=a) == torch.rand(3, generator=b)).all())
        True
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
