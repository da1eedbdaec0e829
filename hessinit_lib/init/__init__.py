"""Initialization: named schemes, the curvature-led `hessian_`, and its rivals.

- Schemes: `apply` (`schemes.py`) for a model, with `tensors.py` and `mirrored.py` for one
  tensor and `layers.py` for what a layer is.
- By curvature: `hessian_` (`hessian.py`), with `trace.py` (how the layers hang together),
  `branches.py` (residual branches), `directions.py`, `scaling.py` (scales for given norms),
  `traces.py` (cheap norms) and `report.py`.
- Rivals from their papers: `lsuv.py`, `metainit.py`, `gradinit.py` (both with
  `descent.py`) and `fixup.py`.
"""

from hessinit_lib.init.hessian import hessian_
from hessinit_lib.init.mirrored import mirrored_
from hessinit_lib.init.report import ScalingReport
from hessinit_lib.init.rivals.fixup import fixup_
from hessinit_lib.init.rivals.gradinit import gradinit_
from hessinit_lib.init.rivals.lsuv import lsuv_
from hessinit_lib.init.rivals.metainit import gradient_quotient, metainit_
from hessinit_lib.init.schemes import SCHEMES, apply
from hessinit_lib.init.tensors import normal_, orthogonal_, truncated_, uniform_

__all__ = [
    "SCHEMES",
    "ScalingReport",
    "apply",
    "fixup_",
    "gradient_quotient",
    "gradinit_",
    "hessian_",
    "lsuv_",
    "metainit_",
    "mirrored_",
    "normal_",
    "orthogonal_",
    "truncated_",
    "uniform_",
]
