"""Memory that is used again and again instead of being asked for anew."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Workspace:
    """Buffers by name, which grow to the largest size that was asked for.

    A large tensor that is freshly allocated costs about as much time, for its memory pages
    to be mapped, as a pass over it with a matrix product.

    Args:
        like: a tensor on the device of the buffers.

    Example:
        >>> import torch
        >>> workspace = Workspace(torch.zeros(1))
        >>> first = workspace.take("rows", (2, 3), torch.float32)
        >>> second = workspace.take("rows", (3, 4), torch.bfloat16)
        >>> first.data_ptr() == second.data_ptr()
        True
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Give the buffer of that name in a shape, with any content.

        What was taken under the same name before is overwritten.
        """
        size = math.prod(shape) * dtype.itemsize
        if name not in self._buffers or len(self._buffers[name]) < size:
            self._buffers.pop(name, None)  # freed before the larger one is made
            self._buffers[name] = self._like.new_empty(size, dtype=torch.uint8)
        return self._buffers[name][:size].view(dtype).view(*shape)
