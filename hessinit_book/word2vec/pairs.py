"""Skip-gram pairs as word2vec draws them: subsampled text, random windows, negatives."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64, Int32, Int64
from numpy import ndarray
from torch import Tensor

from hessinit_book.word2vec.vocabulary import Vocabulary


def draw_pairs(
    text: Int32[ndarray, " n"],
    vocabulary: Vocabulary,
    *,
    window: int,
    sample: float,
    source: torch.Generator,
) -> Int64[Tensor, "pairs 2"]:
    """Draw the pairs of one pass over a text.

    Rare words are dropped, common ones thinned out, and each word that is left gets a window of
    1 to `window` words to each side, all widths alike likely.

    Args:
        text: indices into the corpus' words, shape (n,).
        vocabulary: of the corpus.
        window: largest distance of a pair.
        sample: threshold of the subsampling.
        source: of randomness, on the CPU.

    Returns:
        Places in the vocabulary, a pair a row: first the word whose *input* vector is trained,
        then the word whose output vector it meets; in the order of the text. The window is the
        second word's, as in word2vec.c and gensim.

    Example:
        The words a b c with a window of 1 give the pairs (b, a), (a, b), (c, b), (b, c).
    """
    ranks = torch.from_numpy(vocabulary.ranks[text])
    ranks = ranks[ranks >= 0]
    keep = torch.from_numpy(vocabulary.keep(sample))[ranks]
    ranks = ranks[torch.rand(len(ranks), generator=source, dtype=torch.float64) < keep]
    reach = torch.randint(1, window + 1, (len(ranks),), generator=source)

    here = torch.arange(len(ranks))
    near = here[:, None] + torch.cat([torch.arange(-window, 0), torch.arange(1, window + 1)])
    inside = (near >= 0) & (near < len(ranks)) & ((near - here[:, None]).abs() <= reach[:, None])
    target, other = here[:, None].expand_as(near)[inside], near[inside]
    return torch.stack([ranks[other], ranks[target]], 1)


def draw_negatives(
    pairs: int, vocabulary: Vocabulary, negatives: int, source: torch.Generator
) -> Int64[Tensor, "pairs negatives"]:
    """Draw the negative samples of some pairs from the vocabulary's noise, with replacement.

    Args:
        pairs: number of pairs.
        vocabulary: gives the law.
        negatives: for each pair.
        source: of randomness, on the CPU.

    Returns:
        Places in the vocabulary, shape (pairs, negatives). One that equals its pair's own word
        does not count, see `counted`.
    """
    law = np.cumsum(vocabulary.noise)
    drawn = torch.rand(pairs, negatives, generator=source, dtype=torch.float64)
    return _places(law, drawn)


def counted(
    targets: Int64[Tensor, " pairs"], negatives: Int64[Tensor, "pairs negatives"]
) -> Tensor:
    """Tell which negatives count: gensim skips those that are the pair's own word.

    Example:
        >>> counted(torch.tensor([3]), torch.tensor([[3, 4]])).tolist()
        [[False, True]]
    """
    return negatives != targets[:, None]


def _places(law: Float64[ndarray, " V"], drawn: Tensor) -> Int64[Tensor, "pairs negatives"]:
    # The last sum may be short of 1 by rounding.
    found = torch.searchsorted(torch.from_numpy(law), drawn.flatten(), right=True)
    return found.clamp(max=len(law) - 1).view_as(drawn)
