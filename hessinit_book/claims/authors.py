"""Judges of the claims of the authors' notebook."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hessinit_book.claims.findings import Finding, over_seeds, verdict
from hessinit_book.records.records import Record, look_up


def linearization_dominates(found: Sequence[Record]) -> Finding:
    """Ask what the linearization leaves out, in the authors' network."""
    ratios = {
        "ReLU": look_up(found, "values.deviation.relu.first.frobenius.0"),
        "tanh": look_up(found, "values.authors_network.frobenius"),
        "tanh, spectral norm": look_up(found, "values.authors_network.spectral"),
    }
    texts = [f"{name}: {over_seeds(values)}" for name, values in ratios.items()]
    return Finding(
        verdict([float(np.median(values)) < 0.5 for values in ratios.values()]),
        "residual over Hessian, first layer; " + "; ".join(texts),
    )


def _ratio(found: Sequence[Record], start: str, key: str) -> list[float]:
    """Divide an initialization's figure by that of the deviation 0.01, seed by seed."""
    above = look_up(found, f"values.{start}.{key}")
    below = look_up(found, f"values.std_1e-2.{key}")
    return [a / b for a, b in zip(above, below, strict=True)]


_LAYER = "tracked.layers.layer_{}.{}.0"


def explodes(found: Sequence[Record]) -> Finding:
    """Compare the large first-layer deviation with the middle one."""
    start = "std_1e+0"
    first = _ratio(found, start, _LAYER.format(1, "frobenius"))
    last = _ratio(found, start, _LAYER.format(3, "frobenius"))
    spread = _ratio(found, start, "final_loss_spread")
    return Finding(
        verdict(
            [
                float(np.median(ratios)) > bound
                for ratios, bound in zip((first, last, spread), (10, 10, 2), strict=True)
            ]
        ),
        f"over the deviation 0.01: Hessian of layer 1 {over_seeds(first)}, of layer 3 "
        f"{over_seeds(last)}; scatter of the final loss {over_seeds(spread)}",
    )


def vanishes(found: Sequence[Record]) -> Finding:
    """Compare the tiny first-layer deviation with the middle one."""
    start = "std_1e-5"
    first = _ratio(found, start, _LAYER.format(1, "frobenius"))
    last = _ratio(found, start, _LAYER.format(3, "frobenius"))
    gradient = _ratio(found, start, _LAYER.format(3, "gradient"))
    loss = _ratio(found, start, "final_loss")
    small = [float(np.median(ratios)) < 0.1 for ratios in (first, last, gradient)]
    return Finding(
        verdict([*small, float(np.median(loss)) > 2]),
        f"over the deviation 0.01: Hessian of layer 1 {over_seeds(first)}, of layer 3 "
        f"{over_seeds(last)}; gradient of layer 3 {over_seeds(gradient)}; final loss "
        f"{over_seeds(loss)}",
    )
