"""Word2Vec by torch: as good as by gensim, in large batches, and without gensim."""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import seeded

from hessinit_book.chapters.word2vec import run as word2vec
from hessinit_book.chapters.word2vec.run import Word2VecParameters
from hessinit_book.errors import ParameterError
from hessinit_book.word2vec import by_gensim, by_torch
from hessinit_book.word2vec.corpora import Corpus, load_corpus
from hessinit_book.word2vec.held_out import HeldOutPairs
from hessinit_book.word2vec.initial_vectors import Start, gensim_start
from hessinit_book.word2vec.recipe import OnPiece, Recipe
from hessinit_book.word2vec.vocabulary import Vocabulary
from hessinit_lib.errors import UserError

RECIPE = Recipe(16, window=5, negatives=5, sample=1e-3, learning_rate=0.025, epochs=1, pieces=10)
BOOK = Path(word2vec.__file__).parents[2]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus("sample", held_out=0.02, tokens=60_000)


@pytest.fixture(scope="module")
def vocabulary(corpus: Corpus) -> Vocabulary:
    return Vocabulary.of(corpus, min_count=5)


@pytest.fixture(scope="module")
def judge(corpus: Corpus, vocabulary: Vocabulary) -> HeldOutPairs:
    return HeldOutPairs(corpus, vocabulary, pairs=3000, window=5, sample=1e-3, negatives=5)


def gained(judge: HeldOutPairs, train: Callable[[OnPiece], None]) -> float:
    """Give by how much a training lowers the held-out loss [nat]."""
    losses: dict[int, float] = {}

    def look(done: int, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        if done in (0, RECIPE.pieces):
            losses[done] = judge.loss(inputs, outputs)

    train(look)
    return losses[0] - losses[RECIPE.pieces]


@pytest.mark.parametrize("start", [gensim_start(16), Start("normal", 0.1, 0.1)], ids=str)
def test_torch_learns_what_gensim_learns(
    start: Start, corpus: Corpus, vocabulary: Vocabulary, judge: HeldOutPairs
) -> None:
    """On the held-out text it gains nine tenths: gensim sees each pair after the one before.

    The bound leaves half of that shortfall for luck. The batch has the share of the text that the
    default one has of 100 MB, and common words occur more often in it than they may take steps.
    """
    everything = corpus, vocabulary, RECIPE, start, 0
    theirs = gained(judge, lambda look: by_gensim.train(*everything, look))
    ours = gained(
        judge,
        lambda look: by_torch.train(
            *everything, look, batch_size=256, device=torch.device("cpu"), most=word2vec.MOST_STEPS
        ),
    )
    assert theirs > 0.8
    assert ours > 0.8 * theirs


def test_large_batches_do_not_overshoot(
    corpus: Corpus, vocabulary: Vocabulary, judge: HeldOutPairs
) -> None:
    """Without the bound, a common word takes hundreds of steps at once, and the vectors diverge."""
    longer = dataclasses.replace(RECIPE, epochs=5)
    everything = corpus, vocabulary, longer, Start("normal", 0.1, 0.1), 0

    def gain(most: int | None) -> float:
        options: dict[str, Any] = {"device": torch.device("cpu"), "most": most}
        options["batch_size"] = 16_384  # the default
        return gained(judge, lambda look: by_torch.train(*everything, look, **options))

    assert gain(word2vec.MOST_STEPS) > 0.8
    assert not gain(None) > 0


@pytest.mark.parametrize(("most", "steps"), [(None, 64), (100, 64), (8, 8), (1, 1)])
def test_a_vector_takes_at_most_so_many_steps(most: int | None, steps: int) -> None:
    start = torch.randn(2, 5, 3, generator=seeded(0), dtype=torch.float64)
    pair, negatives = torch.tensor([[0, 1]]), torch.tensor([[2, 1]])  # the second does not count
    once, often = start.clone(), start.clone()
    by_torch.step(*once, pair, negatives, 0.1)
    repeated = pair.expand(64, -1), negatives.expand(64, -1)
    by_torch.step(*often, *repeated, 0.1, most=most)
    moved = once - start
    assert moved[0, 0].norm() > 0.01
    torch.testing.assert_close((often - start)[0, 0], steps * moved[0, 0])
    torch.testing.assert_close((often - start)[1, 2], steps * moved[1, 2])
    torch.testing.assert_close((often - start)[1, 1], steps * moved[1, 1])


def test_only_the_trainer_of_gensim_needs_gensim() -> None:
    needing = {
        path.relative_to(BOOK).as_posix()
        for folder in ("word2vec", "chapters/word2vec")
        for path in (BOOK / folder).glob("*.py")
        for node in ast.parse(path.read_bytes()).body
        if isinstance(node, ast.Import | ast.ImportFrom) and "gensim" in _imported(node)
    }
    assert needing == {"word2vec/by_gensim.py"}


def _imported(node: ast.Import | ast.ImportFrom) -> set[str]:
    names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
    return {str(name).partition(".")[0] for name in names}


@pytest.mark.parametrize("sets", [True, False])
def test_a_machine_without_gensim(
    sets: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sets of judged words are taken from the folder of data; without them the rest is told."""
    monkeypatch.setitem(sys.modules, "gensim", None)
    drawn = np.random.default_rng(0).zipf(1.5, 20_000) % 50
    (tmp_path / "text").write_text(" ".join(f"w{i}" for i in drawn))
    if sets:
        (tmp_path / "wordsim353.tsv").write_text("# pairs\nW1\tw2\t7.5\nw2\tw3\t1\nw1\tnone\t2\n")
        (tmp_path / "questions-words.txt").write_text(": kind\nw1 w2 w3 w4\n")
    given = {
        **{"profile": "smoke", "trainer": "torch", "deviations": [0.1], "batch_pairs": 4096},
        **{"data_dir": str(tmp_path), "results_dir": str(tmp_path / "r"), "held_out_pairs": 50},
    }
    (record,) = word2vec.run(Word2VecParameters.check(corpus="file:text", **given))
    assert "gensim" not in record.values
    assert record.parameters["trainer"] == "torch"
    assert record.values["tests"]["wordsim353"]["total"] == 3 * sets
    assert record.values["tests"]["wordsim353"]["human"] == [7.5, 1.0] * sets
    assert record.values["tests"]["analogies"]["total"] == sets
    curve = record.values["starts"]["std_1e-1"]["curve"]["held_out"]
    assert curve[-1] < curve[0] - 0.1
    with pytest.raises(UserError, match="Word2Vec needs gensim"):
        word2vec.run(Word2VecParameters.check(corpus="sample", **given))
    with pytest.raises(UserError, match="Word2Vec needs gensim"):
        word2vec.run(Word2VecParameters.check(corpus="file:text", **{**given, "trainer": "gensim"}))


def test_the_trainer_says_where_it_computes() -> None:
    with pytest.raises(ParameterError, match="got 'cuda', expected cpu, where gensim computes; tr"):
        Word2VecParameters.check(device="cuda")
    assert Word2VecParameters.check(device="cuda", trainer="torch").device == "cuda"
    with pytest.raises(ParameterError, match="trainer: got 'tensorflow', expected 'gensim' or 'to"):
        Word2VecParameters.check(trainer="tensorflow")
    # Records of gensim's training are as they were before there was another trainer.
    named = {"trainer", "batch_pairs"}
    assert not named & Word2VecParameters.check().bearing().keys()
    assert named <= Word2VecParameters.check(trainer="torch").bearing().keys()
