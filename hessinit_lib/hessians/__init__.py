"""Layer Hessians of the loss: their norms without matrices of parameter size.

`layers.py` is the entry; `options.py` is what can be asked for, `report.py` what comes back.
Three routes lead from one to the other:

- Fully connected networks, smooth activations included, exact: `chain.py`, with `network.py`
  (forward pass), `activations.py`, `backward.py` (the recursion down the layers),
  `block_norms.py` (the norms of a block), from `pair_sums.py` (Frobenius norms; `pairs.py`
  estimates them) and `spectral.py` (spectral norms); `memory.py` (pieces that fit in a bound).
- Any graph that is piecewise linear above its layers, exact: `graph.py`, with `capture.py`
  (forward pass with hooks), `exactness.py` (is the graph what it must be?),
  `independence.py` (do samples keep apart?), `passes.py` and `segments.py` (backward passes,
  stretch by stretch), `unfold.py` (layers as products of patches and factors), `gram.py`
  (norms; `mixtures.py` estimates them); layers with one position a sample by `block_norms.py`.
- Any model, estimated: `estimate.py`, with `products.py` (blocks times vectors over one
  graph), `subspace.py` (leading eigenvectors), `deflated.py` (the rest, by sampling),
  `uncertainty.py` (how sure).

The exact routes start from `losses.py` (curvature at the outputs; `output_hessian.py` for
any loss) and end in `lanczos.py` (spectral norms; `magnitude.py`: when squares are no numbers).
`calling.py` runs a model so that nothing of it changes, `precision.py` says which products may
be rounded and by which library they are made, `workspace.py` keeps memory for use again.

`spectrum.py` gives whole spectra (`gram_spectrum.py`, `quadrature.py`). `tracker.py` follows
norms in training (`schedule.py`: at which steps, `background.py`: meanwhile, `quiet.py`:
without dropout's noise).
"""

from hessinit_lib.hessians.estimate.hessians import model_hessian
from hessinit_lib.hessians.layers import layer_hessians
from hessinit_lib.hessians.report import BlockNorms, HessianReport, LayerHessian
from hessinit_lib.hessians.spectrum import Spectrum, spectrum
from hessinit_lib.hessians.tracker import HessianTracker, log_schedule

__all__ = [
    "BlockNorms",
    "HessianReport",
    "HessianTracker",
    "LayerHessian",
    "Spectrum",
    "layer_hessians",
    "log_schedule",
    "model_hessian",
    "spectrum",
]
