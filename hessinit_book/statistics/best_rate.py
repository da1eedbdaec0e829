"""What a start ends with at its best learning rate, from records of starts that were raced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hessinit_book.records.records import Record, look_up


def best_rate(records: Sequence[Record], network: str, start: str) -> int:
    """Give the index of the learning rate whose median final loss over seeds is lowest.

    Rates at which a run diverged count as the worst.
    """
    key = f"values.{network}.{start}"
    final = np.array(look_up(records, f"{key}.final"), dtype=float)
    lost = np.array(look_up(records, f"{key}.diverged"), dtype=bool)
    return int(np.median(np.where(lost, np.inf, final), 0).argmin())


def at_best_rate(records: Sequence[Record], network: str, start: str, what: str) -> np.ndarray:
    """Give "final", "steps" or "diverged" of each seed at the start's best rate."""
    rate = best_rate(records, network, start)
    values = look_up(records, f"values.{network}.{start}.{what}.{rate}")
    return np.array(values, dtype=float)


def median(values: np.ndarray) -> float:
    """Take the median over seeds, a run that is lost as the worst."""
    return float(np.median(np.where(np.isnan(values), np.inf, values)))
