"""Analogies: is the word nearest to b - a + c the one that is to c as b is to a?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hessinit_book.word2vec import judged_set
from hessinit_book.word2vec.vocabulary import Vocabulary

_BLOCK = 512  # questions at once: bounds the memory to this many times the candidates


@dataclass(frozen=True, eq=False)
class Analogies:
    """Questions "a is to b as c is to ?" with their answers.

    Attributes:
        questions: places in the vocabulary of a, b, c and the answer, shape (n, 4).
        candidates: so many of the most common words may be answers.
        total: questions in the whole set.
    """

    questions: Int64[Tensor, "n 4"]
    candidates: int
    total: int

    @classmethod
    def load(
        cls,
        vocabulary: Vocabulary,
        *,
        candidates: int,
        every: int = 1,
        data_dir: Path | None = None,
    ) -> Analogies:
        """Read the set that gensim ships, `questions-words.txt`; empty where it is not at hand.

        Args:
            vocabulary: of the corpus.
            candidates: questions with a word that is not among so many of the most common ones
                are left out, and so are such answers; gensim's `restrict_vocab`.
            every: take each such question only, so that all kinds are there.
            data_dir: see `judged_set`.

        Source: Mikolov and others, arXiv 1301.3781.
        """
        questions, total = [], 0
        file = judged_set("questions-words.txt", data_dir)
        for line in file.read_text(encoding="utf-8").splitlines() if file else ():
            if line.startswith(":"):
                continue
            total += 1
            found = [vocabulary.places.get(word, candidates) for word in line.lower().split()]
            if max(found) < candidates:
                questions.append(found)
        kept = torch.tensor(questions, dtype=torch.int64).view(-1, 4)[::every]
        return cls(kept, min(candidates, len(vocabulary.words)), total)

    def correct(self, vectors: Float[Tensor, "V d"]) -> Bool[Tensor, " n"]:
        """Tell which questions are answered right; a, b and c are no answers.

        Args:
            vectors: shape (V, d).

        Returns:
            Shape (n,), on the CPU.
        """
        units = F.normalize(vectors[: self.candidates])
        right = []
        for part in self.questions.to(vectors.device).split(_BLOCK):
            a, b, c, answer = part.unbind(1)
            scores = (units[b] - units[a] + units[c]) @ units.mT
            nearest = scores.scatter(1, part[:, :3], -torch.inf).argmax(1)
            right.append(nearest == answer)
        return torch.cat(right).cpu()


def pack(right: Bool[Tensor, " n"]) -> str:
    """Write yes and no as hexadecimal digits, four answers a digit, for a record.

    Example:
        >>> pack(torch.tensor([True, False, False, True, True]))
        '98'
    """
    digits = -(-len(right) // 4)
    bits = "".join("1" if yes else "0" for yes in right.tolist()).ljust(4 * digits, "0")
    return f"{int(bits, 2):0{digits}x}" if digits else ""


def unpack(digits: str, n: int) -> Bool[Tensor, " n"]:
    """Undo `pack`.

    Example:
        >>> unpack("98", 5).tolist()
        [True, False, False, True, True]
    """
    bits = "".join(f"{int(digit, 16):04b}" for digit in digits)
    return torch.tensor([bit == "1" for bit in bits[:n]], dtype=torch.bool)
