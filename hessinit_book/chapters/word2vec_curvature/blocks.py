"""Blocks of the Hessian of a text's loss, for chosen words: norms, and where it is a saddle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from hessinit_book.chapters.word2vec_curvature.pair_law import PairLaw


@dataclass(frozen=True)
class WordCurvature:
    """Curvature around one center word, for one of its observed pairs in the mean.

    Attributes:
        gradient: norm of the gradient in its input vector.
        inputs: Frobenius norm of the block of its input vector.
        outputs: of the block of its partner's output vector.
        cross: of its blocks with all output vectors together.
        cross_curvature: of their part that is no Gauss-Newton part.
        smallest: least eigenvalue of the joint Hessian of the word and its partner.
        largest: greatest eigenvalue of it.
        predicted: what statement 11 gives for the least one where all scores are zero.
    """

    gradient: float
    inputs: float
    outputs: float
    cross: float
    cross_curvature: float
    smallest: float
    largest: float
    predicted: float


def partner(law: PairLaw, c: int) -> int:
    """Find the word that a center was observed with most often."""
    mine = law.met[:, 0] == c
    return int(law.met[mine, 1][law.shares[mine].argmax()])


def joint_hessian(
    law: PairLaw,
    c: int,
    w: int,
    inputs: Float64[Tensor, "V d"],
    outputs: Float64[Tensor, "V d"],
) -> Float64[Tensor, "p p"]:
    r"""Form the Hessian in the input vector of c and the output vector of w, p = 2 d.

    A principal part of the whole Hessian: the diagonal blocks are sums over all pairs of c and
    of w, the cross block belongs to their own pair.
    """
    center, word = law.center(c, inputs, outputs), law.word(w, inputs, outputs)
    eye = torch.eye(inputs.shape[1], dtype=inputs.dtype, device=inputs.device)
    cross = center.bends[0, w] * torch.outer(outputs[w], inputs[c]) + center.slopes[0, w] * eye
    top = torch.cat([center.input_blocks()[0], cross], 1)
    return torch.cat([top, torch.cat([cross.mT, word.output_blocks()[0]], 1)])


def word_curvature(
    law: PairLaw, c: int, inputs: Float64[Tensor, "V d"], outputs: Float64[Tensor, "V d"]
) -> WordCurvature:
    r"""Measure the curvature around a center and the word it was observed with most often.

    Everything is divided by the share $f_c$ of the center, so that common and rare words can be
    compared: it is the curvature that one observed pair of the center adds.

    Args:
        law: of the text's pairs.
        c: the center's place in the vocabulary; it was observed.
        inputs: all input vectors, shape (V, d).
        outputs: all output vectors, shape (V, d).
    """
    w, share = partner(law, c), float(law.centers[c])
    center = law.center(c, inputs, outputs)
    hessian = joint_hessian(law, c, w, inputs, outputs) / share
    values = torch.linalg.eigvalsh(hessian)
    d = inputs.shape[1]
    # The square of a cross block's norm, as in `WordPairs.block_norms`.
    lengths = inputs[c].square().sum() * outputs.square().sum(1)
    linear = (center.bends[0].square() * lengths).sum()
    mixed = 2 * (center.bends * center.slopes * center.scores).sum()
    curved = d * center.slopes.square().sum()
    return WordCurvature(
        gradient=float(center.gradient()[0].norm()) / share,
        inputs=float(hessian[:d, :d].norm()),
        outputs=float(hessian[d:, d:].norm()),
        cross=float((linear + mixed + curved).clamp(min=0).sqrt()) / share,
        cross_curvature=float(curved.sqrt()) / share,
        smallest=float(values[0]),
        largest=float(values[-1]),
        predicted=-float((center.negative - center.positive)[0, w].abs()) / 2 / share,
    )
