"""Mean, deviation, size and share of zeros of the entries of a tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Of the entries of a tensor: NaN where there is none.

    Attributes:
        mean: their mean.
        std: their standard deviation.
        rms: root of their mean square.
        norm: root of the sum of their squares.
        zeros: share that is zero.
    """

    mean: float = math.nan
    std: float = math.nan
    rms: float = math.nan
    norm: float = math.nan
    zeros: float = math.nan

    @classmethod
    def of(cls, values: Tensor | None) -> Moments:
        """Compute them, in double precision: squares of float32 numbers can overflow.

        Example:
            >>> import torch
            >>> Moments.of(torch.tensor([3.0, -4.0, 0.0, 0.0])).norm
            5.0
        """
        if values is None or values.numel() == 0:
            return cls()
        values = values.detach().double()
        mean = values.mean().item()
        square = values.square().mean().item()
        spread = math.sqrt(max(0.0, square - mean**2)) if math.isfinite(square) else math.nan
        zeros = (values == 0).double().mean().item()
        rms = math.sqrt(square) if square >= 0 else math.nan
        return cls(mean, spread, rms, rms * math.sqrt(values.numel()), zeros)
