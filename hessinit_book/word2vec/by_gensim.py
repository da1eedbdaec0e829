"""gensim trains, from vectors that we set, and hands them over at checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from gensim.models import Word2Vec
from gensim.models.callbacks import CallbackAny2Vec
from jaxtyping import Int32
from numpy import ndarray

from hessinit_book.word2vec.corpora import Corpus
from hessinit_book.word2vec.initial_vectors import Start
from hessinit_book.word2vec.recipe import OnPiece, Recipe
from hessinit_book.word2vec.vocabulary import Vocabulary

SENTENCE = 1000  # tokens; gensim lays no window across the end of a sentence


def train(
    corpus: Corpus,
    vocabulary: Vocabulary,
    recipe: Recipe,
    start: Start,
    seed: int,
    on_piece: OnPiece,
) -> None:
    """Train with gensim, one worker: the same arguments give the same bits.

    The seed fixes windows, subsampling and negatives alike for all initializations. gensim counts
    the pieces as its epochs, so that its own learning rate falls over all of them.

    Args:
        corpus: the text.
        vocabulary: of the corpus.
        recipe: how to train.
        start: the vectors to begin with.
        seed: of the run.
        on_piece: called before the first piece and after each, with the number of pieces done,
            input vectors and output vectors, shape (V, d) each. They are gensim's own memory:
            look, or copy.
    """
    model = Word2Vec(
        vector_size=recipe.dimension,
        window=recipe.window,
        sg=1,
        negative=recipe.negatives,
        sample=recipe.sample,
        alpha=recipe.learning_rate,
        min_alpha=recipe.last_rate,
        min_count=1,  # the vocabulary has only words that are common enough
        workers=1,
        seed=seed,
    )
    # gensim sorts by count, the later of two like counts first: reversed, the order stays ours.
    counts = dict(zip(vocabulary.words, vocabulary.counts.tolist(), strict=True))
    model.build_vocab_from_freq(dict(reversed(counts.items())))
    drawn = start.draw(len(vocabulary.words), recipe.dimension, seed)
    if drawn is not None:
        model.wv.vectors[:], model.syn1neg[:] = drawn[0].numpy(), drawn[1].numpy()

    def look(done: int) -> None:
        on_piece(done, torch.from_numpy(model.wv.vectors), torch.from_numpy(model.syn1neg))

    look(0)
    pieces = _Pieces(corpus, recipe)
    model.train(
        pieces,
        total_words=recipe.tokens(corpus),
        epochs=recipe.pieces,
        callbacks=[_AfterEachEpoch(look)],
    )


class _Pieces:
    """The text, a piece each time it is iterated over, again from its beginning at its end."""

    def __init__(self, corpus: Corpus, recipe: Recipe) -> None:
        self._words, self._text = corpus.words, corpus.train
        self._size, self._done = recipe.tokens(corpus), 0

    def __iter__(self) -> Iterator[list[str]]:
        begin = self._done * self._size
        self._done += 1
        for at in range(begin, begin + self._size, SENTENCE):
            yield self._sentence(at, min(at + SENTENCE, begin + self._size))

    def _sentence(self, begin: int, end: int) -> list[str]:
        ids: Int32[ndarray, " n"] = self._text.take(np.arange(begin, end), mode="wrap")
        return [self._words[i] for i in ids.tolist()]


class _AfterEachEpoch(CallbackAny2Vec):
    def __init__(self, look: Callable[[int], None]) -> None:
        self._look, self._done = look, 0

    def on_epoch_end(self, model: Word2Vec) -> None:
        self._done += 1
        self._look(self._done)
