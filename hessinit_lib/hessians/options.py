"""What is asked for in a computation of layer Hessians, checked before work starts."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

METHODS = ("auto", "exact", "estimate")
NORMS = ("frobenius", "spectral")
CURVATURES = ("hessian", "ggn")


def separated(chosen: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate the arguments of `layer_hessians` that choose parameters from its options.

    Example:
        >>> separated({"exclude": "0.*", "tolerance": 0.1})
        ({'exclude': '0.*'}, {'tolerance': 0.1})
    """
    names = {key: value for key, value in chosen.items() if key in ("layers", "exclude")}
    return names, {key: value for key, value in chosen.items() if key not in names}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `hessinit_lib.layer_hessians`, as all routes take them; see there.

    Raises:
        ValueError: a value that is not one of these; the message names it.

    Example:
        >>> Options(norms=("spectral",)).spectral
        True
    """

    method: str = "auto"
    norms: Collection[str] = NORMS
    parts: bool = True
    tolerance: float = 0.01
    generator: torch.Generator | None = None
    max_memory: int | None = None
    curvature: str = "hessian"
    budget: float | None = 200.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r}: expected one of {', '.join(METHODS)}")
        if self.curvature not in CURVATURES:
            raise ValueError(
                f"curvature={self.curvature!r}: expected one of {', '.join(CURVATURES)}"
            )
        limited = self.budget is not None
        if limited and not (isinstance(self.budget, int | float) and self.budget > 0):
            raise ValueError(f"budget={self.budget!r}: expected training steps above 0, or None")
        wrong = [norm for norm in self.norms if norm not in NORMS]
        if isinstance(self.norms, str) or wrong or not self.norms:
            raise ValueError(f"norms={self.norms!r}: expected some of {NORMS}, as a tuple")
        if not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise ValueError(f"tolerance={self.tolerance!r}: expected a positive number")
        if not isinstance(self.generator, torch.Generator | None):
            raise ValueError(
                f"generator={self.generator!r}: expected a torch.Generator, such as "
                "torch.Generator().manual_seed(0), or None"
            )
        if self.max_memory is not None and self.max_memory <= 0:
            raise ValueError(f"max_memory={self.max_memory!r}: expected a positive size [bytes]")

    @property
    def steps(self) -> float:
        """The budget, infinite if there is none."""
        return math.inf if self.budget is None else self.budget

    def stopped(self, excess: Iterable[float], instead: str = "") -> str:
        """Say that the budget ended the work, if it did: "" if all errors are within tolerance.

        Args:
            excess: of each norm, its standard error over what is allowed.
            instead: what would cost less.
        """
        found = list(excess)
        unknown = [value for value in found if value > 1]
        if not unknown or self.budget is None:
            return ""
        return (
            f"stopped at the budget of {self.budget:g} training steps: {len(unknown)} of "
            f"{len(found)} norms are not known to the tolerance, with standard errors up to "
            f"{max(unknown) * self.tolerance:.2g} of the norm{instead}"
        )

    @property
    def frobenius(self) -> bool:
        """Whether Frobenius norms are asked for."""
        return "frobenius" in self.norms

    @property
    def spectral(self) -> bool:
        """Whether spectral norms are asked for."""
        return "spectral" in self.norms
