"""Chapters: each a folder behind the notebook of its name; `run.py` reads from top to bottom.

What several chapters use stands in the folders beside this one. No chapter imports another,
but for `fashion_depth`, which is `mnist_depth` on other data.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from hessinit_book.errors import ParameterError
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import shown


def parameters_of(experiment: str) -> type[Parameters]:
    """Find the parameters of an experiment by its name.

    Raises:
        ParameterError: there is no such experiment.

    Example:
        >>> parameters_of("mnist_tracking").__name__
        'MnistTrackingParameters'
    """
    known = sorted(path.parent.name for path in Path(__file__).parent.glob("*/run.py"))
    if experiment not in known:
        raise ParameterError(
            f"experiment: got {shown(experiment)}, expected one of {', '.join(known)}"
        )
    module = importlib.import_module(f"hessinit_book.chapters.{experiment}.run")
    for found in vars(module).values():
        if isinstance(found, type) and getattr(found, "EXPERIMENT", None) == experiment:
            return found
    raise ParameterError(f"experiment {experiment!r} declares no parameters")
