"""The curvature of Word2Vec's vectors while gensim trains them, and how they leave the saddle."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar

import gensim
import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor
from tqdm.auto import tqdm

from hessinit_book.chapters.word2vec_curvature.blocks import word_curvature
from hessinit_book.chapters.word2vec_curvature.checks import against_gensim, dense_blocks
from hessinit_book.chapters.word2vec_curvature.escape import FastestMode, first_reach
from hessinit_book.chapters.word2vec_curvature.pair_law import PairLaw
from hessinit_book.chapters.word2vec_curvature.softmax import predicted_and_measured
from hessinit_book.errors import ParameterError
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import CorpusName, Count, GensimSeeds, Units
from hessinit_book.randomness import generator
from hessinit_book.records.records import Record
from hessinit_book.records.runs import run_seeds
from hessinit_book.statistics.rounding import rounded
from hessinit_book.word2vec import by_gensim, by_torch
from hessinit_book.word2vec.corpora import Corpus, load_corpus
from hessinit_book.word2vec.held_out import HeldOutPairs
from hessinit_book.word2vec.initial_vectors import (
    Start,
    gensim_start,
    matched_deviation,
    word2vec_start,
)
from hessinit_book.word2vec.pairs import draw_pairs
from hessinit_book.word2vec.recipe import Recipe
from hessinit_book.word2vec.vocabulary import Vocabulary

WINDOW, NEGATIVES, SAMPLE, RATE, MIN_COUNT = 5, 5, 1e-3, 0.025, 5  # gensim's defaults
LOOKS = (0, 1, 2, 5, 10, 20, 50, 100)  # in percent of the training
BANDS = ("common", "middle", "rare")
BATCH = 256  # observed pairs a step of the trainer in torch


class Word2VecCurvatureParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    Attributes:
        device: "cpu", where gensim computes.
        corpus: "sample", "text8" or "file:PATH", see `load_corpus`.
        tokens: use only so many from the start of the corpus; None: all.
        dimension: of the vectors.
        words: centers whose blocks are followed, in each band of frequency.
        escape_tokens: from the start of the text, over which the start is left.
        radii: distances at which the start counts as left, in units of the start's own.
        compared_tokens: from the start of the text, for trainers and other dimensions.
        dimensions: compared with `dimension`.
    """

    EXPERIMENT: ClassVar[str] = "word2vec_curvature"
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {
            "seeds": (0,),
            "tokens": 20_000,
            "dimension": 10,
            "words": 2,
            "escape_tokens": 8000,
            "compared_tokens": 5000,
            "dimensions": (5,),
        },
        "quick": {"seeds": (0,), "tokens": 60_000, "compared_tokens": 20_000, "words": 3},
        "paper": {"seeds": (0, 1, 2), "corpus": "file:wiki8", "tokens": 500_000},
    }

    seeds: GensimSeeds
    device: str = "cpu"
    corpus: CorpusName = "sample"
    tokens: Count | None = None
    dimension: Annotated[Units, Field(ge=2)] = 100
    words: Count = 6
    escape_tokens: Annotated[Count, Field(ge=100)] = 20_000
    radii: Annotated[tuple[Annotated[float, Field(gt=1, le=1000)], ...], Field(min_length=1)] = (
        3.0,
        10.0,
        30.0,
    )
    compared_tokens: Annotated[Count, Field(ge=100)] = 100_000
    dimensions: tuple[Annotated[Units, Field(ge=2)], ...] = (50, 300)

    @field_validator("device")
    @classmethod
    def _where_gensim_computes(cls, value: str) -> str:
        if value != "cpu":
            raise ValueError("cpu, where gensim computes")
        return value


def run(parameters: Word2VecCurvatureParameters) -> list[Record]:
    """Follow the curvature for every seed and give the records.

    Raises:
        DataError: the corpus cannot be had, or is too short.
        ParameterError: no corpus of that name, or fewer tokens in it than a part asks for.
        RecordError: a record that is in the way is damaged.
    """
    text = Text(parameters)
    most = len(text.corpus.train)
    for name in ("escape_tokens", "compared_tokens"):
        if not 100 <= getattr(parameters, name) <= most:
            raise ParameterError(
                f"{name}: got {getattr(parameters, name)}, expected 100 to {most}, "
                "the training tokens"
            )

    def run_one(seed: int, device: torch.device, bar: tqdm) -> dict[str, Any]:
        def ticked(value: Any) -> Any:
            bar.update()
            return value

        return {
            "gensim": gensim.__version__,
            "vocabulary": len(text.vocabulary.words),
            "matched_deviation": text.starts["matched"].inputs,
            "checks": {
                "blocks": ticked(dense_blocks(seed)),
                "gensim": ticked(against_gensim(seed)),
            },
            "softmax": ticked(predicted_and_measured(text.pairs, seed)),
            "escape": {
                name: ticked(leave(text, parameters, text.starts[name], seed))
                for name in ("gensim", "word2vec", "std_1e-2")
            },
            "blocks": {
                name: ticked(follow(text, parameters, text.starts[name], seed))
                for name in ("gensim", "word2vec", "one_sided", "matched", "std_1e+0")
            },
            "trainers": ticked(compare_trainers(text, parameters, seed, device)),
            "dimensions": [
                ticked(compare_starts(text, parameters, seed, dimension))
                for dimension in (*parameters.dimensions, parameters.dimension)
            ],
        }

    ticks = 13 + len(parameters.dimensions)
    return run_seeds(parameters, text.corpus.info, run_one, ticks=ticks)


class Text:
    """A corpus with its vocabulary, the law of its pairs, and what is compared.

    Args:
        parameters: of the experiment.
    """

    def __init__(self, parameters: Word2VecCurvatureParameters) -> None:
        self.corpus = load_corpus(
            parameters.corpus,
            held_out=0.01,
            data_dir=parameters.data_dir,
            tokens=parameters.tokens,
        )
        self.vocabulary = Vocabulary.of(self.corpus, MIN_COUNT)
        self.pairs = self.draw(self.corpus)
        self.law = PairLaw.of(self.pairs, self.vocabulary, NEGATIVES)
        self.held_out = HeldOutPairs(
            self.corpus,
            self.vocabulary,
            pairs=20_000,
            window=WINDOW,
            sample=SAMPLE,
            negatives=NEGATIVES,
        )
        self.starts = self.starts_of(parameters.dimension)

    def draw(self, corpus: Corpus) -> Tensor:
        """Draw the pairs of one pass over a part of the text."""
        source = generator(0, "pairs of the text")
        return draw_pairs(
            corpus.train, self.vocabulary, window=WINDOW, sample=SAMPLE, source=source
        )

    def starts_of(self, dimension: int) -> dict[str, Start]:
        """Give the initializations at a dimension; one-sided: the matched inputs, outputs zero."""
        matched = matched_deviation(self.pairs, self.vocabulary, NEGATIVES, dimension)
        return {
            "gensim": gensim_start(dimension),
            "word2vec": word2vec_start(dimension),
            "one_sided": Start("normal", matched, 0.0),
            "matched": Start("normal", matched, matched),
            "std_1e-2": Start("normal", 0.01, 0.01),
            "std_1e+0": Start("normal", 1.0, 1.0),
        }

    def beginning(self, tokens: int) -> Corpus:
        """Take so many tokens from the start of the training text."""
        return dataclasses.replace(self.corpus, train=self.corpus.train[:tokens])


def recipe(dimension: int, pieces: int, last_rate: float = 1e-4) -> Recipe:
    """Give gensim's defaults."""
    return Recipe(dimension, WINDOW, NEGATIVES, SAMPLE, RATE, 1, pieces, last_rate)


def leave(
    text: Text, parameters: Word2VecCurvatureParameters, start: Start, seed: int
) -> dict[str, Any]:
    """Let gensim leave the saddle, and predict it from the pairs of the same stretch of text.

    The rate stays at its first value, as it all but does in so short a part of a training.
    """
    part, pieces = text.beginning(parameters.escape_tokens), 40
    pairs = text.draw(part)
    mode = FastestMode(PairLaw.of(pairs, text.vocabulary, NEGATIVES))
    seen: list[Tensor] = []

    def look(done: int, inputs: Tensor, outputs: Tensor) -> None:
        seen.append(mode.components(inputs.double(), outputs.double()))

    chosen = recipe(parameters.dimension, pieces, last_rate=RATE)
    by_gensim.train(part, text.vocabulary, chosen, start, seed, look)
    measured = torch.stack(seen).norm(dim=2).numpy()
    # gensim draws windows and common words anew; the number of pairs is that in the mean.
    at = np.linspace(0, len(pairs), pieces + 1)
    predicted = mode.predict(seen[0], RATE, at)
    unit = float(np.hypot(*measured[0]))
    found: dict[str, Any] = {
        "growth": rounded(mode.growth),
        "frequency_cosine": rounded(mode.frequency_cosine),
        "pairs": at.round().astype(int).tolist(),
        "tokens_per_pair": rounded(parameters.escape_tokens / len(pairs)),
    }
    for name, norms in (("measured", measured), ("predicted", predicted)):
        distance = np.hypot(*norms.T) / unit
        found[name] = {
            "inputs": _list(norms[:, 0] / unit),
            "outputs": _list(norms[:, 1] / unit),
            "pairs_to_leave": [rounded(first_reach(at, distance, r)) for r in parameters.radii],
        }
    return found


def follow(
    text: Text, parameters: Word2VecCurvatureParameters, start: Start, seed: int
) -> dict[str, Any]:
    """Let gensim train, and measure the curvature around some words on the way.

    Returns:
        By band of frequency, medians over its words at each look; and the final held-out loss.
    """
    words = centers_of(text, parameters.words, seed)
    looks: dict[str, list[dict[str, float]]] = {band: [] for band in BANDS}
    losses: list[float] = []

    def look(done: int, inputs: Tensor, outputs: Tensor) -> None:
        if done not in LOOKS:
            return
        v, u = inputs.double(), outputs.double()
        for band, centers in words.items():
            found = [vars(word_curvature(text.law, c, v, u)) for c in centers]
            looks[band].append(
                {key: rounded(float(np.median([row[key] for row in found]))) for key in found[0]}
            )
        losses.append(rounded(text.held_out.loss(inputs, outputs)))

    by_gensim.train(
        text.corpus,
        text.vocabulary,
        recipe(parameters.dimension, LOOKS[-1]),
        start,
        seed,
        look,
    )
    columns = {
        band: {key: [row[key] for row in rows] for key in rows[0]} for band, rows in looks.items()
    }
    return {"percent": list(LOOKS), "held_out": losses, **columns}


def centers_of(text: Text, number: int, seed: int) -> dict[str, list[int]]:
    """Choose centers by frequency: up to the rank sqrt(V), up to V^(3/4), and beyond."""
    size = len(text.vocabulary.words)
    edges = [0, round(size**0.5), round(size**0.75), size]
    source = generator(seed, "centers")
    chosen = {}
    for band, low, high in zip(BANDS, edges, edges[1:], strict=False):
        seen = (text.law.centers[low:high] > 0).nonzero().flatten() + low
        order = torch.randperm(len(seen), generator=source)[:number]
        chosen[band] = sorted(seen[order].tolist())
    return chosen


def compare_trainers(
    text: Text, parameters: Word2VecCurvatureParameters, seed: int, device: torch.device
) -> dict[str, float]:
    """Train with gensim and with torch on the same stretch; give the held-out losses."""
    part = text.beginning(parameters.compared_tokens)
    losses: list[float] = []

    def look(done: int, inputs: Tensor, outputs: Tensor) -> None:
        if done in (0, 10):
            losses.append(text.held_out.loss(inputs.cpu(), outputs.cpu()))

    chosen, start = recipe(parameters.dimension, 10), text.starts["matched"]
    by_gensim.train(part, text.vocabulary, chosen, start, seed, look)
    by_torch.train(
        part, text.vocabulary, chosen, start, seed, look, batch_size=BATCH, device=device
    )
    begin, gensims, again, ours = losses
    return {
        "start": rounded(begin),
        "start_of_torch": rounded(again),
        "gensim": rounded(gensims),
        "torch": rounded(ours),
    }


def compare_starts(
    text: Text, parameters: Word2VecCurvatureParameters, seed: int, dimension: int
) -> dict[str, Any]:
    """Train from gensim's initialization and from the matched one at some dimension."""
    part, starts = text.beginning(parameters.compared_tokens), text.starts_of(dimension)
    found: dict[str, Any] = {"dimension": dimension}
    for name in ("gensim", "matched"):
        losses: list[float] = []

        def look(done: int, inputs: Tensor, outputs: Tensor, losses: list[float] = losses) -> None:
            losses.append(text.held_out.loss(inputs, outputs))

        by_gensim.train(part, text.vocabulary, recipe(dimension, 1), starts[name], seed, look)
        found[name] = rounded(losses[-1])
    return {**found, "matched_deviation": rounded(starts["matched"].inputs)}


def _list(values: np.ndarray) -> list[float]:
    return [rounded(value) for value in values.tolist()]
