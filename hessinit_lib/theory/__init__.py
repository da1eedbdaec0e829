"""Theory of the layer Hessians at initialization: gains, the critical variance, steps.

| question | file |
| --- | --- |
| How does an activation scale a signal and its gradient? | `gains.py` |
| Which weight variance keeps the norms? (statement 7) | `critical.py` |
| What does a gradient step gain? (statement 8) | `steps.py` |
| Which scales give every layer a chosen norm? (statement 10) | `balancing.py` |
| Which activations have names, kinks, derivatives? | `activations.py` |
| How are Gaussian expectations computed? | `quadrature.py` |
"""

from hessinit_lib.theory.balancing import balancing_scales
from hessinit_lib.theory.critical import critical_variance
from hessinit_lib.theory.gains import Gains, gains
from hessinit_lib.theory.steps import best_rate, predicted_gain

__all__ = [
    "Gains",
    "balancing_scales",
    "best_rate",
    "critical_variance",
    "gains",
    "predicted_gain",
]
