"""Memory that is used again and again instead of being asked for anew."""

from __future__ import annotations

import math

from torch import Tensor


class Workspace:
    """Buffers by name, which grow to the largest size that was asked for.

    A large tensor that is freshly allocated costs about as much time, for its memory pages
    to be mapped, as a pass over it with a matrix product.

    Args:
        like: a tensor of the type and device of the buffers.

    Example:
        >>> import torch
        >>> workspace = Workspace(torch.zeros(1))
        >>> first = workspace.take("rows", 2, 3)
        >>> second = workspace.take("rows", 3, 2)
        >>> first.data_ptr() == second.data_ptr()
        True
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Give the buffer of that name in a shape, with any content.

        What was taken under the same name before is overwritten.
        """
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._like.new_empty(size)
            self._buffers[name] = buffer
        return buffer[:size].view(shape)
