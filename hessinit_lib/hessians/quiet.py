"""A model in training, looked at without its noise."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hessinit_lib.hessians.calling import FROZEN


@contextmanager
def without_noise(model: nn.Module) -> Iterator[None]:
    """Put all of a model but its batch normalization in evaluation mode, and back.

    At the start of training, running statistics say nothing yet: with them, a network
    with batch normalization is another one than that which is trained. So its batch
    statistics stay, and what `layer_hessians` warns of is known here.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
        >>> with without_noise(model):
        ...     [module.training for module in model]
        [True, False]
        >>> model[1].training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            if not isinstance(module, _BatchNorm):
                module.training = False
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=re.escape(FROZEN), category=UserWarning)
            yield
    finally:
        for module, training in modes:
            module.training = training
