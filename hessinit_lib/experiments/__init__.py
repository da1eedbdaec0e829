"""Experiments: each a file that reads from top to bottom, behind the notebook of its name."""

from __future__ import annotations

import importlib

from hessinit_lib.errors import ParameterError
from hessinit_lib.parameters import Parameters


def parameters_of(experiment: str) -> type[Parameters]:
    """Find the parameters of an experiment by its name.

    Raises:
        ParameterError: there is no such experiment.

    Example:
        >>> parameters_of("mnist_tracking").__name__
        'MnistTrackingParameters'
    """
    try:
        module = importlib.import_module(f"hessinit_lib.experiments.{experiment}")
    except ModuleNotFoundError as error:
        if error.name != f"hessinit_lib.experiments.{experiment}":
            raise
        raise ParameterError(
            f"experiment: got {experiment!r}, expected a file's name in hessinit_lib/experiments"
        ) from None
    for found in vars(module).values():
        if isinstance(found, type) and getattr(found, "EXPERIMENT", None) == experiment:
            return found
    raise ParameterError(f"experiment {experiment!r} declares no parameters")
