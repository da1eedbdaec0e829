"""Skip-gram with negative sampling in torch: gensim's objective, batched, on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hessinit_book.randomness import generator
from hessinit_book.word2vec.corpora import Corpus
from hessinit_book.word2vec.initial_vectors import Start
from hessinit_book.word2vec.pairs import counted, negatives_of, pairs_of
from hessinit_book.word2vec.recipe import OnPiece, Recipe
from hessinit_book.word2vec.vocabulary import Vocabulary

Sigmoid = Callable[[Tensor], Tensor]


def loss(
    inputs: Float[Tensor, "V d"],
    outputs: Float[Tensor, "V d"],
    pairs: Int64[Tensor, "pairs 2"],
    negatives: Int64[Tensor, "pairs k"],
    *,
    sigmoid: Sigmoid = torch.sigmoid,
) -> Float[Tensor, ""]:
    r"""Compute $-\sum \log \sigma(s^+) - \sum_\text{neg} \log \sigma(-s^-)$ in nat.

    Args:
        inputs: $v$, shape (V, d).
        outputs: $u$, shape (V, d).
        pairs: input word and output word of each observed pair, shape (pairs, 2).
        negatives: output words of its negatives, shape (pairs, k); its own word does not count.
        sigmoid: to put another one in its place, gensim's table say.
    """
    met = _meet(inputs, outputs, pairs, negatives)
    return -(sigmoid(met.signs * met.scores).log() * met.counts).sum()


def step(
    inputs: Float[Tensor, "V d"],
    outputs: Float[Tensor, "V d"],
    pairs: Int64[Tensor, "pairs 2"],
    negatives: Int64[Tensor, "pairs k"],
    rate: float,
    *,
    sigmoid: Sigmoid = torch.sigmoid,
    most: int | None = None,
) -> None:
    """Take a step of gradient descent on `loss`, in place.

    All pairs see the vectors before the step. gensim goes pair by pair, which is this with one
    pair at a time; and it passes over scores beyond +-6, which this does not.

    A common word is in hundreds of the pairs of a large batch. As many steps at once, all from the
    same place, would overshoot: `most` bounds how many of them a vector takes, each the mean.

    Args:
        inputs: shape (V, d).
        outputs: shape (V, d).
        pairs: as in `loss`, shape (pairs, 2).
        negatives: as in `loss`, shape (pairs, k).
        rate: of learning, for each pair.
        sigmoid: as in `loss`.
        most: steps that a vector takes at once; None: one for each time that it occurs.
    """
    met, centers = _meet(inputs, outputs, pairs, negatives), pairs[:, 0]
    slopes = rate * met.counts * (sigmoid(met.scores) - (met.signs + 1) / 2)
    left = torch.einsum("pk,pkd->pd", slopes, met.u)
    if most is not None:
        left *= _shares(centers, met.counts[:, 0], len(inputs), most)[:, None]
        slopes = slopes * _shares(met.words, met.counts, len(outputs), most)
    right = (slopes[..., None] * met.v[:, None]).flatten(0, 1)
    inputs.index_add_(0, centers, left, alpha=-1)
    outputs.index_add_(0, met.words.flatten(), right, alpha=-1)


def _shares(
    places: Int64[Tensor, "*n"], counts: Bool[Tensor, "*n"], size: int, most: int
) -> Float[Tensor, "*n"]:
    """Give each place the share of its steps that it takes: 1, or `most` over their number."""
    number = torch.zeros(size, device=places.device)
    number.index_add_(0, places.flatten(), counts.flatten().float())
    return (most / number).clamp(max=1)[places]


def train(
    corpus: Corpus,
    vocabulary: Vocabulary,
    recipe: Recipe,
    start: Start,
    seed: int,
    on_piece: OnPiece,
    *,
    batch_size: int,
    device: torch.device,
    most: int | None = None,
) -> None:
    """Train as `by_gensim.train` does, but in batches of pairs.

    The pairs of a piece are drawn at once, on the device, in the order of the text, as gensim takes
    them; a step waits for nothing. Sums over a batch go in any order on a GPU, so results repeat
    up to rounding there, bit by bit on a CPU.

    Args:
        corpus: the text.
        vocabulary: of the corpus.
        recipe: how to train.
        start: the vectors to begin with; for gensim's own, its law with other draws.
        seed: of the run.
        on_piece: called before the first piece and after each.
        batch_size: observed pairs a step.
        device: where to compute.
        most: see `step`.
    """
    if start.law == "gensim":
        start = Start("uniform", start.inputs, start.outputs)
    drawn = start.draw(len(vocabulary.words), recipe.dimension, seed)
    assert drawn is not None
    inputs, outputs = (side.to(device) for side in drawn)
    source = generator(seed, "pairs", device)
    ranks = torch.from_numpy(vocabulary.ranks[corpus.train]).to(device)
    keep = torch.from_numpy(vocabulary.keep(recipe.sample)).to(device)
    noise = torch.from_numpy(np.cumsum(vocabulary.noise)).to(device)
    size = recipe.tokens(corpus)
    on_piece(0, inputs, outputs)
    for piece in range(recipe.pieces):
        at = torch.arange(piece * size, (piece + 1) * size, device=device) % len(ranks)
        pairs = pairs_of(ranks[at], keep, recipe.window, source)
        negatives = negatives_of(len(pairs), noise, recipe.negatives, source)
        steps = max(1, -(-len(pairs) // batch_size))
        for number, (some, missed) in enumerate(
            zip(pairs.split(batch_size), negatives.split(batch_size), strict=True)
        ):
            done = (piece + number / steps) / recipe.pieces
            rate = recipe.learning_rate + done * (recipe.last_rate - recipe.learning_rate)
            step(inputs, outputs, some, missed, rate, most=most)
        on_piece(piece + 1, inputs, outputs)


class _Met(NamedTuple):
    """Pairs with their vectors.

    Attributes:
        words: output words of each pair, its own one first.
        v: input vectors.
        u: output vectors of the words.
        scores: inner products.
        signs: +1 for the observed word, -1 for a negative.
        counts: whether a word counts.
    """

    words: Int64[Tensor, "pairs words"]
    v: Float[Tensor, "pairs d"]
    u: Float[Tensor, "pairs words d"]
    scores: Float[Tensor, "pairs words"]
    signs: Float[Tensor, "pairs words"]
    counts: Bool[Tensor, "pairs words"]


def _meet(inputs: Tensor, outputs: Tensor, pairs: Tensor, negatives: Tensor) -> _Met:
    words = torch.cat([pairs[:, 1:], negatives], 1)
    v, u = inputs[pairs[:, 0]], outputs[words]
    scores = torch.einsum("pd,pkd->pk", v, u)
    signs = torch.full_like(scores, -1.0)
    signs[:, 0] = 1
    counts = torch.ones_like(scores, dtype=torch.bool)
    counts[:, 1:] = counted(pairs[:, 1], negatives)
    return _Met(words, v, u, scores, signs, counts)
