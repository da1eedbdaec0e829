"""How Word2Vec is trained, whichever way: by gensim or by torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from hessinit_book.word2vec.corpora import Corpus

OnPiece = Callable[[int, Float[Tensor, "V d"], Float[Tensor, "V d"]], None]


@dataclass(frozen=True)
class Recipe:
    """How to train: skip-gram with negative sampling.

    Attributes:
        dimension: of the vectors.
        window: largest distance of a pair; each word draws one up to it.
        negatives: for each pair.
        sample: threshold of the subsampling of common words.
        learning_rate: at the start; it falls linearly to `last_rate`.
        epochs: passes over the text.
        pieces: parts into which the whole training is cut; after each one can look.
    """

    dimension: int
    window: int
    negatives: int
    sample: float
    learning_rate: float
    epochs: int
    pieces: int
    last_rate: float = 1e-4

    def tokens(self, corpus: Corpus) -> int:
        """Count the tokens of a piece; what is left over at the end is not used."""
        return len(corpus.train) * self.epochs // self.pieces
