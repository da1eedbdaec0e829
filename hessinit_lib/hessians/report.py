"""What a computation of layer Hessians gives back: plain numbers, in the model's order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hessinit_lib.errors import needed
from hessinit_lib.tables import text_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class BlockNorms:
    r"""Three numbers that sum up a symmetric matrix $M$.

    Attributes:
        frobenius: $\|M\|_F = (\sum_{ij} M_{ij}^2)^{1/2}$.
        spectral: $\|M\|_2 = \max_i |\lambda_i(M)|$.
        trace: $\operatorname{tr} M = \sum_i \lambda_i(M)$.
        stderr: standard error of the Frobenius norm, 0 where no sampling was used. For few
            samples it is widened: plus and minus 1.96 of it is a 95 % interval at least.
        trace_stderr: the same of the trace.
        spectral_stderr: standard error of a spectral norm that is a lower bound.
        spectral_gap: from that to an upper bound, on average; 0 where the norm itself is known.
    """

    frobenius: float
    spectral: float
    trace: float
    stderr: float = 0.0
    trace_stderr: float = 0.0
    spectral_stderr: float = 0.0
    spectral_gap: float = 0.0


ZERO = BlockNorms(0.0, 0.0, 0.0)
"""Norms of a zero matrix."""

NOT_FINITE = BlockNorms(math.nan, math.nan, math.nan)
"""Norms where the network's outputs are not finite, or that are not asked for."""


@dataclass(frozen=True)
class LayerHessian:
    r"""The diagonal block $H_k = D^2_{W^k} L$ of the loss Hessian, by its norms.

    $H_k = G_k + R_k$: the linearization (the generalized Gauss-Newton block, what the
    approximated chain rule keeps) and the residual (what it drops: the curvature of the
    layers above).

    Attributes:
        name: the parameter, as in `model.named_parameters()`.
        shape: its shape, (fan_out, fan_in).
        frobenius: Frobenius norm of $H_k$.
        spectral: spectral norm of $H_k$, the largest eigenvalue in absolute value.
        trace: trace of $H_k$.
        linearization: the same of $G_k$.
        residual: the same of $R_k$.
        exact: True where no sampling was used.
        stderr: standard error of the Frobenius norm, see `BlockNorms`.
        trace_stderr: standard error of the trace.
        products: products of the block with a vector that were computed; 0 where the norms
            come from factors.
        spectral_stderr: see `BlockNorms`.
        spectral_gap: see `BlockNorms`.
        curvature: "hessian"; or "ggn" where all of these are norms of $G_k$.
    """

    name: str
    shape: tuple[int, ...]
    frobenius: float
    spectral: float
    trace: float
    linearization: BlockNorms
    residual: BlockNorms
    exact: bool
    stderr: float = 0.0
    trace_stderr: float = 0.0
    products: int = 0
    spectral_stderr: float = 0.0
    spectral_gap: float = 0.0
    curvature: str = "hessian"

    @classmethod
    def from_parts(
        cls,
        name: str,
        shape: tuple[int, ...],
        total: BlockNorms,
        linearization: BlockNorms,
        residual: BlockNorms,
        *,
        exact: bool,
        products: int = 0,
        curvature: str = "hessian",
    ) -> LayerHessian:
        """Put together the norms of the block and of its two parts."""
        return cls(
            name,
            shape,
            total.frobenius,
            total.spectral,
            total.trace,
            linearization,
            residual,
            exact,
            total.stderr,
            total.trace_stderr,
            products,
            total.spectral_stderr,
            total.spectral_gap,
            curvature,
        )

    @property
    def residual_ratio(self) -> float:
        r"""$\|R_k\|_F / \|H_k\|_F$: what the approximated chain rule leaves out.

        It can be large although $\|G_k\|_F$ and $\|H_k\|_F$ are close, so compare this
        and not the two norms. 0 for a zero Hessian with a zero residual.
        """
        if self.residual.frobenius == 0:
            return 0.0
        return self.residual.frobenius / self.frobenius if self.frobenius else float("inf")


class HessianReport(Mapping[str, LayerHessian]):
    """Layer Hessians by parameter name, in the order of the model.

    Args:
        layers: what the mapping holds.
        why_estimated: what kept the norms from being computed exactly.
        not_finite: what made norms NaN.
        along: the curvature along directions that were given, by parameter name.

    Example:
        >>> zero = BlockNorms(0.0, 0.0, 0.0)
        >>> one = BlockNorms(2.0, 1.5, 3.0)
        >>> layer = LayerHessian("0.weight", (3, 2), 2.0, 1.5, 3.0, one, zero, exact=True)
        >>> report = HessianReport([layer])
        >>> list(report), report["0.weight"].frobenius
        (['0.weight'], 2.0)
    """

    def __init__(
        self,
        layers: list[LayerHessian],
        why_estimated: str = "",
        not_finite: str = "",
        along: Mapping[str, float] | None = None,
    ) -> None:
        self._layers = {layer.name: layer for layer in layers}
        self.why_estimated = why_estimated
        self.not_finite = not_finite
        self.along = along or {}

    @property
    def curvature(self) -> str:
        """Which matrix the norms are of, "hessian" or "ggn"."""
        return next((layer.curvature for layer in self.values()), "hessian")

    def __getitem__(self, name: str) -> LayerHessian:
        if name not in self._layers:
            raise KeyError(f"{name!r}: expected one of {', '.join(self._layers)}")
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def to_frame(self) -> pd.DataFrame:
        """Make a pandas table, one row a layer, indexed by parameter name.

        Returns:
            Columns: fan_out, fan_in, frobenius, spectral, trace, the same three with the
            prefixes `linearization_` and `residual_`, residual_ratio, exact, stderr,
            products, curvature.

        Raises:
            ImportError: pandas is not installed (the package's extra `report`).
        """
        pd = needed("pandas", "report.to_frame()")
        rows = []
        for layer in self.values():
            row: dict[str, object] = {
                "parameter": layer.name,
                "fan_out": layer.shape[0],
                "fan_in": math.prod(layer.shape[1:]),
            }
            parts = {"": layer, "linearization_": layer.linearization, "residual_": layer.residual}
            for prefix, part in parts.items():
                row[f"{prefix}frobenius"] = part.frobenius
                row[f"{prefix}spectral"] = part.spectral
                row[f"{prefix}trace"] = part.trace
            row["residual_ratio"] = layer.residual_ratio
            row["exact"] = layer.exact
            row["stderr"] = layer.stderr
            row["products"] = layer.products
            row["curvature"] = layer.curvature
            rows.append(row)
        return pd.DataFrame(rows).set_index("parameter")

    def __repr__(self) -> str:
        columns = ["frobenius", "spectral", "trace", "residual_ratio"]
        what = f"{len(self)} layers"
        if self.curvature == "ggn":
            columns.pop()
            what += ', Gauss-Newton blocks (curvature="ggn")'
        if any(layer.spectral_gap for layer in self.values()):
            columns.insert(2, "spectral_gap")
            what += ": spectral: a lower bound, and the gap to an upper one"
        if not all(layer.exact for layer in self.values()):
            columns.insert(1, "stderr")
        rows = [
            (layer.name, *(f"{getattr(layer, column):.4g}" for column in columns))
            for layer in self.values()
        ]
        table = text_table([("parameter", *columns), *rows])
        lines = [f"HessianReport of {what}", *table]
        if self.why_estimated:
            lines.append(f"estimated: {self.why_estimated}")
        if self.not_finite:
            lines.append(f"not finite: {self.not_finite}")
        return "\n".join(lines)
