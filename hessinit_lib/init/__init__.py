"""Initialization: named schemes, the curvature-based `hessian_`, and LSUV.

| question | file |
| --- | --- |
| Which schemes are there, and what variance do they give? | `schemes.py` (`apply`) |
| How are normal, uniform, orthogonal weights drawn? | `tensors.py` |
| Which layers are initialized? | `layers.py` |
| How does a ReLU network start as a linear one? | `mirrored.py` |
| How does `hessian_` choose the scale of each layer? | `hessian.py` |
| How are given Hessian norms met? | `scaling.py` |
| Where do weights meet signals? Residual branches, last layers? | `forward_graph.py` |
| What comes back? | `report.py` |
| How are the layers' outputs brought to variance 1 (LSUV)? | `lsuv.py` |
"""

from hessinit_lib.init.hessian import hessian_
from hessinit_lib.init.lsuv import lsuv_
from hessinit_lib.init.mirrored import mirrored_
from hessinit_lib.init.report import ScalingReport
from hessinit_lib.init.schemes import SCHEMES, apply
from hessinit_lib.init.tensors import normal_, orthogonal_, truncated_, uniform_

__all__ = [
    "SCHEMES",
    "ScalingReport",
    "apply",
    "hessian_",
    "lsuv_",
    "mirrored_",
    "normal_",
    "orthogonal_",
    "truncated_",
    "uniform_",
]
