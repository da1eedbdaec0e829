"""Layer Hessians of the loss: their norms without matrices of parameter size.

What to call: `layer_hessians` in `layers` (what each argument means is said there), or
`model_hessian` for all weights together, `spectrum` for eigenvalues, and `HessianTracker` in
`tracker` during training (in `background`, a process of its own, if wanted). `options` is what
can be asked for, `report` what comes back.

`layer_hessians` takes the first of three routes that covers the model. In each folder
`hessians` is the entry:

- `chain/`, exact: fully connected networks, smooth activations included. `network` says which
  these are, `backward` is the recursion from the outputs to the layers.
- `graph/`, exact: models that are piecewise linear above their layers, of any shape.
  `conditions` says which these are, `capture` is the forward pass, `backward` what leads to
  the layers, `patches` and `gram` what is made of it there.
- `estimate/`, with standard errors: any model that can be differentiated twice, by `products`
  of its blocks with vectors.

With `curvature="ggn"` there is one more, for any model whose samples do not mix:

- `ggn/`, with standard errors, or exact: Gauss-Newton blocks, by `passes` back from random
  `vectors` at the `outputs`. `uses` finds where weights meet the samples, `gradients` what each
  sample has there, `spectral` bounds of spectral norms.

Blocks off the diagonal, of pairs of layers, are in `cross/`, by each of these ways (`cross_layer`).

In the exact routes `sketched` estimates Frobenius norms where that costs less.

What all routes use: `case` checks model, loss and batch, once. `functional` runs a model so
that nothing of it changes, `isolation` keeps what belongs to the caller, `noise` puts dropout and
the like aside, `derivatives` checks what is differentiated. `loss` is the loss at the outputs:
its gradient, products with its Hessian, factors of that (`cross_entropy`: of the usual one).
`numerics/` is linear algebra (`lanczos`, `quadrature`), standard errors (`estimates`), which
products may be rounded (`precision`), and memory (`workspace`).
"""

from hessinit_lib.hessians.cross.report import CrossReport
from hessinit_lib.hessians.cross_layer import cross_layer
from hessinit_lib.hessians.estimate.hessians import model_hessian
from hessinit_lib.hessians.layers import layer_hessians
from hessinit_lib.hessians.report import BlockNorms, HessianReport, LayerHessian
from hessinit_lib.hessians.spectrum import Spectrum, spectrum
from hessinit_lib.hessians.tracker import HessianTracker, log_schedule

__all__ = [
    "BlockNorms",
    "CrossReport",
    "HessianReport",
    "HessianTracker",
    "LayerHessian",
    "Spectrum",
    "cross_layer",
    "layer_hessians",
    "log_schedule",
    "model_hessian",
    "spectrum",
]
