"""The images of an experiment, after a look at whether there are enough of them."""

from __future__ import annotations

from hessinit_book.data import ImageData, load
from hessinit_book.errors import ParameterError
from hessinit_book.parameters import Parameters


def load_images(parameters: Parameters, dataset: str, *sizes: str) -> ImageData:
    """Load the full data set for the profile "paper", or else the sample.

    Args:
        parameters: of the experiment.
        dataset: name of the data set, see `load`.
        sizes: names of parameters that count training images: a number, or several.

    Raises:
        DataError: the data set cannot be had.
        ParameterError: one of the sizes is larger than the training set.

    Example:
        >>> from hessinit_book.chapters import parameters_of
        >>> parameters = parameters_of("word_pair_saddle").check(batch_size=10_000)
        >>> load_images(parameters, "mnist", "batch_size")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        hessinit_book.errors.ParameterError: batch_size: got 10000, expected at most 2000, ...
    """
    data = load(dataset, sample=parameters.profile != "paper", data_dir=parameters.data_dir)
    most = data.info.train_size
    for name in sizes:
        value = getattr(parameters, name)
        size = max(value) if isinstance(value, tuple) else value
        if size > most:
            raise ParameterError(f"{name}: got {size}, expected at most {most}, the training set")
    return data
