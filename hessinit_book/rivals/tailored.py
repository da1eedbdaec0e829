r"""TAT: activations tailored such that a deep network is neither linear nor chaotic at first.

The weights are random and stay unremarkable; the activation $\phi$ is replaced by
$\hat\phi(x) = \gamma \, (\phi(\alpha x + \beta) + \delta)$, or a ReLU by a leaky one whose
slope for negative inputs is chosen. With x standard normal, in a chain of L activations:

- smooth: $E \hat\phi^2 = 1$, $E \, x \hat\phi \hat\phi' = 1$, $E \hat\phi'^2 = 1$,
  $E \hat\phi''^2 = \tau / L$: mean squares and correlations near 1 stay where they are, and the
  curvature of the map of correlations is $\tau$ for the whole network;
- leaky ReLU: two samples without correlation have the correlation $\eta$ at the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from scipy import optimize
from torch import Tensor, nn
from torch.nn import functional as F

from hessinit_lib.hessians.inputs import Inputs, tensors_of
from hessinit_lib.hessians.isolation import entry
from hessinit_lib.init.layers import restored_on_failure, weight_layers
from hessinit_lib.init.schemes import apply

TAU, ETA = 0.3, 0.9
"""The paper's constants."""

_STARTS = (0.3, 0.1, 0.6, 1.0)
_SHIFTS = (0.0, 0.5, 1.0, -0.5)
_SMOOTH = {nn.Tanh: torch.tanh, nn.GELU: F.gelu}


class Tailored(nn.Module):
    r"""The activation $\gamma \, (\phi(\alpha x + \beta) + \delta)$.

    Example:
        >>> round(Tailored(torch.tanh, 1.0, 0.0, 2.0, 0.5)(torch.tensor(0.0)).item(), 2)
        1.0
    """

    def __init__(
        self, activation: Callable[[Tensor], Tensor], scale: float, shift: float, gain: float,
        offset: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.activation, self.constants = activation, (scale, shift, gain, offset)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        scale, shift, gain, offset = self.constants
        return gain * (self.activation(scale * x + shift) + offset)


@cache
def negative_slope(depth: int, eta: float = ETA) -> float:
    r"""Give the slope of a leaky ReLU for which two samples at right angles end correlated by eta.

    The map of correlations of one layer is, for the slope a,
    $c + \frac{(1-a)^2}{\pi (1 + a^2)} (\sqrt{1 - c^2} - c \arccos c)$.

    Example:
        >>> negative_slope(10) == 0 < negative_slope(20) < negative_slope(50) < 1
        True
    """

    def correlation(a: float) -> float:
        c = 0.0
        for _ in range(depth):
            bend = math.sqrt(max(0.0, 1 - c * c)) - c * math.acos(min(c, 1.0))
            c = min(1.0, c + (1 - a) ** 2 / (math.pi * (1 + a * a)) * bend)
        return c

    if correlation(0.0) <= eta:  # so shallow that a ReLU itself does
        return 0.0
    return float(optimize.brentq(lambda a: correlation(a) - eta, 0.0, 1.0))  # pyright: ignore


@cache
def tailored_constants(
    activation: Callable[[Tensor], Tensor], depth: int, tau: float = TAU
) -> tuple[float, float, float, float]:
    """Solve the four conditions for a smooth activation.

    Returns:
        Scale and shift of the input; gain and offset of the output.

    Raises:
        ValueError: no solution was found.

    Example:
        >>> scale, shift, gain, offset = tailored_constants(torch.tanh, 30)
        >>> 0 < scale < 1 < gain
        True
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    x = torch.from_numpy(nodes)
    measure = torch.from_numpy(weights / weights.sum())

    def conditions(p: np.ndarray) -> list[float]:
        scale, shift, offset = p
        z = (scale * x + shift).requires_grad_()
        value = activation(z)
        (first,) = torch.autograd.grad(value.sum(), z, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), z)
        value, first = value.detach() + offset, first.detach()
        # The gain follows from the mean square.
        square = (measure * value.square()).sum()
        found = [
            (measure * x * value * first).sum() * scale / square - 1,
            (measure * first.square()).sum() * scale**2 / square - 1,
            (measure * second.square()).sum() * scale**4 / square * depth / tau - 1,
        ]
        return [float(each) for each in found]

    for scale in _STARTS:
        for shift in _SHIFTS:
            found = optimize.root(conditions, [scale, shift, 0.0], tol=1e-10)
            scaled = float(found.x[0])
            if found.success and scaled > 0 and max(map(abs, conditions(found.x))) < 1e-6:
                value = activation(x * scaled + float(found.x[1])) + float(found.x[2])
                gain = 1 / math.sqrt(float((measure * value.square()).sum()))
                return scaled, float(found.x[1]), gain, float(found.x[2])
    raise ValueError(f"depth {depth}: expected one for which the activation can be tailored")


@entry
def tailor_(
    model: nn.Sequential, inputs: Inputs, *, generator: torch.Generator | None = None
) -> None:
    """Tailor the activations of a chain and draw orthogonal weights, in place.

    Args:
        model: layers with ReLU, GELU or tanh between them, all of one kind.
        inputs: a batch: the first layer is scaled as if its mean square were 1.
        generator: source of randomness; the global one if None.

    Raises:
        ValueError: no activation that can be tailored.

    Source: Zhang, Botev and Martens, "Deep learning without shortcuts: shaping the kernel with
        tailored rectifiers", ICLR 2022, arXiv 2203.08120; for smooth activations Martens and
        others, "Rapid training of deep neural networks without skip connections or
        normalization layers using deep kernel shaping", arXiv 2110.01765.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> tailor_(model, torch.ones(2, 4), generator=torch.Generator().manual_seed(0))
        >>> model[1]
        LeakyReLU(negative_slope=0.0)
    """
    places = [i for i, module in enumerate(model) if type(module) in (nn.ReLU, *_SMOOTH)]
    kinds = {type(model[i]) for i in places}
    if len(kinds) != 1:
        raise ValueError(f"activations {sorted(k.__name__ for k in kinds)}: expected one kind")
    (kind,), depth = kinds, len(places)
    if kind is nn.ReLU:
        slope = negative_slope(depth)
        make, gain = partial(nn.LeakyReLU, slope), math.sqrt(2 / (1 + slope**2))
    else:
        constants = tailored_constants(_SMOOTH[kind], depth)
        make, gain = partial(Tailored, _SMOOTH[kind], *constants), 1.0
    with restored_on_failure(model, generator), torch.no_grad():
        apply(model, "orthogonal", gain=gain, generator=generator)
        layers, (x,) = weight_layers(model), tensors_of(inputs)
        for layer in layers:  # one that widens keeps mean squares, not norms
            layer.weight.mul_(math.sqrt(max(1.0, len(layer.weight) / layer.fans()[0])))
        # `apply` took the gain for the first layer, too: its inputs are no activations.
        layers[0].weight.div_(gain * x.float().square().mean().sqrt())
    for place in places:
        model[place] = make()
