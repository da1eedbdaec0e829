"""Layer Hessians of the loss: exact norms without matrices of parameter size.

`layers.py` is the entry. The parts, in the order of the computation: `network.py` (forward
pass), `losses.py` (curvature at the logits), `activations.py`, `backward.py` (the recursion
down the layers), `pair_sums.py` (Frobenius norms), `lanczos.py` (spectral norms),
`report.py` (what comes back), `tracker.py` (the same during training).
"""

from hessinit_lib.hessians.layers import layer_hessians
from hessinit_lib.hessians.report import BlockNorms, HessianReport, LayerHessian
from hessinit_lib.hessians.tracker import HessianTracker

__all__ = ["BlockNorms", "HessianReport", "HessianTracker", "LayerHessian", "layer_hessians"]
