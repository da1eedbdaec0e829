"""Memory that one call leaves to the next, and that waits to be used."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor

from hessinit_lib.hessians.numerics import workspace
from hessinit_lib.hessians.numerics.workspace import batches, kept_workspace

LIKE = torch.zeros(1)


def test_the_next_call_finds_the_memory_of_the_last() -> None:
    with kept_workspace(LIKE) as first:
        place = first.take("rows", (100,), torch.float32).data_ptr()
    with kept_workspace(LIKE) as second:
        assert second.take("rows", (50,), torch.float64).data_ptr() == place


def test_little_is_kept() -> None:
    with kept_workspace(LIKE) as lent:
        lent.take("large", (workspace._KEPT,), torch.uint8)
        small = lent.take("small", (8,), torch.uint8).data_ptr()
    with kept_workspace(LIKE) as lent:
        assert sum(map(len, lent._buffers.values())) <= workspace._KEPT
        assert lent.take("small", (8,), torch.uint8).data_ptr() == small


def test_two_calls_at_a_time_share_nothing() -> None:
    places = []

    def other() -> None:
        with kept_workspace(LIKE) as lent:
            places.append(lent.take("rows", (100,), torch.float32).data_ptr())

    with kept_workspace(LIKE) as lent:
        places.append(lent.take("rows", (100,), torch.float32).data_ptr())
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(set(places)) == 2


def test_what_was_lent_comes_back_after_an_error() -> None:
    try:
        with kept_workspace(LIKE) as lent:
            raise RuntimeError
    except RuntimeError:
        pass
    with kept_workspace(LIKE) as again:
        assert again is lent


def test_a_batch_is_freed_before_the_next_is_made() -> None:
    made: list[weakref.ref[Tensor]] = []

    def items() -> Iterator[Tensor]:
        for _ in range(3):
            assert not any(reference() is not None for reference in made)
            item = torch.zeros(4)
            made.append(weakref.ref(item))
            yield item
            del item

    for batch in batches(items(), lambda item: item.nbytes, limit=8):
        assert len(batch) == 1
    assert len(made) == 3
