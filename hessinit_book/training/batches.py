"""Which samples each training step takes."""

from __future__ import annotations

import math

import torch
from jaxtyping import Int64
from torch import Tensor


def batch_indices(
    size: int, batch_size: int, steps: int, shuffle: torch.Generator
) -> Int64[Tensor, "steps batch"]:
    """Draw the batches of all steps: epochs of fresh shuffles, no sample twice in a batch.

    Args:
        size: number of training samples.
        batch_size: samples a batch; at most `size`.
        steps: number of batches.
        shuffle: source of randomness.

    Raises:
        ValueError: batches larger than the data.

    Example:
        >>> batch_indices(10, 4, 3, torch.Generator()).shape
        torch.Size([3, 4])
    """
    if batch_size > size:
        raise ValueError(f"batch_size {batch_size}: expected at most {size}, the training samples")
    per_epoch = size // batch_size
    epochs = [
        torch.randperm(size, generator=shuffle)[: per_epoch * batch_size]
        for _ in range(math.ceil(steps / per_epoch))
    ]
    return torch.cat(epochs).view(-1, batch_size)[:steps]


def independent_batches(
    size: int, batch_size: int, steps: int, shuffle: torch.Generator
) -> Int64[Tensor, "steps b"]:
    """Draw the samples of each step, with replacement over steps, none twice in a step.

    Example:
        >>> independent_batches(10, 4, 3, torch.Generator()).shape
        torch.Size([3, 4])
    """
    return torch.stack([torch.randperm(size, generator=shuffle)[:batch_size] for _ in range(steps)])
