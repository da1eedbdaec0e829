"""Tables as plain text, without pandas."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    r"""Align cells: the first column to the left, all others to the right.

    Args:
        rows: of the same length each, titles first.

    Returns:
        A line for each row.

    Example:
        >>> print("\n".join(text_table([("layer", "norm"), ("0.weight", "2")])))
        layer     norm
        0.weight     2
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
