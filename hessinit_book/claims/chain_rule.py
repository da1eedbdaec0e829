"""Judges of the claim that the approximated chain rule is accurate, one for each measure of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hessinit_book.chapters.linearization_error.run import PIECEWISE_LINEAR, PLACES
from hessinit_book.chapters.linearization_error.trained import ACCURATE, ERRORS, MOMENTS
from hessinit_book.claims.findings import Finding, derived, verdict
from hessinit_book.records.records import Record, look_up

TITLES = {"start": "at the start", "trained": "after training"}
# The same in `modern_linearization`, which has no spectral norms.
MODERN = {"frobenius": "residual", "norm_ratio": "linearization"}


def piecewise_linear(found: Sequence[Record]) -> Finding:
    """Ask that nothing is left out, by formulas and by automatic differentiation."""
    checks = [record.values["checks"]["statement_05_exact"] for record in found]
    right = all(check["value"] <= check["allowed"] for check in checks)
    errors = [
        error
        for name in PIECEWISE_LINEAR
        for errors in _cells(found, [name], "frobenius").values()
        for error in errors
    ]
    worst = max(check["value"] for check in checks)
    return Finding(
        derived([right and error <= ACCURATE for error in errors]),
        f"residual over Hessian by automatic differentiation: at most {worst:.0e}; "
        f"in {len(errors)} layers, at the start and after training: at most {max(errors):.2g}",
    )


def matrix(found: Sequence[Record], modern: Sequence[Record]) -> Finding:
    """Judge the residual's Frobenius norm."""
    return _smooth(found, modern, "frobenius")


def spectral(found: Sequence[Record]) -> Finding:
    """Judge the residual's spectral norm."""
    return _smooth(found, [], "spectral")


def norm(found: Sequence[Record], modern: Sequence[Record]) -> Finding:
    """Judge the Frobenius norm that the rule gives for the Hessian's."""
    return _smooth(found, modern, "norm_ratio")


def _smooth(found: Sequence[Record], modern: Sequence[Record], quantity: str) -> Finding:
    names = [n for n in found[0].parameters["activations"] if n not in PIECEWISE_LINEAR]
    groups = {"fully connected": _cells(found, names, quantity)}
    if modern:
        groups["modern"] = _modern_cells(modern, quantity)
    texts = [
        f"{group}, {TITLES[moment]}: typically {np.median(errors):.2f}, at worst "
        f"{max(errors):.2f}, at best {min(errors):.2f}, within {ACCURATE:g} in "
        f"{sum(e <= ACCURATE for e in errors)} of {len(errors)}"
        for group, cells in groups.items()
        for moment, errors in cells.items()
    ]
    every = [e for cells in groups.values() for errors in cells.values() for e in errors]
    return Finding(verdict([e <= ACCURATE for e in every]), "; ".join(texts))


def _cells(
    found: Sequence[Record], activations: Sequence[str], quantity: str
) -> dict[str, list[float]]:
    """List errors, medians over seeds, of all activations, layers and settings, by moment."""
    assert quantity in ERRORS
    return {
        moment: [
            _error(float(value), quantity)
            for name in activations
            for place in PLACES
            for value in np.median(look_up(found, f"values.{moment}.{name}.{place}.{quantity}"), 0)
        ]
        for moment in MOMENTS
    }


def _modern_cells(modern: Sequence[Record], quantity: str) -> dict[str, list[float]]:
    """List errors of all layers but the heads, in which there is no residual."""
    cells: dict[str, list[float]] = {moment: [] for moment in MOMENTS}
    for network, first in modern[0].values["networks"].items():
        curved = [i for i, name in enumerate(first["names"]) if name != "head.weight"]
        for moment in MOMENTS:
            for size in first[moment]:
                key = f"values.networks.{network}.{moment}.{size}.{MODERN[quantity]}"
                values = np.median(look_up(modern, key), 0)[curved]
                cells[moment] += [_error(float(value), quantity) for value in values]
    return cells


def _error(value: float, quantity: str) -> float:
    """Give an error relative to the Hessian: of a residual, or of a ratio of norms."""
    return abs(value - 1) if quantity == "norm_ratio" else value
