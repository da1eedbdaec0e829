"""Memory: buffers that are used again, and how much is held at a time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

# Entries of tensors that are made in pieces: as many as stay near the cores.
PIECE = 1 << 21

# On a GPU, which waits for each launch, as many as leave room for what else is there.
_GPU_PIECE = 1 << 27

# A bound on the memory leaves one part in so many for what waits in `batches`; without a
# bound these bytes may wait.
WAITING_SHARE = 8
_WAITING, _GPU_WAITING = 1 << 27, 1 << 31

# Bytes of buffers that outlive a call, for the next one.
_KEPT = 1 << 26

_T = TypeVar("_T")


def piece_entries(like: Tensor, on_cpu: int = PIECE) -> int:
    """Give how many entries to make at a time of a tensor on the device of another.

    Example:
        >>> piece_entries(torch.zeros(1)) == PIECE
        True
    """
    return on_cpu if like.device.type == "cpu" else _GPU_PIECE


def waiting_room(like: Tensor, spectral: bool) -> int:
    """Give the bytes that may wait: on a CPU, where only spectral norms gain, none without."""
    if like.device.type == "cpu":
        return _WAITING if spectral else 0
    return _GPU_WAITING


class Workspace:
    """Buffers by name, on the device of `like`, which grow to the largest size asked for.

    A large tensor that is freshly allocated costs more time, for its memory pages to be
    mapped, than a pass over it with a matrix product.

    Example:
        >>> import torch
        >>> workspace = Workspace(torch.zeros(1))
        >>> first = workspace.take("rows", (2, 3), torch.float32)
        >>> second = workspace.take("rows", (3, 4), torch.bfloat16)
        >>> first.data_ptr() == second.data_ptr()
        True
    """

    def __init__(self, like: Tensor) -> None:
        self._device = like.device
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Give the buffer of that name in a shape, with any content.

        What was taken under the same name before is overwritten.
        """
        size = math.prod(shape) * dtype.itemsize
        if name not in self._buffers or len(self._buffers[name]) < size:
            self._buffers.pop(name, None)  # freed before the larger one is made
            self._buffers[name] = torch.empty(size, dtype=torch.uint8, device=self._device)
        return self._buffers[name][:size].view(dtype).view(*shape)

    def shrink(self, size: int) -> None:
        """Free buffers, the largest first, until at most so many bytes are left."""
        left = sum(map(len, self._buffers.values()))
        for name in sorted(self._buffers, key=lambda name: -len(self._buffers[name])):
            if left > size:
                left -= len(self._buffers.pop(name))


_pool: dict[torch.device, Workspace] = {}


@contextlib.contextmanager
def kept_workspace(like: Tensor) -> Iterator[Workspace]:
    """Lend the workspace of the last call, and keep up to 64 MiB of it for the next one.

    Who calls again and again, as a tracker does, does not pay for the memory each time. On a
    GPU, where torch itself does so, and for a second thread the workspace is a new one.
    """
    device = like.device
    workspace = _pool.pop(device, None) or Workspace(like)
    try:
        yield workspace
    finally:
        if device.type == "cpu":
            workspace.shrink(_KEPT)
            _pool[device] = workspace


def batches(
    items: Iterable[_T], size: Callable[[_T], float], limit: int | None, room: int = _WAITING
) -> Iterator[list[_T]]:
    """Gather items that are finished faster together; what is yielded is freed before the next.

    Args:
        items: made one after the other, as they are asked for.
        size: bytes that an item holds; infinity for one that may not wait.
        limit: `max_memory`, of which an eighth is for this; `room` if None.
        room: bytes that may wait without a limit.

    Example:
        >>> [list(batch) for batch in batches([1, 2, 3, 1], lambda size: size, limit=8 * 2)]
        [[1, 2], [3], [1]]
    """
    room = room if limit is None else min(room, limit // WAITING_SHARE)
    waiting: list[_T] = []
    held = 0.0
    for item in items:
        waiting.append(item)
        held += size(item)
        del item  # nothing may outlive its batch
        if held > room:
            yield waiting
            waiting.clear()
            held = 0.0
    if waiting:
        yield waiting
