"""Initialization: named schemes, `looks_linear_`, LSUV, and `hessian_` by Hessian norms.

| question | file |
| --- | --- |
| Which schemes are there, and what variance do they give? | `schemes.py` (`apply`) |
| How are normal, uniform, orthogonal weights drawn? | `tensors.py` |
| Which layers are initialized? | `layers.py` |
| How does a ReLU network start as a linear one? | `looks_linear.py`, `mirrored.py` |
| How do layers get given Hessian norms? | `hessian.py`, `scaling.py` |
| Where do weights meet signals? Residual branches, last layers? | `forward_graph.py` |
| How are the layers' outputs brought to variance 1 (LSUV)? | `lsuv.py` |
"""

from hessinit_lib.init.hessian import ScalingReport, hessian_
from hessinit_lib.init.looks_linear import looks_linear_, scale_outputs_
from hessinit_lib.init.lsuv import lsuv_
from hessinit_lib.init.mirrored import mirrored_
from hessinit_lib.init.schemes import SCHEMES, apply
from hessinit_lib.init.tensors import normal_, orthogonal_, truncated_, uniform_

__all__ = [
    "SCHEMES",
    "ScalingReport",
    "apply",
    "hessian_",
    "looks_linear_",
    "lsuv_",
    "mirrored_",
    "normal_",
    "orthogonal_",
    "scale_outputs_",
    "truncated_",
    "uniform_",
]
