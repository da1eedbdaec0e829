"""Word similarity: do cosines of vectors rank pairs of words as people do?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from hessinit_book.word2vec import judged_set
from hessinit_book.word2vec.vocabulary import Vocabulary

SETS = {"wordsim353": "wordsim353.tsv", "simlex999": "simlex999.txt"}


@dataclass(frozen=True, eq=False)
class Similarities:
    """Pairs of words with the judgement of people, as far as the vocabulary has them.

    Attributes:
        pairs: places in the vocabulary, shape (n, 2).
        human: judged similarity, shape (n,).
        total: pairs in the whole set.
    """

    pairs: Int64[Tensor, "n 2"]
    human: Float64[Tensor, " n"]
    total: int

    @classmethod
    def load(cls, name: str, vocabulary: Vocabulary, data_dir: Path | None = None) -> Similarities:
        """Read one of the sets that gensim ships; empty where it is not at hand.

        Args:
            name: "wordsim353" or "simlex999".
            vocabulary: pairs with a word that it lacks are left out, as gensim does.
            data_dir: see `judged_set`.

        Source: Finkelstein and others (2002): WordSim-353. Hill, Reichart, Korhonen (2015):
            SimLex-999.
        """
        pairs, human, total = [], [], 0
        file = judged_set(SETS[name], data_dir)
        for line in file.read_text(encoding="utf-8").splitlines() if file else ():
            if line.startswith("#"):
                continue
            first, second, judged = line.lower().split("\t")
            total += 1
            found = [vocabulary.places.get(word) for word in (first, second)]
            if None not in found:
                pairs.append(found)
                human.append(float(judged))
        return cls(
            torch.tensor(pairs, dtype=torch.int64).view(-1, 2),
            torch.tensor(human, dtype=torch.float64),
            total,
        )

    def cosines(self, vectors: Float[Tensor, "V d"]) -> Float64[Tensor, " n"]:
        """Compute the cosine of each pair; shape (n,), on the CPU."""
        first, second = vectors[self.pairs.to(vectors.device)].double().unbind(1)
        return F.cosine_similarity(first, second).cpu()
