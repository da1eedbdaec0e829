"""What `cross_layer` finds: plain numbers that print as a table and draw themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from hessinit_lib.errors import needed
from hessinit_lib.tables import text_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_MOST_NAMES = 30  # on an axis; more run into each other


@dataclass(frozen=True, eq=False)
class CrossReport:
    r"""Norms of the blocks $H_{jk}$ of the Hessian for all pairs of L layers.

    Attributes:
        names: of the parameters, in model order.
        frobenius: $\|H_{jk}\|_F$, shape (L, L), float64; of G where `curvature` is "ggn".
        linearization: $\|G_{jk}\|_F$.
        residual: $\|R_{jk}\|_F$; NaN if the linearization alone was asked for.
        stderr: standard errors of `frobenius`; 0 where it is exact.
        exact: whether all norms are.
        note: what kept them from being exact, and what else to know.
        curvature: which matrix `frobenius` is of, "hessian" or "ggn".
    """

    names: tuple[str, ...]
    frobenius: Float[Tensor, "l l"]
    linearization: Float[Tensor, "l l"]
    residual: Float[Tensor, "l l"]
    stderr: Float[Tensor, "l l"]
    exact: bool
    note: str = ""
    curvature: str = "hessian"

    @property
    def coupling(self) -> Float[Tensor, "l l"]:
        r"""Give $\|H_{jk}\|_F / (\|H_{jj}\|_F \|H_{kk}\|_F)^{1/2}$, at most 1 for "ggn"; L x L."""
        own = self.frobenius.diagonal().sqrt()
        return self.frobenius / own / own[:, None]

    def to_frame(self, norms: str = "frobenius") -> pd.DataFrame:
        """Make a pandas table of one of the matrices, rows and columns by parameter name.

        Args:
            norms: "frobenius", "linearization", "residual", "stderr" or "coupling".

        Raises:
            ImportError: pandas is not installed (the package's extra `report`).
        """
        pd = needed("pandas", "report.to_frame()")
        known = ("frobenius", "linearization", "residual", "stderr", "coupling")
        if norms not in known:
            raise ValueError(f"norms={norms!r}: expected one of {', '.join(known)}")
        return pd.DataFrame(getattr(self, norms).numpy(), self.names, self.names)

    def plot(self) -> Figure:
        """Draw which layers interact: the coupling of all pairs, rows and columns by layer.

        Raises:
            ImportError: matplotlib is not installed (the package's extra `report`).
        """
        plt = needed("matplotlib.pyplot", "report.plot()")
        count = len(self.names)
        with plt.rc_context({"figure.constrained_layout.use": True, "font.size": 10}):
            side = min(7.0, 3.0 + 0.16 * count)
            figure, ax = plt.subplots(figsize=(side + 1, side))
            image = ax.imshow(self.coupling.numpy(), cmap="viridis", vmin=0)
            places = range(0, count, -(-count // _MOST_NAMES))
            names = [self.names[place] for place in places]
            ax.set_xticks(places, names, rotation=90, fontsize=8)
            ax.set_yticks(places, names, fontsize=8)
            kind = "H" if self.curvature == "hessian" else "G"
            ax.set_title("Which layers interact")
            label = rf"$\|{kind}_{{jk}}\| \; / \; (\|{kind}_{{jj}}\| \|{kind}_{{kk}}\|)^{{1/2}}$"
            figure.colorbar(image, label=label, shrink=0.8)
            plt.close(figure)  # else a notebook would show it a second time
        return figure

    def __str__(self) -> str:
        kind = "Hessian" if self.curvature == "hessian" else "Gauss-Newton matrix"
        sure = "exact" if self.exact else "estimated"
        rows = [("layer", *map(str, range(len(self.names))))]
        rows += [
            (f"{place} {name}", *map("{:.4g}".format, norms))
            for place, (name, norms) in enumerate(
                zip(self.names, self.frobenius.tolist(), strict=True)
            )
        ]
        head = f"Frobenius norms of the blocks of the {kind}, {sure}"
        return "\n".join([head, *text_table(rows), *[self.note] * bool(self.note)])
