"""Full-softmax Word2Vec on a small vocabulary: a linear network, so statement 6 predicts it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from hessinit_book.randomness import generator
from hessinit_book.statistics.rounding import rounded
from hessinit_book.theory.output_hessians import output_pairs
from hessinit_book.theory.propagation import predict_layer_norms
from hessinit_lib.hessians import layer_hessians

WORDS = 200  # the most common ones
DIMENSION = 50
PAIRS = 64  # observed pairs that the Hessian is the mean over
DEVIATIONS = (0.01, 0.1, 0.3)
DRAWS = 32  # of logits, for the mean over them
LAYERS = ("inputs", "outputs")


def predicted_and_measured(pairs: Int64[Tensor, "pairs 2"], seed: int) -> list[dict[str, Any]]:
    """Compare predicted and measured norms of both layers, for each deviation of the vectors.

    Args:
        pairs: drawn from a text, see `draw_pairs`; those of the most common words are used.
        seed: of the run.
    """
    common = pairs[(pairs < WORDS).all(1)]
    chosen = torch.randperm(len(common), generator=generator(seed, "softmax pairs"))[:PAIRS]
    centers, targets = common[chosen].unbind(1)
    inputs = F.one_hot(centers, WORDS).double()
    found: list[dict[str, Any]] = []
    for deviation in DEVIATIONS:
        model = full_softmax(deviation, seed)
        report = layer_hessians(model, F.cross_entropy, inputs, targets, norms=("frobenius",))
        inputs_layer, outputs_layer = predict_layer_norms(model, inputs)
        predicted = {
            inputs_layer: inputs_layer.frobenius,
            outputs_layer: outputs_norm(inputs, deviation),
        }
        found += [
            {
                "deviation": deviation,
                "layer": layer,
                "limit": rounded(at.limit),
                "predicted": rounded(norm),
                "measured": rounded(report[at.name].frobenius),
            }
            for layer, (at, norm) in zip(LAYERS, predicted.items(), strict=True)
        ]
    return found


def outputs_norm(inputs: Float64[Tensor, "b V"], deviation: float) -> float:
    r"""Predict the root mean square of the norm for the output vectors.

    Different words are orthogonal as inputs, so that at infinite width their hidden vectors are
    orthogonal, too. At the width d they are not: of normal vectors of the deviation s,

    $$E (z_b \cdot z_{b'})^2 = s^4 \bigl( d + (d^2 + d) \, \mathbb 1[b, b' \text{ alike}] \bigr),$$

    and the pairs of different words, which are many, add up. This takes the place of the square of
    the kernel in statement 6.

    Args:
        inputs: one-hot words, shape (B, V).
        deviation: s, of both sides.
    """
    alike = inputs @ inputs.mT
    squares = deviation**4 * (DIMENSION + (DIMENSION**2 + DIMENSION) * alike)
    covariance = deviation**4 * DIMENSION * alike
    source = torch.Generator().manual_seed(0)  # for averages, the same at each call
    logits = output_pairs("cross_entropy", covariance, WORDS, DRAWS, source)
    return float((squares * logits.inner.mean(0)).mean().sqrt())


def full_softmax(deviation: float, seed: int) -> nn.Sequential:
    """Make Word2Vec with a softmax over all words: input vectors, then output vectors."""
    source = generator(seed, "softmax vectors")
    model = nn.Sequential()
    for fan_in, fan_out in ((WORDS, DIMENSION), (DIMENSION, WORDS)):
        # PyTorch's own initialization would draw from the global stream.
        linear = nn.Linear(fan_in, fan_out, bias=False, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            linear.weight.copy_(deviation * torch.randn(fan_out, fan_in, generator=source))
        model.append(linear.double())
    return model
