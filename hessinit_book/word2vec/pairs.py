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
        source: of randomness; the pairs are drawn on its device.

    Returns:
        Places in the vocabulary, a pair a row: first the word whose *input* vector is trained,
        then the word whose output vector it meets; in the order of the text. The window is the
        second word's, as in word2vec.c and gensim.

    Example:
        The words a b c with a window of 1 give the pairs (b, a), (a, b), (c, b), (b, c).
    """
    ranks = torch.from_numpy(vocabulary.ranks[text]).to(source.device)
    keep = torch.from_numpy(vocabulary.keep(sample)).to(source.device)
    return pairs_of(ranks, keep, window, source)


def pairs_of(
    ranks: Int64[Tensor, " n"], keep: Float64[Tensor, " V"], window: int, source: torch.Generator
) -> Int64[Tensor, "pairs 2"]:
    """Draw pairs as `draw_pairs` does, from what lies on the device already.

    Args:
        ranks: places of the text's words in the vocabulary, -1 for those that it lacks.
        keep: probability with which a token survives the subsampling, shape (V,).
        window: largest distance of a pair.
        source: of randomness, on the same device.
    """
    device = source.device
    ranks = ranks[ranks >= 0]
    drawn = torch.rand(len(ranks), generator=source, dtype=torch.float64, device=device)
    ranks = ranks[drawn < keep[ranks]]
    reach = torch.randint(1, window + 1, (len(ranks),), generator=source, device=device)

    here = torch.arange(len(ranks), device=device)
    offsets = torch.arange(-window, window + 1, device=device)
    near = here[:, None] + torch.cat([offsets[:window], offsets[window + 1 :]])
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
        source: of randomness; they are drawn on its device.

    Returns:
        Places in the vocabulary, shape (pairs, negatives). One that equals its pair's own word
        does not count, see `counted`.
    """
    law = torch.from_numpy(np.cumsum(vocabulary.noise)).to(source.device)
    return negatives_of(pairs, law, negatives, source)


def negatives_of(
    pairs: int, law: Float64[Tensor, " V"], negatives: int, source: torch.Generator
) -> Int64[Tensor, "pairs negatives"]:
    """Draw negatives as `draw_negatives` does, from the sums of the noise up to each word."""
    shape = (pairs, negatives)
    drawn = torch.rand(shape, generator=source, dtype=torch.float64, device=source.device)
    # The last sum may be short of 1 by rounding.
    return torch.searchsorted(law, drawn, right=True).clamp(max=len(law) - 1)


def counted(
    targets: Int64[Tensor, " pairs"], negatives: Int64[Tensor, "pairs negatives"]
) -> Tensor:
    """Tell which negatives count: gensim skips those that are the pair's own word.

    Example:
        >>> counted(torch.tensor([3]), torch.tensor([[3, 4]])).tolist()
        [[False, True]]
    """
    return negatives != targets[:, None]
