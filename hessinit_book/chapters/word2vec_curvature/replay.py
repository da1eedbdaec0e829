"""gensim's own random numbers and tables once more, to check its steps pair by pair."""

from __future__ import annotations

from typing import Any

import numpy as np
from gensim.models import Word2Vec
from jaxtyping import Float64
from torch import Tensor

_CELLS, _BOUND = 1000, 6  # of gensim's table of the sigmoid


def replay(model: Word2Vec, sentence: list[str]) -> list[tuple[int, int, list[int]]]:
    """List the pairs that gensim will train on, if `sentence` is its next job.

    Args:
        model: skip-gram with negative sampling and without subsampling; its state is left.
        sentence: words of its vocabulary.

    Returns:
        Input word, output word and negatives of each pair, in gensim's order. A negative that
        is the output word itself is listed, and passed over by gensim.

    Source: `gensim/models/word2vec_inner.pyx`, `train_batch_sg`.
    """
    known: Any = model  # gensim's annotations say little of its attributes
    random = np.random.RandomState()
    random.set_state(known.random.get_state())
    state = 2**24 * int(random.randint(0, 2**24)) + int(random.randint(0, 2**24))
    words = [known.wv.key_to_index[word] for word in sentence]
    shrunk = random.randint(0, model.window, len(words))
    found = []
    for i, word in enumerate(words):
        reach = model.window - int(shrunk[i])
        for j in range(max(0, i - reach), min(len(words), i + reach + 1)):
            if j == i:
                continue
            negatives = []
            for _ in range(model.negative):
                drawn = (state >> 16) % int(known.cum_table[-1])
                negatives.append(int(np.searchsorted(known.cum_table, drawn)))
                state = (state * 25214903917 + 11) % 2**48
            found.append((words[j], word, negatives))
    return found


def table_sigmoid(scores: Float64[Tensor, "*s"]) -> Float64[Tensor, "*s"]:
    """Look the sigmoid up as gensim does: at the lower end of one of a thousand cells.

    Args:
        scores: within +-6.
    """
    cells = ((scores + _BOUND) * (_CELLS // _BOUND // 2)).floor()
    return ((2 * cells / _CELLS - 1) * _BOUND).sigmoid()
