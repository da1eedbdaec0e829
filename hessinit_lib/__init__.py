"""hessinit_lib: layer-Hessian norms for initializing and tracking neural networks.

Its names are imported when first used, so that `import hessinit_lib` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hessinit_lib import init
    from hessinit_lib.diagnosis import diagnose
    from hessinit_lib.hessians import (
        HessianTracker,
        cross_layer,
        layer_hessians,
        model_hessian,
        spectrum,
    )

    __version__: str

__all__ = [
    "HessianTracker",
    "cross_layer",
    "diagnose",
    "init",
    "layer_hessians",
    "model_hessian",
    "spectrum",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        try:
            return metadata.version("hessinit_lib")
        except metadata.PackageNotFoundError:  # run from its folder, not installed
            return "0+unknown"
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "init":
        return import_module("hessinit_lib.init")
    home = "diagnosis" if name == "diagnose" else "hessians"
    return getattr(import_module(f"hessinit_lib.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
