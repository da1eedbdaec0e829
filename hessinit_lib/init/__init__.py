"""Initialization: named schemes, the curvature-based `hessian_`, and its rivals.

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
| What do other papers do? LSUV, MetaInit, GradInit, Fixup | `rivals/` |
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
