"""What people look at: nearest neighbors of some words, and some words in a plane."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hessinit_book.word2vec.vocabulary import Vocabulary

WORDS = ("king", "france", "river", "music", "disease", "physics", "computer", "war")
GROUPS = {
    "countries": ("france", "germany", "italy", "spain", "russia", "japan", "china", "egypt"),
    "capitals": ("paris", "berlin", "rome", "madrid", "moscow", "tokyo", "beijing", "cairo"),
    "numbers": ("one", "two", "three", "four", "five", "six", "seven", "eight"),
    "months": ("january", "march", "april", "june", "july", "august", "october", "december"),
    "sciences": ("physics", "chemistry", "biology", "mathematics", "astronomy", "geology"),
    "music": ("guitar", "piano", "drums", "violin", "album", "band", "singer", "song"),
}


def nearest(
    vectors: Float[Tensor, "V d"], vocabulary: Vocabulary, *, candidates: int, number: int = 5
) -> dict[str, list[str]]:
    """List the words of the highest cosine with each of `WORDS` that the vocabulary has.

    Args:
        vectors: shape (V, d).
        vocabulary: of the vectors.
        candidates: so many of the most common words may be neighbors.
        number: of neighbors.
    """
    units = F.normalize(vectors)
    found = {}
    for word in WORDS:
        place = vocabulary.places.get(word)
        if place is not None:
            cosines = units[:candidates] @ units[place]
            if place < candidates:
                cosines[place] = -torch.inf
            best = cosines.topk(min(number, len(cosines) - 1)).indices.tolist()
            found[word] = [vocabulary.words[i] for i in best]
    return found


def in_a_plane(
    vectors: Float[Tensor, "V d"], vocabulary: Vocabulary
) -> dict[str, dict[str, list[float]]]:
    """Project the words of `GROUPS` on the two main components of their unit vectors.

    Returns:
        By group and word, the two coordinates; each component's largest one is positive. Nothing
        if the vocabulary has fewer than three of the words.
    """
    places = {
        (group, word): vocabulary.places[word]
        for group, words in GROUPS.items()
        for word in words
        if word in vocabulary.places
    }
    if len(places) < 3:
        return {}
    units = F.normalize(vectors[list(places.values())].double())
    units = units - units.mean(0)
    left, values, _ = torch.linalg.svd(units, full_matrices=False)
    plane = (left * values)[:, :2]
    largest = plane.gather(0, plane.abs().argmax(0, keepdim=True))
    plane = plane * largest.sign()
    found: dict[str, dict[str, list[float]]] = {}
    for (group, word), point in zip(places, plane.tolist(), strict=True):
        found.setdefault(group, {})[word] = [round(x, 4) for x in point]
    return found
