"""Statement 7: the published rules for initial variances, beside what the theory gives."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from hessinit_lib.theory.activations import Activation
from hessinit_lib.theory.critical import critical_variance


class KnownRule(NamedTuple):
    """A rule as published, and the case of `critical_variance` that should give it.

    Attributes:
        title: for readers.
        formula: the published variance, in words.
        known: the published variance.
        found: the critical variance, by quadrature.
    """

    title: str
    formula: str
    known: float
    found: float

    @property
    def difference(self) -> float:
        """Relative difference of the two."""
        return abs(self.found / self.known - 1)


def known_rules(
    fan_in: int, fan_out: int, *, slope: float = 0.2, keep: float = 0.8
) -> dict[str, KnownRule]:
    """Compute the variances of the known rules in closed form, and by the theory.

    Args:
        fan_in: units that the layer reads.
        fan_out: units of the layer.
        slope: of leaky ReLU below zero.
        keep: probability that dropout keeps an input of the layer.

    Returns:
        The rules by short names.

    Raises:
        ValueError: a value out of range, see `critical_variance`.

    Source: LeCun and others (1998); Glorot and Bengio (2010); He and others, arXiv
        1502.01852; Klambauer and others, arXiv 1706.02515; dropout: derivation in the book.

    Example:
        >>> rules = known_rules(512, 256)
        >>> max(rule.difference for rule in rules.values()) < 1e-6
        True
    """

    def rule(
        title: str,
        formula: str,
        known: float,
        activation: Activation,
        mode: str,
        *,
        dropout: float = 0.0,
        rescale: bool = True,
    ) -> KnownRule:
        found = critical_variance(
            activation, fan_in, fan_out, mode, dropout=dropout, rescale=rescale
        )
        return KnownRule(title, formula, known, found)

    n, m, drop = fan_in, fan_out, 1 - keep
    leaky = nn.LeakyReLU(slope)
    one_plus = 1 + slope**2
    return {
        "lecun": rule("LeCun (tanh)", "1 / n_in", 1 / n, "tanh", "fan_in"),
        "lecun_out": rule("LeCun's backward twin", "1 / n_out", 1 / m, "tanh", "fan_out"),
        "glorot": rule("Glorot (tanh)", "2 / (n_in + n_out)", 2 / (n + m), "tanh", "fan_avg"),
        "he_in": rule("He, fan-in (ReLU)", "2 / n_in", 2 / n, "relu", "fan_in"),
        "he_out": rule("He, fan-out (ReLU)", "2 / n_out", 2 / m, "relu", "fan_out"),
        "leaky": rule(
            "leaky ReLU, slope a", "2 / ((1 + a²) n_in)", 2 / (one_plus * n), leaky, "fan_in"
        ),
        "dropout_linear": rule(
            "dropout, not rescaled (tanh)",
            "1 / (p n_in)",
            1 / (keep * n),
            "tanh",
            "fan_in",
            dropout=drop,
            rescale=False,
        ),
        "dropout_relu": rule(
            "dropout, not rescaled (ReLU)",
            "2 / (p n_in)",
            2 / (keep * n),
            "relu",
            "fan_in",
            dropout=drop,
            rescale=False,
        ),
        "dropout_rescaled": rule(
            "dropout, rescaled (ReLU)", "2 p / n_in", 2 * keep / n, "relu", "fan_in", dropout=drop
        ),
        "selu": rule("SELU at its fixed point", "1 / n_in", 1 / n, "selu", "fan_in"),
    }
