"""Word2Vec, initialized in six ways: what quality costs in tokens, on real text.

gensim trains, or torch on a GPU: the same objective and laws, in batches of pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from tqdm.auto import tqdm

from hessinit_book.chapters.word2vec.analogies import Analogies, pack
from hessinit_book.chapters.word2vec.neighbors import in_a_plane, nearest
from hessinit_book.chapters.word2vec.similarity import SETS, Similarities
from hessinit_book.errors import ParameterError
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import (
    CorpusName,
    Count,
    Deviations,
    GensimSeeds,
    Rate,
    Threshold,
    Units,
)
from hessinit_book.randomness import generator
from hessinit_book.records.machine import choose_device
from hessinit_book.records.records import Record
from hessinit_book.records.runs import Parts, clear_parts, run_seeds
from hessinit_book.statistics.prediction import spearman
from hessinit_book.statistics.rounding import rounded
from hessinit_book.word2vec import by_torch, import_gensim
from hessinit_book.word2vec.corpora import Corpus, load_corpus
from hessinit_book.word2vec.held_out import HeldOutPairs
from hessinit_book.word2vec.initial_vectors import Start, gensim_start, matched_deviation
from hessinit_book.word2vec.pairs import draw_pairs
from hessinit_book.word2vec.recipe import OnPiece, Recipe
from hessinit_book.word2vec.vocabulary import Vocabulary

# Where the learning curve is measured, in percent of the training: early ones more closely.
CHECKPOINTS = (0, 1, 2, 3, 5, 8, 12, 20, 30, 40, 50, 60, 70, 80, 90, 100)
CURVE_QUESTIONS = 40  # each fortieth analogy at a checkpoint, all of them at the end
MATCHED_TOKENS = 1_000_000  # so much of the text gives the deviation of matched blocks
MOST_STEPS = 32  # that torch lets a word's vector take in a batch


class Word2VecParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    Attributes:
        trainer: "gensim", on the CPU, or "torch".
        device: where torch computes; of gensim, and by default, "cpu".
        batch_pairs: observed pairs of a step of torch's.
        corpus: "sample", "text8" or "file:PATH", see `load_corpus`.
        tokens: use only so many from the start of the corpus; None: all.
        held_out: share of the tokens, at the end, that is kept for the held-out loss.
        held_out_pairs: pairs that the held-out loss is averaged over.
        min_count: rarer words are dropped.
        dimension: of the vectors.
        deviations: of the components of input and output vectors, in the normal initializations.
        window: largest distance of a pair.
        negatives: negative samples for each pair.
        sample: threshold of the subsampling of common words.
        learning_rate: at the start; it falls linearly to 0.0001.
        epochs: passes over the text.
        candidates: words that may answer an analogy, the most common ones.
    """

    EXPERIMENT: ClassVar[str] = "word2vec"
    LATER: ClassVar[Mapping[str, Any]] = {"trainer": "gensim", "batch_pairs": 16_384}
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {"seeds": (0,), "tokens": 30_000, "dimension": 10, "held_out_pairs": 500},
        "quick": {"seeds": (0,)},
        "paper": {"seeds": (0, 1, 2), "corpus": "file:wiki8"},
    }

    seeds: GensimSeeds
    device: str = "cpu"
    corpus: CorpusName = "sample"
    tokens: Count | None = None
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.01
    held_out_pairs: Count = 20_000
    min_count: Count = 5
    dimension: Annotated[Units, Field(ge=2)] = 100
    deviations: Deviations = (0.01, 0.1, 0.3, 1.0)
    window: Annotated[int, Field(ge=1, le=1000)] = 5
    negatives: Annotated[int, Field(ge=1, le=1000)] = 5
    sample: Threshold = 1e-3
    learning_rate: Annotated[Rate, Field(le=1000)] = 0.025  # larger ones crash gensim
    epochs: Count = 1
    candidates: Count = 30_000
    trainer: Literal["gensim", "torch"] = "gensim"
    batch_pairs: Count = 16_384

    @classmethod
    def check(cls, /, **given: Any) -> Word2VecParameters:
        """Check parameters, see `Parameters.check`; gensim computes on the CPU."""
        found = super().check(**given)
        if found.trainer == "gensim" and found.device != "cpu":
            raise ParameterError(
                f"device: got {found.device!r}, expected cpu, where gensim computes; "
                "trainer 'torch' computes on any"
            )
        return found


def run(parameters: Word2VecParameters) -> list[Record]:
    """Train from every initialization for every seed and give the records.

    An initialization that is done is kept, see `Parts`: an interrupted run goes on with the next.

    Raises:
        DataError: the corpus cannot be had, or is too short.
        ParameterError: no corpus of that name, or a text too short for as many checkpoints.
        UserError: gensim is asked for, or its extract of Wikipedia, and not installed.
        RecordError: a record that is in the way is damaged.
    """
    if parameters.trainer == "gensim" or parameters.corpus == "sample":
        import_gensim()
    corpus = load_corpus(
        parameters.corpus,
        held_out=parameters.held_out,
        data_dir=parameters.data_dir,
        tokens=parameters.tokens,
    )
    recipe = recipe_of(parameters)
    if recipe.tokens(corpus) < 1:
        raise ParameterError(
            f"corpus: got {len(corpus.train)} training tokens, expected {recipe.pieces} or more"
        )
    vocabulary = Vocabulary.of(corpus, parameters.min_count)
    deviation = matched(parameters, corpus, vocabulary)
    starts = variants(parameters, deviation)
    tests = Measures(parameters, corpus, vocabulary, choose_device(parameters.device))
    made_by = {"gensim": import_gensim().__version__} if parameters.trainer == "gensim" else {}

    def run_one(seed: int, device: torch.device, bar: tqdm) -> dict[str, Any]:
        parts, done = Parts(parameters, corpus.info, seed, device), bar.n
        found = {}
        for number, (name, start) in enumerate(starts.items(), start=1):
            bar.set_postfix_str(f"seed {seed}, {name}")
            found[name] = parts.get(
                name, lambda start=start: follow(parameters, corpus, start, seed, tests, bar)
            )
            bar.update(done + number * recipe.pieces - bar.n)  # where it was read
        return {
            **made_by,
            "vocabulary": len(vocabulary.words),
            "matched_deviation": rounded(deviation),
            "tests": tests.sizes(),
            "starts": found,
        }

    records = run_seeds(parameters, corpus.info, run_one, ticks=len(starts) * recipe.pieces)
    clear_parts(parameters)
    return records


def recipe_of(parameters: Word2VecParameters) -> Recipe:
    """Take from the parameters how to train."""
    return Recipe(
        dimension=parameters.dimension,
        window=parameters.window,
        negatives=parameters.negatives,
        sample=parameters.sample,
        learning_rate=parameters.learning_rate,
        epochs=parameters.epochs,
        pieces=CHECKPOINTS[-1],
    )


def variants(parameters: Word2VecParameters, deviation: float) -> dict[str, Start]:
    """Name the initializations.

    Args:
        parameters: of the experiment.
        deviation: at which the blocks are matched, see `matched_deviation`.

    Example:
        >>> list(variants(Word2VecParameters.check(profile="smoke"), 0.2))
        ['gensim', 'matched', 'std_1e-2', 'std_1e-1', 'std_3e-1', 'std_1e+0']
    """
    named = {
        "gensim": gensim_start(parameters.dimension),
        "matched": Start("normal", deviation, deviation),
    }
    for std in parameters.deviations:
        short = np.format_float_scientific(std, trim="-", exp_digits=1)
        # A dot would split a record's key.
        named[f"std_{short.replace('.', '_')}"] = Start("normal", std, std)
    return named


def matched(parameters: Word2VecParameters, corpus: Corpus, vocabulary: Vocabulary) -> float:
    """Compute the deviation of the matched initialization from the beginning of the text."""
    pairs = draw_pairs(
        corpus.train[:MATCHED_TOKENS],
        vocabulary,
        window=parameters.window,
        sample=parameters.sample,
        source=generator(0, "matched deviation"),
    )
    return matched_deviation(pairs, vocabulary, parameters.negatives, parameters.dimension)


class Measures:
    """All that tells how good vectors are, the same for every initialization and seed.

    Args:
        parameters: of the experiment.
        corpus: the text, whose held-out part is used.
        vocabulary: of the corpus.
        device: where the vectors lie that are tested.

    Attributes:
        vocabulary: of the vectors that are tested.
        device: see above.
    """

    def __init__(
        self,
        parameters: Word2VecParameters,
        corpus: Corpus,
        vocabulary: Vocabulary,
        device: torch.device,
    ) -> None:
        self.vocabulary, self._candidates = vocabulary, parameters.candidates
        self.device, folder = device, parameters.data_dir
        self._held_out = HeldOutPairs(
            corpus,
            vocabulary,
            pairs=parameters.held_out_pairs,
            window=parameters.window,
            sample=parameters.sample,
            negatives=parameters.negatives,
            device=device,
        )
        self._similarities = {name: Similarities.load(name, vocabulary, folder) for name in SETS}
        most = parameters.candidates
        self._some, self._all = (
            Analogies.load(vocabulary, candidates=most, every=every, data_dir=folder)
            for every in (CURVE_QUESTIONS, 1)
        )

    def sizes(self) -> dict[str, Any]:
        """Say what the vocabulary has of each set, and what people judged."""
        return {
            **{
                name: {"total": pairs.total, "human": pairs.human.tolist()}
                for name, pairs in self._similarities.items()
            },
            "analogies": {"total": self._all.total, "asked": len(self._all.questions)},
            "held_out": {"pairs": len(self._held_out.targets)},
        }

    def point(self, inputs: Float[Tensor, "V d"], outputs: Float[Tensor, "V d"]) -> dict[str, Any]:
        """Measure a point of the learning curve."""
        return {
            **{
                name: spearman(pairs.cosines(inputs).numpy(), pairs.human.numpy())
                for name, pairs in self._similarities.items()
            },
            "analogies": float(self._some.correct(inputs).double().mean()),
            "held_out": self._held_out.loss(inputs, outputs),
            "inputs_rms": float(inputs.square().mean().sqrt()),
            "outputs_rms": float(outputs.square().mean().sqrt()),
        }

    def final(self, inputs: Float[Tensor, "V d"]) -> dict[str, Any]:
        """Give every answer of trained vectors, and what people look at."""
        right = self._all.correct(inputs)
        return {
            **{
                name: [round(cosine, 4) for cosine in pairs.cosines(inputs).tolist()]
                for name, pairs in self._similarities.items()
            },
            "analogies": {"share": rounded(float(right.double().mean())), "right": pack(right)},
            "neighbors": nearest(inputs, self.vocabulary, candidates=self._candidates),
            "plane": in_a_plane(inputs, self.vocabulary),
        }


def follow(
    parameters: Word2VecParameters,
    corpus: Corpus,
    start: Start,
    seed: int,
    tests: Measures,
    bar: tqdm,
) -> dict[str, Any]:
    """Train from one initialization and measure on the way."""
    recipe = recipe_of(parameters)
    curve: list[dict[str, Any]] = []
    final: dict[str, Any] = {}

    def look(done: int, inputs: Tensor, outputs: Tensor) -> None:
        bar.update(done > 0)
        if done in CHECKPOINTS:
            curve.append(tests.point(inputs, outputs))
        if done == recipe.pieces:
            final.update(tests.final(inputs))

    train(parameters, corpus, start, seed, tests, look)
    return {
        "law": start.law,
        "inputs": rounded(start.inputs),
        "outputs": rounded(start.outputs),
        "curve": {
            "tokens": [done * recipe.tokens(corpus) for done in CHECKPOINTS],
            **{name: [rounded(point[name]) for point in curve] for name in curve[0]},
        },
        "final": final,
    }


def train(
    parameters: Word2VecParameters,
    corpus: Corpus,
    start: Start,
    seed: int,
    tests: Measures,
    look: OnPiece,
) -> None:
    """Train as the parameters say, by gensim or by torch."""
    recipe = recipe_of(parameters)
    if parameters.trainer == "gensim":
        from hessinit_book.word2vec import by_gensim

        by_gensim.train(corpus, tests.vocabulary, recipe, start, seed, look)
        return
    by_torch.train(
        corpus,
        tests.vocabulary,
        recipe,
        start,
        seed,
        look,
        batch_size=parameters.batch_pairs,
        device=tests.device,
        most=MOST_STEPS,
    )
