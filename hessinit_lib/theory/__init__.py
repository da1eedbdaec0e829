"""Theory of the layer Hessians at initialization: what the library measures, predicted.

- Gains of activations (`gains.py`) and kernel maps (`kernels.py`), by Gaussian quadrature
  (`quadrature.py`, `functions.py`).
- Norm propagation, statement 6: `propagation.py`, with `networks.py` (the law of the
  weights), `forward.py` (kernels), `output.py` (curvature at the logits) and
  `finite_width.py` (corrections of order depth / width).
- What follows: `critical.py` (variances that keep the norms), `known_rules.py` (published ones
  beside them), `steps.py` and `step_curvature.py` (what a gradient step gains),
  `balancing.py` (scales that give every layer a chosen norm).
- Word pairs, statement 11: `word_pairs.py`.
- References for small networks, statements 1 to 5: `draws.py` (random networks), `dense.py`
  (Hessians as matrices), `residual.py` (what the approximated chain rule leaves out).
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
