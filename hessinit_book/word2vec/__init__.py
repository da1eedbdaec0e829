"""Word2Vec with gensim: corpora, vocabulary, initial vectors, pairs and training."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

from hessinit_lib.errors import UserError


def import_gensim() -> ModuleType:
    """Import gensim, or say how to get it.

    Raises:
        UserError: it is not installed; one line that names the extra, or the Python it needs.

    Example:
        >>> import_gensim().__name__
        'gensim'
    """
    try:
        return import_module("gensim")
    except ModuleNotFoundError as error:
        if error.name != "gensim":
            raise
        if sys.version_info >= (3, 14):
            here = f"{sys.version_info[0]}.{sys.version_info[1]}"
            how = f", which needs Python 3.10 to 3.13; this is Python {here}"
        else:
            how = ': pip install "hessinit_lib[notebooks]"'
        raise UserError(f"Word2Vec needs gensim{how}") from None
