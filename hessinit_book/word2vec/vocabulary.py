"""The vocabulary of a corpus as word2vec counts it, with its two laws of sampling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from hessinit_book.errors import DataError
from hessinit_book.word2vec.corpora import Corpus


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The words that are common enough, the most common first.

    Attributes:
        words: shape (V,).
        counts: how often each occurs in the training text, shape (V,).
        ranks: place in `words` of each word of the corpus, -1 if it is too rare.
    """

    words: list[str]
    counts: Int64[ndarray, " V"]
    ranks: Int64[ndarray, " words"]

    @classmethod
    def of(cls, corpus: Corpus, min_count: int) -> Vocabulary:
        """Count the training text.

        Args:
            corpus: the text.
            min_count: rarer words are dropped before windows are laid, as gensim does.

        Raises:
            DataError: no two words are that common.
        """
        counts = np.bincount(corpus.train, minlength=len(corpus.words))
        order = np.argsort(-counts, kind="stable")
        order = order[counts[order] >= min_count]
        if len(order) < 2:
            raise DataError(f"corpus {corpus.info.name}: no two words occur {min_count} times")
        ranks = np.full(len(corpus.words), -1)
        ranks[order] = np.arange(len(order))
        return cls([corpus.words[i] for i in order], counts[order], ranks)

    @cached_property
    def places(self) -> dict[str, int]:
        """Place of each word, the most common at 0."""
        return {word: place for place, word in enumerate(self.words)}

    @cached_property
    def noise(self) -> Float64[ndarray, " V"]:
        """Law of the negative samples: counts to the power 3/4, shape (V,)."""
        powers = self.counts**0.75
        return powers / powers.sum()

    def keep(self, sample: float) -> Float64[ndarray, " V"]:
        r"""Compute the probability with which a token survives the subsampling, shape (V,).

        $\min(1, (\sqrt{f/t} + 1) \, t/f)$ for a word of the share f and the threshold t.

        Args:
            sample: the threshold t; 0: all are kept.

        Source: word2vec.c and gensim; arXiv 1310.4546 gives another formula.
        """
        if sample == 0:
            return np.ones(len(self.counts))
        excess = self.counts / (sample * self.counts.sum())
        return np.minimum(1, (np.sqrt(excess) + 1) / excess)
