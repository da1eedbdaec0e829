"""Theory of the layer Hessians at initialization: what the library measures, predicted.

| question | file |
| --- | --- |
| How does an activation scale a signal and its gradient? | `gains.py` |
| How does it change scalar products between samples? | `kernels.py` |
| Which Hessian norms does a random network have? (statement 6) | `propagation.py` |
| What describes a random network? | `random_network.py` |
| What are its kernels, layer by layer? | `forward.py` |
| What is the Hessian at its logits? | `output_hessians.py` |
| What does a finite width add? | `finite_width.py` |
| Which weight variance keeps the norms? (statement 7) | `critical.py` |
| What does a gradient step gain? (statement 8) | `steps.py` |
| Which scales give every layer a chosen norm? (statement 10) | `balancing.py` |
| Which activations have names, kinks, derivatives? | `activations.py` |
| How are Gaussian expectations computed? | `quadrature.py` |
"""

from hessinit_lib.theory.balancing import balancing_scales
from hessinit_lib.theory.critical import critical_variance
from hessinit_lib.theory.gains import Gains, gains
from hessinit_lib.theory.kernels import Kernels, kernel_maps
from hessinit_lib.theory.propagation import LayerPrediction, predict_layer_norms
from hessinit_lib.theory.random_network import Masks, RandomNetwork
from hessinit_lib.theory.steps import best_rate, predicted_gain

__all__ = [
    "Gains",
    "Kernels",
    "LayerPrediction",
    "Masks",
    "RandomNetwork",
    "balancing_scales",
    "best_rate",
    "critical_variance",
    "gains",
    "kernel_maps",
    "predict_layer_norms",
    "predicted_gain",
]
