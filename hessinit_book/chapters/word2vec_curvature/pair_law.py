"""The loss of a whole text: shares of its pairs, without a matrix of the vocabulary's size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from hessinit_book.word2vec.skip_gram_hessian import WordPairs
from hessinit_book.word2vec.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class PairLaw:
    r"""How often each pair is observed, and how often it is a negative in expectation.

    For one observed pair in the mean, $n^+_{cw} = P_{cw}$ and $n^-_{cw} = k f_c p_w$. Only the
    pairs that were observed are kept; single rows and columns are filled in on demand.

    Attributes:
        met: the different observed pairs, input word and output word, shape (m, 2).
        shares: $P$ of each, shape (m,).
        centers: $f$, the rows' sums of P, shape (V,).
        noise: $p$, the law of the negatives, shape (V,).
        negatives: k, for each observed pair.
    """

    met: Int64[Tensor, "m 2"]
    shares: Float64[Tensor, " m"]
    centers: Float64[Tensor, " V"]
    noise: Float64[Tensor, " V"]
    negatives: int

    @classmethod
    def of(cls, pairs: Int64[Tensor, "pairs 2"], vocabulary: Vocabulary, negatives: int) -> PairLaw:
        """Count drawn pairs.

        Args:
            pairs: from `draw_pairs`.
            vocabulary: of the corpus.
            negatives: for each pair.
        """
        words = len(vocabulary.words)
        codes, counts = torch.unique(pairs[:, 0] * words + pairs[:, 1], return_counts=True)
        centers = torch.bincount(pairs[:, 0], minlength=words).double() / len(pairs)
        return cls(
            torch.stack([codes // words, codes % words], 1),
            counts.double() / len(pairs),
            centers,
            torch.from_numpy(vocabulary.noise).to(pairs.device),
            negatives,
        )

    def center(
        self, c: int, inputs: Float64[Tensor, "V d"], outputs: Float64[Tensor, "V d"]
    ) -> WordPairs:
        """Take one center with its pairs to all words."""
        mine = self.met[:, 0] == c
        positive = torch.zeros_like(self.noise)
        positive[self.met[mine, 1]] = self.shares[mine]
        negative = self.negatives * self.centers[c] * self.noise
        return WordPairs(inputs[c : c + 1], outputs, positive[None], negative[None])

    def word(
        self, w: int, inputs: Float64[Tensor, "V d"], outputs: Float64[Tensor, "V d"]
    ) -> WordPairs:
        """Take one output word with its pairs to all centers."""
        mine = self.met[:, 1] == w
        positive = torch.zeros_like(self.noise)
        positive[self.met[mine, 0]] = self.shares[mine]
        negative = self.negatives * self.centers * self.noise[w]
        return WordPairs(inputs, outputs[w : w + 1], positive[:, None], negative[:, None])

    def times(self, y: Float64[Tensor, " V"], *, transposed: bool = False) -> Float64[Tensor, " V"]:
        r"""Multiply $M = \frac12 (n^- - n^+)$ of statement 11, or its transpose, by a vector."""
        rows, columns = self.met.unbind(1)
        left, right = self.centers, self.noise
        if transposed:
            rows, columns, left, right = columns, rows, right, left
        observed = torch.zeros_like(y).index_add_(0, rows, self.shares * y[columns])
        return (self.negatives * left * (right @ y) - observed) / 2

    def fastest_mode(
        self, tolerance: float = 1e-10
    ) -> tuple[float, Float64[Tensor, " V"], Float64[Tensor, " V"]]:
        r"""Compute the largest singular value of M and its vectors by power iteration.

        Args:
            tolerance: relative change of the value at which to stop.

        Returns:
            $\varsigma_1$, $p_1$ and $q_1$, shape (V,) each.
        """
        right = self.noise / self.noise.norm()
        value, before = 0.0, -1.0
        left = right
        while abs(value - before) > tolerance * value:
            before = value
            left = self.times(right)
            left = left / left.norm()
            right = self.times(left, transposed=True)
            value = float(right.norm())
            right = right / value
        return value, left, right
