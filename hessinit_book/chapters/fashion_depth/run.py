"""The experiment `mnist_depth` on FashionMNIST: does what is found on digits hold on clothes?"""

from __future__ import annotations

from typing import ClassVar

from hessinit_book.chapters.mnist_depth.run import MnistDepthParameters, run
from hessinit_book.parameters.values import Percent

__all__ = ["FashionDepthParameters", "run"]


class FashionDepthParameters(MnistDepthParameters):
    """Parameters of the experiment: those of `mnist_depth`, without networks with dropout."""

    EXPERIMENT: ClassVar[str] = "fashion_depth"
    DATASET: ClassVar[str] = "fashion_mnist"
    IMAGES: ClassVar[tuple[str, ...]] = ("fashion_mnist",)
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {**MnistDepthParameters.BY_PROFILE["smoke"], "activations": ("relu",)},
        "quick": {
            **MnistDepthParameters.BY_PROFILE["quick"],
            "activations": ("relu", "tanh"),
        },
        "paper": {**MnistDepthParameters.BY_PROFILE["paper"], "depths": (2, 5, 10)},
    }

    drop_percent: tuple[Percent, ...] = ()
