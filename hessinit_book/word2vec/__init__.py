"""Word2Vec: corpora, vocabulary, initial vectors, pairs, and training by gensim or by torch."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
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


def judged_set(name: str, data_dir: Path | None = None) -> Path | None:
    """Find a set of judged words: among gensim's test data, or else in a folder.

    Args:
        name: of the file, "wordsim353.tsv" say.
        data_dir: where it is looked for if gensim is not installed; None: in $HESSINIT_DATA.

    Returns:
        The file; None if it is not at hand.
    """
    gensim = find_spec("gensim")  # which is not loaded: its data are wanted
    folders = [Path(root, "test", "test_data") for root in _roots(gensim)]
    folders.append(data_dir or Path(os.environ.get("HESSINIT_DATA", "")))
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _roots(spec: ModuleSpec | None) -> list[str]:
    return list(spec.submodule_search_locations or []) if spec else []
