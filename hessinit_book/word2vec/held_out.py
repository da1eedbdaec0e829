"""The loss on pairs of the held-out text, the same pairs for every model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from hessinit_book.randomness import generator
from hessinit_book.word2vec.corpora import Corpus
from hessinit_book.word2vec.pairs import counted, draw_negatives, draw_pairs
from hessinit_book.word2vec.vocabulary import Vocabulary


class HeldOutPairs:
    """Pairs from the held-out text with their negatives, drawn once.

    Args:
        corpus: the text.
        vocabulary: of the corpus.
        pairs: how many at most.
        window: see `draw_pairs`.
        sample: see `draw_pairs`.
        negatives: for each pair.
        device: where the pairs lie, and the vectors that are judged; they are drawn on the CPU.
    """

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Vocabulary,
        *,
        pairs: int,
        window: int,
        sample: float,
        negatives: int,
        device: torch.device | str = "cpu",
    ) -> None:
        source = generator(0, "held-out pairs")
        found = draw_pairs(corpus.held_out, vocabulary, window=window, sample=sample, source=source)
        chosen = torch.randperm(len(found), generator=source)[:pairs]
        self.inputs: Int64[Tensor, " pairs"] = found[chosen, 0].to(device)
        self.targets: Int64[Tensor, " pairs"] = found[chosen, 1].to(device)
        drawn = draw_negatives(len(chosen), vocabulary, negatives, source)
        self.negatives = drawn.to(device)

    def loss(self, inputs: Float[Tensor, "V d"], outputs: Float[Tensor, "V d"]) -> float:
        r"""Compute the mean over pairs of $\log(1+e^{-s}) + \sum_\text{neg} \log(1+e^{s})$.

        Args:
            inputs: input vectors, shape (V, d).
            outputs: output vectors, shape (V, d).

        Returns:
            In nat a pair. Vectors without information give (1 + negatives) log 2.
        """
        v = inputs[self.inputs]
        positive = F.softplus(-(v * outputs[self.targets]).sum(1))
        scores = torch.einsum("pd,pnd->pn", v, outputs[self.negatives])
        negative = F.softplus(scores) * counted(self.targets, self.negatives)
        return float((positive + negative.sum(1)).double().mean())
