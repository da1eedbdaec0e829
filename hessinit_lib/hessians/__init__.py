"""Layer Hessians of the loss: exact norms without matrices of parameter size.

`layers.py` is the entry, with two exact routes; `options.py` is what can be asked for. Both
routes start from `losses.py` (curvature at the logits) and end in `lanczos.py` (spectral
norms) and `report.py` (what comes back).

- Fully connected networks, smooth activations included: `chain.py`, with `network.py`
  (forward pass), `activations.py`, `backward.py` (the recursion down the layers),
  `pair_sums.py` (Frobenius norms).
- Any graph that is piecewise linear above its layers: `graph.py`, with `capture.py` (forward
  pass with hooks), `exactness.py` (is the graph what it must be?), `unfold.py` (layers as
  products of patches and factors), `gram.py` (norms).

`tracker.py` follows the norms during training.
"""

from hessinit_lib.hessians.layers import layer_hessians
from hessinit_lib.hessians.report import BlockNorms, HessianReport, LayerHessian
from hessinit_lib.hessians.tracker import HessianTracker

__all__ = ["BlockNorms", "HessianReport", "HessianTracker", "LayerHessian", "layer_hessians"]
