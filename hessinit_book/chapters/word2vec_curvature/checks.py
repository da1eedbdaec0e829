"""Checks behind `word2vec_curvature`: blocks against dense Hessians, torch against gensim."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gensim.models import Word2Vec
from jaxtyping import Float64
from torch import Tensor

from hessinit_book.chapters.word2vec_curvature.blocks import joint_hessian, word_curvature
from hessinit_book.chapters.word2vec_curvature.pair_law import PairLaw
from hessinit_book.chapters.word2vec_curvature.replay import replay, table_sigmoid
from hessinit_book.randomness import generator
from hessinit_book.word2vec import by_torch
from hessinit_book.word2vec.vocabulary import Vocabulary

WORDS, DIMENSION, NEGATIVES = 6, 4, 3  # of the toy vocabulary
VOCABULARY, SENTENCE = 20_000, 15  # of the comparison with gensim
SOUND = 1e-9  # relative deviation from dense Hessians that is put down to rounding
AGREED = 1e-6  # deviation from gensim that is put down to its single precision


def dense_blocks(seed: int) -> dict[str, Any]:
    """Compare blocks on a toy vocabulary with the dense Hessian of automatic differentiation."""
    source = generator(seed, "toy vocabulary")
    pairs = torch.randint(0, WORDS, (60, 2), generator=source)
    counts = torch.bincount(pairs[:, 1], minlength=WORDS).numpy()
    vocabulary = Vocabulary([str(i) for i in range(WORDS)], counts, np.arange(WORDS))
    law = PairLaw.of(pairs, vocabulary, NEGATIVES)
    v, u = torch.randn(2, WORDS, DIMENSION, generator=source, dtype=torch.float64)

    hessian = dense_hessian(pairs, law, v, u)
    size = WORDS * DIMENSION
    worst = 0.0
    for c in range(WORDS):
        mine = slice(c * DIMENSION, (c + 1) * DIMENSION)
        found = word_curvature(law, c, v, u)
        share = float(law.centers[c])
        cross = float(hessian[mine, size:].norm()) / share
        worst = max(worst, abs(found.cross - cross) / cross)
        for w in range(WORDS):
            theirs = slice(size + w * DIMENSION, size + (w + 1) * DIMENSION)
            both = [*range(mine.start, mine.stop), *range(theirs.start, theirs.stop)]
            expected = hessian[both][:, both]
            joint = joint_hessian(law, c, w, v, u)
            worst = max(worst, float((joint - expected).abs().max() / expected.abs().max()))
    return {
        "what": "blocks of a toy vocabulary against dense Hessians: largest relative deviation",
        "value": worst,
        "allowed": SOUND,
    }


def dense_hessian(
    pairs: Tensor, law: PairLaw, v: Float64[Tensor, "V d"], u: Float64[Tensor, "V d"]
) -> Float64[Tensor, "p p"]:
    """Form the Hessian of the mean loss in all vectors by automatic differentiation."""
    negative = law.negatives * torch.outer(law.centers, law.noise)

    def loss(flat: Tensor) -> Tensor:
        both = flat.view(2, *v.shape)
        scores = both[0] @ both[1].mT
        observed = F.logsigmoid(scores[pairs[:, 0], pairs[:, 1]]).mean()
        return -(observed + (negative * F.logsigmoid(-scores)).sum())

    return torch.func.hessian(loss)(torch.stack([v, u]).flatten())


def against_gensim(seed: int, rate: float = 0.025) -> dict[str, Any]:
    """Train gensim on one sentence, and torch in float64 on the same pairs one by one.

    The vocabulary is so large that no pair draws a negative twice: gensim would show it the
    output vector that the first one has moved, torch the one before.

    Args:
        seed: of the vectors and of gensim.
        rate: of learning.

    Returns:
        Largest deviation of a vector's component and relative deviation of the objective, with
        gensim's table of the sigmoid, and how far the table itself is from the sigmoid.
    """
    words = [str(i) for i in range(VOCABULARY)]
    model = Word2Vec(vector_size=10, sg=1, sample=0, min_count=1, seed=seed, workers=1)
    model.build_vocab([words])
    source = generator(seed, "one sentence")
    v, u = 0.3 * torch.randn(2, VOCABULARY, 10, generator=source)
    model.wv.vectors[:], model.syn1neg[:] = v.numpy(), u.numpy()
    sentence = words[:SENTENCE]
    pairs = replay(model, sentence)
    model.train(
        [sentence], total_examples=1, epochs=1, start_alpha=rate, end_alpha=rate, compute_loss=True
    )
    theirs = torch.from_numpy(np.stack([model.wv.vectors, model.syn1neg]))
    objective = float(model.get_latest_training_loss())

    deviations = {}
    for name, sigmoid in (("table", table_sigmoid), ("exact", torch.sigmoid)):
        inputs, outputs, total = v.double(), u.double(), 0.0
        for center, word, missed in pairs:
            pair, negatives = torch.tensor([[center, word]]), torch.tensor([missed])
            total += float(by_torch.loss(inputs, outputs, pair, negatives, sigmoid=sigmoid))
            by_torch.step(inputs, outputs, pair, negatives, rate, sigmoid=sigmoid)
        ours = torch.stack([inputs, outputs])
        deviations[name] = {
            "vectors": float((ours - theirs).abs().max()),
            "objective": abs(total / objective - 1),
        }
    return {
        "what": "vectors and objective after a sentence, torch in float64 against gensim: "
        "largest deviation",
        "value": max(deviations["table"].values()),
        "allowed": AGREED,
        "pairs": len(pairs),
        "with_exact_sigmoid": deviations["exact"],
    }
