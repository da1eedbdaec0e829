"""Chapters: each a folder behind the notebook of its name; `run.py` reads from top to bottom.

What several chapters use stands in the folders beside this one. No chapter imports another,
but for `fashion_depth`, which is `mnist_depth` on other data.
"""

from __future__ import annotations

import importlib

from hessinit_book.errors import ParameterError
from hessinit_book.parameters import Parameters


def parameters_of(experiment: str) -> type[Parameters]:
    """Find the parameters of an experiment by its name.

    Raises:
        ParameterError: there is no such experiment.

    Example:
        >>> parameters_of("mnist_tracking").__name__
        'MnistTrackingParameters'
    """
    chapter = f"hessinit_book.chapters.{experiment}"
    try:
        module = importlib.import_module(f"{chapter}.run")
    except ModuleNotFoundError as error:
        if error.name not in (chapter, f"{chapter}.run"):
            raise
        raise ParameterError(
            f"experiment: got {experiment!r}, expected a folder's name in hessinit_book/chapters"
        ) from None
    for found in vars(module).values():
        if isinstance(found, type) and getattr(found, "EXPERIMENT", None) == experiment:
            return found
    raise ParameterError(f"experiment {experiment!r} declares no parameters")
