"""Starts of Word2Vec: gensim's own, normal vectors of any deviation, and matched blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hessinit_book.randomness import generator
from hessinit_book.word2vec.vocabulary import Vocabulary


@dataclass(frozen=True)
class Start:
    """How the vectors are drawn.

    Attributes:
        law: "gensim" (left as gensim makes them: inputs uniform in +-1/d, outputs zero),
            "uniform" (both uniform) or "normal".
        inputs: deviation of the input vectors' components.
        outputs: deviation of the output vectors' components.
    """

    law: Literal["gensim", "uniform", "normal"]
    inputs: float
    outputs: float

    def draw(
        self, words: int, dimension: int, seed: int
    ) -> tuple[Float[Tensor, "V d"], Float[Tensor, "V d"]] | None:
        """Draw the vectors; starts of one law and seed share the directions.

        Args:
            words: number of words, V.
            dimension: of the vectors, d.
            seed: of the run.

        Returns:
            Input and output vectors, shape (V, d) each; None for gensim's own.
        """
        if self.law == "gensim":
            return None
        source = generator(seed, f"vectors {self.law}")
        shape = (2, words, dimension)
        if self.law == "uniform":
            drawn = (2 * torch.rand(shape, generator=source) - 1) * 3**0.5
        else:
            drawn = torch.randn(shape, generator=source)
        return self.inputs * drawn[0], self.outputs * drawn[1]


def gensim_start(dimension: int) -> Start:
    """Give gensim's own initialization, uniform in +-1/d: twice word2vec.c's.

    Example:
        >>> gensim_start(100).outputs
        0.0
    """
    return Start("gensim", 3**-0.5 / dimension, 0.0)


def word2vec_start(dimension: int) -> Start:
    """Give word2vec.c's initialization: inputs uniform in +-1/(2d), outputs zero.

    Example:
        >>> inputs, outputs = word2vec_start(50).draw(1000, 50, seed=0)
        >>> round(inputs.abs().max().item(), 3), outputs.abs().max().item()
        (0.01, 0.0)
    """
    return Start("uniform", 3**-0.5 / (2 * dimension), 0.0)


def matched_deviation(
    pairs: Int64[Tensor, "pairs 2"], vocabulary: Vocabulary, negatives: int, dimension: int
) -> float:
    r"""Compute the deviation at which diagonal blocks have the norm of the cross blocks.

    At zero scores the cross blocks are $M_{cw} I$ with $M = \frac12 (k f p^\top - P)$: P is the
    share of each pair among the observed, f the share of each center, p the law of the k
    negatives. With $n = P + k f p^\top$ and normal vectors of the deviation s on both sides the
    diagonal blocks have

    $$\E \sum_c \|D^2_{v_c} L\|_F^2 = \tfrac{s^4}{16} \Bigl( d \sum_c (1 + k)^2 f_c^2
      + (d^2 + d) \sum_{cw} n_{cw}^2 \Bigr),$$

    and alike for the output vectors, with $f_w + k p_w$ in place of $(1 + k) f_c$. Sums over all
    V x V pairs come from the observed ones, so that no matrix of that size is formed; and
    $\sum P^2$ is estimated without bias, from the number of times that two drawn pairs agree.

    Args:
        pairs: drawn from the text, see `draw_pairs`.
        vocabulary: of the corpus.
        negatives: k.
        dimension: d.

    Returns:
        The deviation s of the vectors' components, on both sides.

    Source: derivation in the book, statement 11.
    """
    words, total = len(vocabulary.words), len(pairs)
    centers = torch.bincount(pairs[:, 0], minlength=words).double() / total
    targets = torch.bincount(pairs[:, 1], minlength=words).double() / total
    noise = torch.from_numpy(vocabulary.noise)
    met = torch.unique(pairs[:, 0] * words + pairs[:, 1], return_counts=True)[1].double()

    observed = float((met * (met - 1)).sum()) / (total * (total - 1))  # sum of P^2
    drawn = negatives**2 * float(centers.square().sum() * noise.square().sum())
    mixed = negatives * float((centers[pairs[:, 0]] * noise[pairs[:, 1]]).mean())
    bends, slopes = observed + 2 * mixed + drawn, observed - 2 * mixed + drawn
    sides = [(1 + negatives) * centers, targets + negatives * noise]
    squares = sum(float(side.square().sum()) for side in sides)
    diagonal = dimension * squares + 2 * (dimension**2 + dimension) * bends
    return (4 * dimension * slopes / diagonal) ** 0.25
