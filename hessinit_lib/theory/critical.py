"""Statement 7: the weight variances that keep the Hessian norms from layer to layer."""

from __future__ import annotations

import math

from torch import nn

from hessinit_lib.theory.activations import Activation, activation_function
from hessinit_lib.theory.gains import gains

MODES = ("fan_in", "fan_out", "fan_avg")


def critical_variance(
    activation: Activation,
    fan_in: int,
    fan_out: int,
    mode: str = "fan_in",
    *,
    dropout: float = 0.0,
    rescale: bool = True,
    std: float | None = None,
) -> float:
    r"""Compute the variance $s^2$ of a layer's weights that keeps Hessian norms unchanged.

    By statement 6 the root-mean-square entry of a layer's Hessian,
    $\|H_k\|_F / (n_k n_{k-1})$, is the product of three factors: the mean square
    $E (z^{k-1}_i)^2$ of its inputs, that of its Jacobian's entries, and the output's
    curvature. For a layer that reads an activation with gains c and c' (behind dropout that
    keeps units with probability p: p c and p c', or c / p and c' / p if they are rescaled)

    - "fan_in" keeps the first, forward: $s^2 n_{in} c = 1$;
    - "fan_out" keeps the second, backward: $s^2 n_{out} c' = 1$;
    - "fan_avg" is the compromise $s^2 (n_{in} c + n_{out} c') / 2 = 1$.

    Where both hold, at equal widths and c = c', all layers have the same norm. Recovered:
    LeCun $1 / n_{in}$ and Glorot $2 / (n_{in} + n_{out})$ (slope 1 at 0), He $2 / n$ (ReLU),
    $2 / ((1 + a^2) n)$ (leaky ReLU), $1 / n_{in}$ (SELU at its fixed point). The first layer
    reads no activation. With the rule of the others, "fan_in" at c = c', all layers are balanced
    per input; with that of "linear" without dropout, all but the first.

    Args:
        activation: a name, a module or an elementwise function.
        fan_in: units that the layer reads, $n_{in}$.
        fan_out: units of the layer, $n_{out}$.
        mode: which of the above.
        dropout: probability that an input of the layer is dropped, 1 - p.
        rescale: whether kept inputs are divided by p, as PyTorch does.
        std: deviation of the pre-activations at which c and c' are taken; 0 for the limit of
            small ones. Default: 1 for SELU, whose fixed point it is, 0 for all others. Of
            no effect for ReLU and leaky ReLU.

    Returns:
        The variance $s^2$.

    Raises:
        ValueError: a value out of range, or an activation with $f(0) \ne 0$ forward at
            deviation 0, where c is infinite.

    Source: LeCun, Bottou, Orr, Mueller, "Efficient backprop" (1998); Glorot and Bengio,
        AISTATS 2010; He and others, arXiv 1502.01852; Klambauer and others, arXiv
        1706.02515 (SELU); Hendrycks and Gimpel, arXiv 1607.02488 (dropout); arXiv 2004.09506
        for the principle.

    Example:
        >>> round(critical_variance("relu", 512, 256) * 512, 9)
        2.0
        >>> round(critical_variance("tanh", 512, 256, "fan_avg") * (512 + 256), 9)
        2.0
        >>> round(critical_variance("tanh", 512, 256, dropout=0.2, rescale=False) * 512, 9)
        1.25
    """
    if fan_in < 1 or fan_out < 1:
        raise ValueError(f"fan_in {fan_in}, fan_out {fan_out}: expected 1 or more")
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}: expected one of {MODES}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout}: expected a probability below 1")
    f = activation_function(activation)
    if std is None:
        std = 1.0 if isinstance(f, nn.SELU) else 0.0
    found = gains(f, std=std)
    if math.isinf(found.c) and mode != "fan_out":
        raise ValueError(f"activation {activation!r} is not 0 at 0: expected std above 0")
    keep = 1 - dropout
    masked = 1 / keep if rescale else keep
    forward, backward = fan_in * found.c * masked, fan_out * found.c_prime * masked
    products = {"fan_in": forward, "fan_out": backward, "fan_avg": (forward + backward) / 2}
    return 1 / products[mode]
