"""What an initializer did to a model: plain numbers that print as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hessinit_lib.errors import needed
from hessinit_lib.tables import text_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ScalingReport:
    """What `hessian_` did.

    Attributes:
        rule: the target, in words.
        norm: the norm of the layers' Hessians that is shown: "frobenius", "spectral" or
            "trace" (of the Gauss-Newton part, estimated).
        before: norm of each layer's Hessian before scaling, with the weights that were drawn
            or kept.
        after: the same in the model as it is now.
        scales: the factor of each weight.
        iterations: how often the scales were changed.
        evaluations: how often Hessian norms were computed.
        passes: forward and backward passes of the whole batch, where they were counted: a
            training step takes two.

    Example:
        >>> print(ScalingReport("all 1", "frobenius", {"a": 4.0}, {"a": 1.0}, {"a": 0.5}))
        target: all 1; 0 iterations, 0 evaluations
        frobenius  before  after  scale
        a               4      1    0.5
    """

    rule: str
    norm: str
    before: dict[str, float]
    after: dict[str, float]
    scales: dict[str, float] = field(default_factory=dict)
    iterations: int = 0
    evaluations: int = 0
    passes: float = math.nan

    def to_frame(self) -> pd.DataFrame:
        """Make a pandas table, one row a layer: norms before and after, scale.

        Raises:
            ImportError: pandas is not installed (the package's extra `report`).
        """
        pd = needed("pandas", "report.to_frame()")
        columns = {"before": self.before, "after": self.after, "scale": self.scales}
        return pd.DataFrame(columns).rename_axis(self.norm, axis=1)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [(self.norm, "before", "after", "scale")]
        for name, before in self.before.items():
            numbers = before, self.after[name], self.scales[name]
            rows.append((name, *map("{:.4g}".format, numbers)))
        counts = f"{self.iterations} iterations, {self.evaluations} evaluations"
        return "\n".join([f"target: {self.rule}; {counts}", *text_table(rows)])
