"""hessinit_lib: layer-Hessian norms for initializing and tracking neural networks.

The names at the top, `layer_hessians` and its kin, are imported when first used: reading
records or checking parameters must not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hessinit_lib.hessians import HessianTracker, layer_hessians, model_hessian, spectrum

__all__ = ["HessianTracker", "layer_hessians", "model_hessian", "spectrum"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hessinit_lib import hessians

    return getattr(hessians, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
