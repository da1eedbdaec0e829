"""Statement 11: Word2Vec starts beside a saddle. Its eigenvalues, and the steps to leave it.

Skip-gram with negative sampling on a small table of co-occurrences, which is drawn here: the
statement is about the model, not about a language. Everything is in float64, with the loss
per observed pair, so that a step is a batch's mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from tqdm.auto import tqdm

from hessinit_book.data.word_pairs import WordTable, draw_counts
from hessinit_book.errors import ParameterError
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import Count, Deviations, Units
from hessinit_book.randomness import generator
from hessinit_book.records.records import Record
from hessinit_book.records.runs import run_seeds
from hessinit_book.statistics.rounding import rounded
from hessinit_book.word2vec.skip_gram_hessian import (
    WordPairs,
    escape_norms,
    saddle_eigenvalues,
    start_eigenvalues,
)

STARTS = ("word2vec", "both", "matched")
POINTS = 60  # of a recorded escape
SOUND = 1e-9  # relative deviation from dense Hessians that is put down to rounding


class WordPairSaddleParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    Attributes:
        words: size of the vocabulary, of centers and of contexts alike.
        topics: groups of words that occur together.
        pairs: observed pairs in the table.
        dimension: of the vectors.
        negatives: negative samples for each observed pair.
        batch_size: observed pairs a step.
        rates: learning rates of the escapes, on a batch's mean. Word2vec's 0.025 for each
            pair is 0.025 times the batch size.
        scales: of the input vectors in the escapes, in units of word2vec's initialization.
        radius: distance from zero at which the saddle counts as left, in units of the
            distance at which word2vec starts.
        learning_rate: of the longer training from different initializations.
        steps: its steps.
        looks: about how often it is tracked, evenly in the logarithm of the step.
    """

    EXPERIMENT: ClassVar[str] = "word_pair_saddle"
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {"seeds": (0,), "steps": 40, "looks": 6},
        "quick": {"seeds": (0, 1), "steps": 1000, "looks": 30},
        "paper": {"seeds": tuple(range(10)), "steps": 2000, "looks": 40},
    }

    words: Annotated[int, Field(ge=2, le=4000)] = 40
    topics: Count = 4
    pairs: Annotated[int, Field(ge=1, le=10**8)] = 20_000
    dimension: Annotated[Units, Field(ge=2)] = 10
    negatives: Count = 5
    batch_size: Count = 80
    rates: Annotated[tuple[Annotated[float, Field(ge=0.01)], ...], Field(min_length=1)] = (
        *(0.5, 2.0, 8.0),
    )
    scales: Deviations = (0.01, 1.0)
    radius: Annotated[float, Field(gt=1, le=1000)] = 3.0
    learning_rate: Annotated[float, Field(gt=0)] = 2.0
    steps: Count
    looks: Count


def run(parameters: WordPairSaddleParameters) -> list[Record]:
    """Measure the saddle and leave it, for every seed, and give the records.

    All seeds see one table; a seed fixes the vectors at the start and the batches.

    Raises:
        ParameterError: a device without double precision.
        RecordError: a record that is in the way is damaged.
    """
    if parameters.device == "mps":
        raise ParameterError("device: got 'mps', expected one with double precision: cpu or cuda")
    counts = draw_counts(
        parameters.words, parameters.topics, parameters.pairs, generator(0, "word pairs")
    )
    table = WordTable(counts, parameters.negatives)
    variants = {
        (scale, rate): math.ceil(1.4 * typical_steps(parameters, table, scale, rate)) + 2
        for scale in parameters.scales
        for rate in parameters.rates
    }

    def run_one(seed: int, device: torch.device, bar: tqdm) -> dict[str, Any]:
        moved = WordTable(counts.to(device), parameters.negatives)
        return {
            "checks": {"statement_11": check(parameters, moved, seed)},
            "saddle": look_at_saddle(parameters, moved, seed),
            "escapes": {
                escape_name(scale, rate): leave(parameters, moved, seed, scale, rate, steps, bar)
                for (scale, rate), steps in variants.items()
            },
            "training": {start: train(parameters, moved, seed, start, bar) for start in STARTS},
        }

    ticks = 2 * sum(variants.values()) + len(STARTS) * parameters.steps
    return run_seeds(parameters, table.info, run_one, ticks=ticks)


def start_vectors(
    parameters: WordPairSaddleParameters, table: WordTable, seed: int, start: str
) -> WordPairs:
    """Draw the vectors of an initialization.

    - "word2vec": inputs uniform in +-1/(2d), outputs zero.
    - "both": outputs like the inputs.
    - "matched": as "both", scaled by the one factor at which the diagonal blocks have the norm
      of the cross blocks. The norms are taken at zero scores, where they are powers of it.
    """
    source, device = generator(seed, "vectors"), table.positive.device
    shape = (2, parameters.words, parameters.dimension)
    drawn = (torch.rand(shape, generator=source, dtype=torch.float64) - 0.5) / parameters.dimension
    inputs, outputs = drawn.to(device)
    if start == "word2vec":
        outputs = torch.zeros_like(outputs)
    pairs = WordPairs(inputs, outputs, table.positive, table.negative)
    if start != "matched":
        return pairs
    norms = pairs.block_norms()
    factor = math.sqrt(norms.cross_curvature / math.hypot(norms.inputs, norms.outputs))
    return WordPairs(factor * inputs, factor * outputs, table.positive, table.negative)


def most_common(pairs: WordPairs) -> WordPairs:
    """Take the pairs of the first word, which is the most common one, as a center."""
    return WordPairs(pairs.inputs[:1], pairs.outputs, pairs.positive[:1], pairs.negative[:1])


def look_at_saddle(
    parameters: WordPairSaddleParameters, table: WordTable, seed: int
) -> dict[str, Any]:
    """Compute eigenvalues at word2vec's vectors, predicted and found: of one word, and of all."""
    pairs = start_vectors(parameters, table, seed, "word2vec")
    word = most_common(pairs)
    matrix = (table.negative - table.positive) / 2
    left, values, _ = torch.linalg.svd(matrix)
    frequency = table.positive.sum(1)
    topic = torch.arange(parameters.words, device=frequency.device) % parameters.topics
    topics = F.normalize(F.one_hot(topic).mT * frequency, dim=1)
    norms = pairs.block_norms()
    return {
        "word": {
            "predicted": _list(
                start_eigenvalues(word.inputs[0], word.positive[0], word.negative[0])
            ),
            "found": _list(torch.linalg.eigvalsh(word.joint_hessian())),
            "norm_mu": rounded(matrix[0].norm().item()),
        },
        "all": {
            "at_zero": _list(
                saddle_eigenvalues(table.positive, table.negative, parameters.dimension)
            ),
            "found": _list(torch.linalg.eigvalsh(pairs.joint_hessian())),
        },
        "singular_values": _list(values),
        # How alike the first mode is to one that knows frequencies only.
        "frequency_cosine": rounded(abs(float(left[:, 0] @ frequency / frequency.norm()))),
        # And each mode to what knows frequencies and topics.
        "topic_cosines": _list((topics @ left).norm(dim=0)),
        "blocks": {name: rounded(value) for name, value in vars(norms).items()},
        "gradient_inputs": pairs.gradient()[0].norm().item(),
    }


def typical_steps(
    parameters: WordPairSaddleParameters, table: WordTable, scale: float, rate: float
) -> float:
    r"""Predict the steps to leave from the fastest mode alone, before the vectors are drawn.

    $$t = \frac{\log(\sqrt2 R / a)}{\log(1 + \gamma \varsigma_1)}, \quad
      a = \rho / \sqrt{\text{words}},$$

    where the inputs start at the distance $\rho$ from zero, R is the distance to reach, and
    $a^2$ is the mean square of the first component.
    """
    growth = torch.linalg.matrix_norm((table.negative - table.positive) / 2, 2).item()
    factor = math.sqrt(2 * parameters.words) * parameters.radius / scale
    return math.log(max(factor, 1)) / math.log1p(rate * growth)


def leave(
    parameters: WordPairSaddleParameters,
    table: WordTable,
    seed: int,
    scale: float,
    rate: float,
    steps: int,
    bar: tqdm,
) -> dict[str, Any]:
    """Leave the saddle by gradient descent and by SGD, and predict both.

    The input vectors are word2vec's times `scale`, the output vectors zero.

    Returns:
        Steps until the distance from zero is `radius` times that of word2vec's vectors, infinite
        if never, and how far they are behind the prediction; norms against the step.
    """
    drawn = start_vectors(parameters, table, seed, "word2vec")
    unit = drawn.inputs.norm()
    start = WordPairs(scale * drawn.inputs, drawn.outputs, drawn.positive, drawn.negative)
    source = generator(seed, "batches", unit.device)

    norms = {"predicted": torch.stack(escape_norms(start, rate, steps))}
    for way, batches in (("descent", None), ("sgd", source)):
        seen = []
        for pairs in descend(start, table, rate, steps, parameters.batch_size, batches):
            seen.append(torch.stack([pairs.inputs.norm(), pairs.outputs.norm()]))
            bar.update()
        norms[way] = torch.stack(seen, 1)
        bar.update(-1)  # the vectors before the first step are no step

    shown = np.unique(np.linspace(0, steps, POINTS).round().astype(int))
    found: dict[str, Any] = {
        "scale": scale,
        "rate": rate,
        "typical_steps": rounded(typical_steps(parameters, table, scale, rate)),
        "step": shown.tolist(),
    }
    for way, (inputs, outputs) in norms.items():
        distance = torch.hypot(inputs, outputs) / unit
        found[way] = {
            "steps_to_leave": _first(distance >= parameters.radius),
            "steps_of_outputs": _first(outputs >= inputs[0]),
            "distance": _list(distance[shown]),
            "inputs": _list((inputs / unit)[shown]),
            "outputs": _list((outputs / unit)[shown]),
        }
        late = found[way]["steps_to_leave"] - found["predicted"]["steps_to_leave"]
        found[way]["late_by"] = late
    return found


def descend(
    start: WordPairs,
    table: WordTable,
    rate: float,
    steps: int,
    batch_size: int,
    source: torch.Generator | None,
) -> Iterator[WordPairs]:
    """Go down the loss; give the vectors before each step and after the last.

    Each step sees a batch drawn from `source`, or if that is None the table itself.
    """
    pairs = start
    for _ in range(steps):
        yield pairs
        positive, negative = table.positive, table.negative
        if source is not None:
            positive, negative = table.batch(batch_size, source)
        seen = WordPairs(pairs.inputs, pairs.outputs, positive, negative)
        inputs, outputs = (
            vectors - rate * gradient
            for vectors, gradient in zip(
                (pairs.inputs, pairs.outputs), seen.gradient(), strict=True
            )
        )
        pairs = WordPairs(inputs, outputs, table.positive, table.negative)
    yield pairs


def train(
    parameters: WordPairSaddleParameters, table: WordTable, seed: int, start: str, bar: tqdm
) -> dict[str, Any]:
    """Train by SGD from one initialization, and track loss, eigenvalues and norms of blocks."""
    source = generator(seed, "batches", table.positive.device)
    first = start_vectors(parameters, table, seed, start)
    path = descend(
        first, table, parameters.learning_rate, parameters.steps, parameters.batch_size, source
    )
    steps = look_at(parameters.steps, parameters.looks)
    rows: list[dict[str, float]] = []
    for step, pairs in enumerate(path):
        bar.update(step > 0)
        if step in steps:
            rows.append(_look(pairs))
    return {
        "deviation": rounded(first.inputs.std().item()),
        "steps": steps,
        **{name: [rounded(row[name]) for row in rows] for name in rows[0]},
    }


def look_at(steps: int, looks: int) -> list[int]:
    """Choose the steps that are tracked: the first, the last, and more of the early ones.

    Example:
        >>> look_at(100, 6)
        [0, 1, 3, 10, 32, 100]
    """
    spread = np.geomspace(1, steps, max(looks - 1, 2)).round().astype(int)
    return [0, *np.unique(spread).tolist()]


def check(parameters: WordPairSaddleParameters, table: WordTable, seed: int) -> dict[str, Any]:
    """Compare the library with automatic differentiation in float64, at this seed's vectors."""
    start = start_vectors(parameters, table, seed, "word2vec")
    moved = start_vectors(parameters, table, seed, "matched")
    few = slice(0, 4)  # a Hessian of all words would take long by automatic differentiation
    part = WordPairs(
        moved.inputs[few], moved.outputs[few], table.positive[few, few], table.negative[few, few]
    )
    word = most_common(start)
    zero = WordPairs(0 * part.inputs, 0 * part.outputs, part.positive, part.negative)
    saddle = saddle_eigenvalues(zero.positive, zero.negative, parameters.dimension)
    compared = [
        (part.joint_hessian(), dense_hessian(part)),
        (
            start_eigenvalues(word.inputs[0], word.positive[0], word.negative[0]),
            torch.linalg.eigvalsh(dense_hessian(word)),
        ),
        (saddle, torch.linalg.eigvalsh(dense_hessian(zero))),
    ]
    deviations = [
        float((found - dense).abs().max() / dense.abs().max()) for found, dense in compared
    ]
    # Exactly zero at word2vec's initialization.
    deviations += [float(part.abs().max()) for part in (start.gradient()[0], start.input_blocks())]
    return {
        "what": "blocks, saddle eigenvalues and the zeros at word2vec's start against dense "
        "Hessians: largest relative deviation",
        "value": max(deviations),
        "allowed": SOUND,
    }


def dense_hessian(pairs: WordPairs) -> Float[Tensor, "p p"]:
    """Form the Hessian in all vectors by automatic differentiation, p = (c + w) d."""
    centers = len(pairs.inputs)

    def loss(flat: Tensor) -> Tensor:
        vectors = flat.reshape(-1, pairs.inputs.shape[1])
        scores = vectors[:centers] @ vectors[centers:].mT
        return -(
            pairs.positive * F.logsigmoid(scores) + pairs.negative * F.logsigmoid(-scores)
        ).sum()

    return torch.func.hessian(loss)(torch.cat([pairs.inputs, pairs.outputs]).flatten())


def escape_name(scale: float, rate: float) -> str:
    """Name an escape so that a record's key can hold it.

    Example:
        >>> escape_name(0.01, 2.5)
        'scale_1e-2_rate_2_5e+0'
    """
    short = (np.format_float_scientific(x, trim="-", exp_digits=1) for x in (scale, rate))
    return "scale_{}_rate_{}".format(*short).replace(".", "_")


def _look(pairs: WordPairs) -> dict[str, float]:
    """Measure loss, distance from zero, norms of blocks and extreme eigenvalues."""
    found = {
        "loss": pairs.loss().item(),
        "distance": math.hypot(pairs.inputs.norm().item(), pairs.outputs.norm().item()),
        **vars(pairs.block_norms()),
    }
    ends = [math.nan, math.nan]
    if all(map(math.isfinite, found.values())):  # else the eigensolver would refuse
        ends = torch.linalg.eigvalsh(pairs.joint_hessian())[[0, -1]].tolist()
    return {**found, "smallest": ends[0], "largest": ends[1]}


def _first(reached: Tensor) -> float:
    """Give the first step at which something holds; infinite if never."""
    steps = reached.nonzero()
    return float(steps[0]) if len(steps) else math.inf


def _list(values: Tensor) -> list[float]:
    return [rounded(value) for value in values.tolist()]
