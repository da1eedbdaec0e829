"""Synthetic word pairs: a table of co-occurrences, and batches with negatives drawn from it.

For what concerns the model and not a language: the saddle at which Word2Vec starts.
"""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hessinit_book.records.records import DatasetInfo


def draw_counts(
    words: int, topics: int, pairs: int, source: torch.Generator
) -> Int64[Tensor, "c w"]:
    r"""Draw how often each center met each context: common words, rare words, and topics.

    Word r (from 1) has the frequency $1/\sqrt r$, a Zipf law as word2vec's subsampling of
    common words flattens it. Words of one topic meet four times as often as others.

    Args:
        words: size of the vocabulary, of centers and contexts alike.
        topics: number of topics; words take turns.
        pairs: number of co-occurrences.
        source: of randomness.

    Returns:
        Counts, rows for centers and columns for contexts; shape (words, words).

    Example:
        >>> draw_counts(4, 2, 100, torch.Generator().manual_seed(0)).sum().item()
        100
    """
    frequency = torch.arange(1, words + 1, dtype=torch.float64).rsqrt()
    topic = torch.arange(words) % topics
    affinity = torch.where(topic[:, None] == topic, 4.0, 1.0)
    law = (torch.outer(frequency, frequency) * affinity).flatten()
    drawn = torch.multinomial(law, pairs, replacement=True, generator=source)
    return torch.bincount(drawn, minlength=words**2).reshape(words, words)


class WordTable:
    """Observed pairs and the law of their negatives, in expectation and in batches.

    Args:
        counts: how often each center met each context, shape (c, w).
        negatives: negatives for each observed pair. As in word2vec, they have the center of
            the pair and contexts drawn by their frequency to the power 3/4.

    Attributes:
        positive: share of each pair among the observed, shape (c, w).
        negative: how often each pair is a negative for one observed pair, in expectation;
            shape (c, w).
        info: name, size and checksum of the counts, for records.

    Raises:
        ValueError: no pair in the table, or a number of negatives below 1.

    Example:
        >>> table = WordTable(torch.tensor([[3, 1]]), negatives=2)
        >>> table.positive.tolist(), round(table.negative.sum().item(), 12)
        ([[0.75, 0.25]], 2.0)
    """

    def __init__(self, counts: Int64[Tensor, "c w"], negatives: int) -> None:
        if not counts.any():
            raise ValueError(f"counts of sum {counts.sum().item()}: expected pairs")
        if negatives < 1:
            raise ValueError(f"negatives {negatives}: expected 1 or more")
        self._negatives = negatives
        self.positive: Float[Tensor, "c w"] = counts.double() / counts.sum()
        noise = self.positive.sum(0) ** 0.75
        self._noise = noise / noise.sum()
        self.negative: Float[Tensor, "c w"] = negatives * torch.outer(
            self.positive.sum(1), self._noise
        )
        self.info = DatasetInfo(
            name="synthetic word pairs",
            kind="sample",
            train_size=int(counts.sum()),
            test_size=0,
            sha256=hashlib.sha256(counts.cpu().numpy().astype("<i8").data).hexdigest(),
        )

    def batch(
        self, size: int, source: torch.Generator
    ) -> tuple[Float[Tensor, "c w"], Float[Tensor, "c w"]]:
        """Draw observed pairs, with replacement, and their negatives.

        A negative that happens to be its pair's own context is kept, so that the mean over
        batches is the table.

        Args:
            size: observed pairs.
            source: of randomness, on the table's device.

        Returns:
            `positive` and `negative` of the batch, shape (c, w) each.
        """
        law, words = self.positive.flatten(), self.positive.shape[1]
        drawn = torch.multinomial(law, size, replacement=True, generator=source)
        noise = torch.multinomial(
            self._noise, size * self._negatives, replacement=True, generator=source
        )
        missed = (drawn // words).repeat_interleave(self._negatives) * words + noise
        positive, negative = (
            torch.bincount(pairs, minlength=len(law)).double().reshape(-1, words) / size
            for pairs in (drawn, missed)
        )
        return positive, negative
