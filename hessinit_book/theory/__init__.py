"""Theory of random networks, whose norms it predicts, and of random signs.

| question | file |
| --- | --- |
| Which Hessian norms does a random network have? (statement 6) | `propagation.py` |
| What describes a random network? | `random_network.py` |
| How does an activation change scalar products between samples? | `kernels.py` |
| What are a network's kernels, layer by layer? | `forward.py` |
| What is the Hessian at its logits? | `output_hessians.py` |
| What does a finite width add? | `finite_width.py` |
| How sure is a Gauss-Newton norm from two backward passes? | `two_passes.py` |
"""

from hessinit_book.theory.kernels import Kernels, kernel_maps
from hessinit_book.theory.propagation import LayerPrediction, predict_layer_norms
from hessinit_book.theory.random_network import Masks, RandomNetwork

__all__ = [
    "Kernels",
    "LayerPrediction",
    "Masks",
    "RandomNetwork",
    "kernel_maps",
    "predict_layer_norms",
]
