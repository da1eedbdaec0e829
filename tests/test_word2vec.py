"""Word2Vec from several starts: gensim's own measures, repeatable runs, and resuming them."""

from __future__ import annotations

import copy
import hashlib
import io
import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from gensim.models import KeyedVectors
from gensim.test.utils import datapath
from networks import seeded

from hessinit_book.chapters.word2vec import figures
from hessinit_book.chapters.word2vec import run as word2vec
from hessinit_book.chapters.word2vec.analogies import Analogies, pack, unpack
from hessinit_book.chapters.word2vec.run import Word2VecParameters
from hessinit_book.chapters.word2vec.similarity import SETS, Similarities
from hessinit_book.chapters.word2vec.verdict import final_difference, token_ratios, verdict
from hessinit_book.data import download
from hessinit_book.data.word_pairs import WordTable
from hessinit_book.errors import DataError, ParameterError
from hessinit_book.records.records import Record
from hessinit_book.statistics.prediction import spearman
from hessinit_book.word2vec.by_gensim import train
from hessinit_book.word2vec.corpora import Corpus, load_corpus
from hessinit_book.word2vec.held_out import HeldOutPairs
from hessinit_book.word2vec.initial_vectors import (
    Start,
    gensim_start,
    matched_deviation,
    word2vec_start,
)
from hessinit_book.word2vec.pairs import draw_negatives, draw_pairs
from hessinit_book.word2vec.recipe import Recipe
from hessinit_book.word2vec.skip_gram_hessian import WordPairs
from hessinit_book.word2vec.vocabulary import Vocabulary

TINY = {"profile": "smoke", "tokens": 12_000, "deviations": [0.1, 1.0], "held_out_pairs": 100}
RECIPE = Recipe(8, window=3, negatives=4, sample=1e-3, learning_rate=0.025, epochs=1, pieces=10)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus("sample", held_out=0.01, tokens=100_000)


@pytest.fixture(scope="module")
def vocabulary(corpus: Corpus) -> Vocabulary:
    return Vocabulary.of(corpus, min_count=2)


@pytest.fixture(scope="module")
def vectors(vocabulary: Vocabulary) -> KeyedVectors:
    """Vectors of gensim's with our vocabulary, which have some structure to find."""
    found = KeyedVectors(8)
    source = seeded(3)
    drawn = torch.randn(len(vocabulary.words), 8, generator=source)
    found.add_vectors(vocabulary.words, drawn.numpy())
    return found


# Corpora


def test_text_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text(" a b a c\n" * 50)
    monkeypatch.setenv("HESSINIT_DATA", str(tmp_path))
    corpus = load_corpus("file:text", held_out=0.1)
    assert corpus.words == ["a", "b", "c"]
    assert (corpus.info.name, corpus.info.kind) == ("text", "full")
    assert (corpus.info.train_size, corpus.info.test_size) == (180, 20)
    np.testing.assert_array_equal([*corpus.train, *corpus.held_out], [0, 1, 0, 2] * 50)
    again = load_corpus(f"file:{tmp_path / 'text'}", held_out=0.5)
    assert again.info.sha256 == corpus.info.sha256  # one text, wherever it lies
    part = load_corpus("file:text", held_out=0.1, tokens=100)
    assert (part.info.kind, part.info.train_size) == ("sample", 90)
    assert part.info.sha256 != corpus.info.sha256


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("wiki", ParameterError, "corpus: got 'wiki', expected 'sample', 'text8' or 'file:PATH'"),
        ("file:none", DataError, "is no readable text"),
        ("file:~nosuchuser/text", DataError, "is no readable text"),
        ("file:zero\0byte", DataError, "is no readable text"),
        ("file:short", DataError, "got 3 tokens, too few to hold out 0.01"),
    ],
)
def test_corpora_that_are_refused(
    spec: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "short").write_text("a b c")
    with pytest.raises(error, match=message):
        load_corpus(spec, held_out=0.01, data_dir=tmp_path)


def test_text8_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HESSINIT_OFFLINE", "1")
    text = b" a" * 60 + b" b" * 40
    (tmp_path / "text8").write_bytes(text)
    with pytest.raises(DataError, match="text8 is another text"):
        load_corpus("text8", held_out=0.1, data_dir=tmp_path)
    monkeypatch.setattr(download, "_TEXT8_MD5", hashlib.md5(text).hexdigest())
    info = load_corpus("text8", held_out=0.1, data_dir=tmp_path).info
    assert (info.name, info.kind, info.train_size, info.test_size) == ("text8", "full", 90, 10)


def test_sample_is_what_gensim_reads() -> None:
    from gensim.corpora import WikiCorpus

    from hessinit_book.word2vec.corpora import _EXTRACT

    corpus = load_corpus("sample", held_out=0.01)
    assert corpus.info.kind == "sample"
    ours = [corpus.words[i] for i in np.concatenate([corpus.train, corpus.held_out])]
    wiki = WikiCorpus(datapath(_EXTRACT), dictionary={}, processes=1)
    import bz2

    from gensim.corpora.wikicorpus import extract_pages, process_article

    with bz2.open(wiki.fname) as file:
        pages = extract_pages(file, wiki.filter_namespaces)
        articles = [
            process_article((text, title, page), wiki.tokenizer_func)[0]
            for title, text, page in pages
        ]
    assert ours == [word for article in articles if len(article) >= 50 for word in article]


# Pairs and the matched start


def test_pairs_and_negatives_follow_gensims_laws(corpus: Corpus, vocabulary: Vocabulary) -> None:
    from gensim.models import Word2Vec

    model = Word2Vec(vector_size=2, sg=1, min_count=1, sample=1e-3)
    counts = dict(zip(vocabulary.words, vocabulary.counts.tolist(), strict=True))
    model.build_vocab_from_freq(dict(reversed(counts.items())))
    assert model.wv.index_to_key == vocabulary.words
    keep = model.wv.expandos["sample_int"] / (2**32 - 1)
    np.testing.assert_allclose(vocabulary.keep(1e-3), keep, rtol=1e-6)
    table = np.diff(model.cum_table, prepend=0) / model.cum_table[-1]
    np.testing.assert_allclose(vocabulary.noise, table, atol=1e-8)

    drawn = draw_negatives(50_000, vocabulary, 4, seeded(0)).flatten()
    share = torch.bincount(drawn, minlength=len(table)) / len(drawn)
    assert np.abs(share.numpy() - table).max() < 5 * math.sqrt(table.max() / len(drawn))


def test_pairs_of_a_short_text() -> None:
    ids = np.array([0, 1, 2, 1, 0, 3], np.int32)
    info = load_corpus("sample", held_out=0.5, tokens=4).info
    corpus = Corpus(["a", "b", "c", "x"], ids, ids, info)
    vocabulary = Vocabulary(["b", "a", "c"], np.array([2, 2, 1]), np.array([1, 0, 2, -1]))
    pairs = draw_pairs(ids, vocabulary, window=1, sample=0.0, source=seeded(0))
    b, a, c = range(3)
    expected = [(b, a), (a, b), (c, b), (b, c), (b, c), (c, b), (a, b), (b, a)]
    assert sorted(map(tuple, pairs.tolist())) == sorted(expected)
    assert Vocabulary.of(corpus, 2).words == ["a", "b"]
    with pytest.raises(DataError, match="no two words occur 9 times"):
        Vocabulary.of(corpus, 9)


def test_windows_are_uniform(corpus: Corpus, vocabulary: Vocabulary) -> None:
    pairs = draw_pairs(corpus.train, vocabulary, window=4, sample=0.0, source=seeded(1))
    tokens = int((vocabulary.ranks[corpus.train] >= 0).sum())
    assert len(pairs) / tokens == pytest.approx(2 * 2.5, rel=0.01)


def test_matched_deviation_matches_blocks() -> None:
    """Against the blocks of a table, with all its pairs and drawn vectors."""
    counts = torch.randint(1, 40, (12, 12), generator=seeded(4))
    table = WordTable(counts, negatives=3)
    words = [str(i) for i in range(12)]
    vocabulary = Vocabulary(words, counts.sum(0).numpy(), np.arange(12))
    each = torch.cartesian_prod(torch.arange(12), torch.arange(12))
    pairs = each.repeat_interleave(counts.flatten(), 0)
    pairs = pairs.repeat(200, 1)  # so many that agreeing pairs are counted well
    std = matched_deviation(pairs, vocabulary, 3, dimension=6)
    diagonal, cross = 0.0, 0.0
    for seed in range(200):
        u = std * torch.randn(2, 12, 6, generator=seeded(seed), dtype=torch.float64)
        tiny = 1e-6  # at zero scores blocks are quadratic in the vectors
        norms = WordPairs(tiny * u[0], tiny * u[1], table.positive, table.negative).block_norms()
        diagonal += (norms.inputs**2 + norms.outputs**2) / tiny**4 / 200
        cross += norms.cross_curvature**2 / 200
    assert diagonal == pytest.approx(cross, rel=0.05)


def test_starts() -> None:
    inputs, outputs = Start("normal", 0.2, 0.4).draw(4000, 10, seed=1)
    assert inputs.std().item() == pytest.approx(0.2, rel=0.02)
    assert outputs.std().item() == pytest.approx(0.4, rel=0.02)
    wide = Start("normal", 0.4, 0.0).draw(4000, 10, seed=1)
    torch.testing.assert_close(wide[0], 2 * inputs)
    assert not wide[1].any()
    uniform, zero = word2vec_start(10).draw(4000, 10, seed=1)
    assert 0.0499 < uniform.abs().max() <= 0.05
    assert not zero.any()


# Training


def follow(corpus: Corpus, vocabulary: Vocabulary, start: Start, **recipe: Any) -> list[Any]:
    seen: list[Any] = []
    chosen = Recipe(**{**vars(RECIPE), **recipe})
    train(
        corpus,
        vocabulary,
        chosen,
        start,
        1,
        lambda done, v, u: seen.append((done, v.clone(), u.clone())),
    )
    return seen


def test_training_is_gensims_own_bit_by_bit(corpus: Corpus, vocabulary: Vocabulary) -> None:
    """The plain way to use gensim, on the same sentences, from its own start."""
    from gensim.models import Word2Vec

    size = RECIPE.tokens(corpus)
    seen = follow(corpus, vocabulary, gensim_start(8), pieces=1)
    text = [corpus.words[i] for i in corpus.train]
    known = [word for word in text if word in vocabulary.places]
    model = Word2Vec(
        vector_size=8, sg=1, window=3, negative=4, min_count=1, workers=1, seed=1, epochs=1
    )
    counts = dict(zip(vocabulary.words, vocabulary.counts.tolist(), strict=True))
    model.build_vocab_from_freq(dict(reversed(counts.items())))
    assert seen[0][1].abs().max() <= 1 / 8  # not word2vec.c's 1 / (2 d)
    assert seen[0][1].abs().max() > 0.99 / 8
    sentences = [text[i : i + 1000] for i in range(0, len(text), 1000)]
    model.train(sentences, total_words=len(text), epochs=1)
    assert torch.equal(seen[-1][1], torch.from_numpy(model.wv.vectors))
    assert torch.equal(seen[-1][2], torch.from_numpy(model.syn1neg))
    assert len(known) < len(text)
    assert size == len(corpus.train) // 10


def test_pieces_are_the_text_and_repeat(corpus: Corpus, vocabulary: Vocabulary) -> None:
    start = Start("normal", 0.1, 0.2)
    seen = follow(corpus, vocabulary, start)
    again = follow(corpus, vocabulary, start)
    assert [done for done, _, _ in seen] == list(range(11))
    drawn = start.draw(len(vocabulary.words), 8, seed=1)
    torch.testing.assert_close(seen[0][1:], drawn, rtol=0, atol=0)
    for one, other in zip(seen, again, strict=True):
        assert torch.equal(one[1], other[1])
        assert torch.equal(one[2], other[2])
    # After the first piece, just its words have moved as inputs.
    piece = vocabulary.ranks[corpus.train[: RECIPE.tokens(corpus)]]
    moved = (seen[1][1] != seen[0][1]).any(1).nonzero().flatten().tolist()
    assert set(moved) <= set(piece.tolist())
    assert len(moved) > 0.9 * len(set(piece.tolist()) - {-1})


# Quality


@pytest.mark.parametrize("name", SETS)
def test_similarity_is_gensims(name: str, vocabulary: Vocabulary, vectors: KeyedVectors) -> None:
    ours = Similarities.load(name, vocabulary)
    _, (theirs, _), missing = vectors.evaluate_word_pairs(datapath(SETS[name]))
    found = spearman(ours.cosines(torch.from_numpy(vectors.vectors)).numpy(), ours.human.numpy())
    assert found == pytest.approx(theirs, abs=1e-6)
    assert 100 * (1 - len(ours.pairs) / ours.total) == pytest.approx(missing)


def test_analogies_are_gensims(vocabulary: Vocabulary) -> None:
    """On vectors that answer some of them: a country's vector is its capital's and a shift."""
    source = seeded(7)
    drawn = torch.randn(len(vocabulary.words), 20, generator=source)
    every = Analogies.load(vocabulary, candidates=3000)
    shift = torch.randn(20, generator=source)
    for a, b, _, _ in every.questions.tolist():
        drawn[b] = drawn[a] + shift + 0.5 * torch.randn(20, generator=source)
    theirs = KeyedVectors(20)
    theirs.add_vectors(vocabulary.words, drawn.numpy())
    share, _ = theirs.evaluate_word_analogies(datapath("questions-words.txt"), restrict_vocab=3000)
    right = every.correct(drawn)
    assert 0.05 < share < 0.95
    assert right.double().mean().item() == pytest.approx(share)
    assert torch.equal(unpack(pack(right), len(right)), right)
    some = Analogies.load(vocabulary, candidates=3000, every=10)
    assert torch.equal(some.correct(drawn), right[::10])


def test_held_out_loss_is_gensims_objective(corpus: Corpus, vocabulary: Vocabulary) -> None:
    pairs = HeldOutPairs(corpus, vocabulary, pairs=50, window=3, sample=1e-3, negatives=4)
    v, u = Start("normal", 0.5, 0.5).draw(len(vocabulary.words), 6, seed=0)
    total = 0.0
    for center, word, negatives in zip(
        pairs.inputs.tolist(), pairs.targets.tolist(), pairs.negatives.tolist(), strict=True
    ):
        total -= math.log(1 / (1 + math.exp(-float(v[center] @ u[word]))))
        for other in negatives:
            if other != word:
                total -= math.log(1 / (1 + math.exp(float(v[center] @ u[other]))))
    assert pairs.loss(v, u) == pytest.approx(total / 50, rel=1e-5)


# The run


def run(folder: Path, **given: Any) -> list[Record]:
    return word2vec.run(Word2VecParameters.check(**{**TINY, "results_dir": str(folder), **given}))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Records of two seeds."""
    return run(tmp_path_factory.mktemp("found"), seeds=[0, 1])


def test_same_parameters_give_the_same_values(found: list[Record], tmp_path: Path) -> None:
    torch.manual_seed(99)  # must not matter
    np.random.seed(99)  # noqa: NPY002 - the global state is what is watched
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    again = run(tmp_path, seeds=[1])
    assert again[0].values == found[1].values
    assert found[0].values["starts"] != found[1].values["starts"]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


def test_interrupted_run_goes_on(
    found: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Start] = []
    right = word2vec.train

    def interrupted(parameters: Any, corpus: Any, start: Start, *rest: Any) -> None:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(start)
        right(parameters, corpus, start, *rest)

    monkeypatch.setattr(word2vec, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, seeds=[0])
    parts = tmp_path / "smoke" / "word2vec" / "parts" / "seed-0"
    assert {path.stem for path in parts.iterdir()} == {"gensim", "matched", "std_1e-1"}

    trained.clear()
    monkeypatch.setattr(word2vec, "train", lambda *a: (trained.append(a[2]), right(*a)))
    (record,) = run(tmp_path, seeds=[0])
    assert [start.law for start in trained] == ["normal"]  # what was left
    assert record.values == found[0].values
    assert [path.name for path in (tmp_path / "smoke" / "word2vec").iterdir()] == ["seed-0.json"]
    # Of other parameters, nothing is taken.
    trained.clear()
    run(tmp_path, seeds=[0], learning_rate=0.05)
    assert len(trained) == 4


def test_record_has_every_start(found: list[Record]) -> None:
    for record in found:
        starts = record.values["starts"]
        assert list(starts) == ["gensim", "matched", "std_1e-1", "std_1e+0"]
        for start in starts.values():
            curve = start["curve"]
            assert curve["tokens"][-1] == 100 * (record.dataset.train_size // 100)
            assert {len(column) for column in curve.values()} == {len(word2vec.CHECKPOINTS)}
            assert curve["held_out"][-1] < curve["held_out"][0]
            asked = record.values["tests"]["analogies"]["asked"]
            assert unpack(start["final"]["analogies"]["right"], asked).shape == (asked,)
        assert starts["gensim"]["curve"]["outputs_rms"][0] == 0


def test_too_short_a_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="corpus: got 54 training tokens, expected 100"):
        run(tmp_path, tokens=60, held_out=0.1)
    with pytest.raises(ParameterError, match="device: got 'cuda', expected cpu"):
        run(tmp_path, device="cuda")
    assert list(tmp_path.iterdir()) == []


# Figures and the verdict


@pytest.mark.parametrize(
    "draw",
    [
        figures.learning_curves,
        figures.tokens_needed,
        figures.final_differences,
        figures.in_a_plane,
    ],
)
def test_figures(draw: Any, found: list[Record]) -> None:
    """Any warning is an error, too."""
    figure = draw(found)
    figure.savefig(io.BytesIO(), format="svg")
    assert any("SAMPLE, 11,880 tokens" in text.get_text() for text in figure.texts)
    assert plt.get_fignums() == []


def test_figures_show_the_numbers(found: list[Record]) -> None:
    curve = figures.learning_curves(found).axes[3].lines[0]
    losses = [record.values["starts"]["gensim"]["curve"]["held_out"] for record in found]
    np.testing.assert_allclose(curve.get_ydata(), np.median(losses, 0)[1:])
    table = figures.summary(found)
    assert table.loc["gensim's own", "held-out loss"].startswith(f"{np.mean(losses, 0)[-1]:.3f} (")
    assert list(figures.neighbors(found).columns) == list(table.index)


def faked(found: list[Record], held_out: list[float]) -> list[Record]:
    """Give records whose held-out curves are lines: gensim's from 4 to 2, the matched one's to
    another end for each seed."""
    faked = []
    for record, end in zip(found, held_out, strict=True):
        values = copy.deepcopy(record.values)
        curve = values["starts"]["matched"]["curve"]
        own = values["starts"]["gensim"]["curve"]["held_out"]
        own[:] = np.linspace(4, 2, len(own)).tolist()
        curve["tokens"] = values["starts"]["gensim"]["curve"]["tokens"] = [*range(len(own))]
        curve["held_out"] = np.linspace(4, end, len(own)).tolist()
        faked.append(record.model_copy(update={"values": values}))
    return faked


def test_tokens_are_compared_at_the_default_quality(found: list[Record]) -> None:
    # From 4 to 0 a line passes 2 half-way; from 4 to 3 never.
    ratios = token_ratios(faked(found, held_out=[0.0, 3.0]), "matched", "held_out")
    assert ratios == [pytest.approx(0.5), math.inf]
    half = token_ratios(faked(found, held_out=[0.0, 3.0]), "matched", "held_out", share=0.5)
    assert half == [pytest.approx(0.5), pytest.approx(2.0)]
    text = verdict(faked(found, held_out=[0.0, 0.0]))
    assert "- `matched`: " in text
    assert "held-out loss: 50.0 % fewer tokens (-50.0 to -50.0 %)" in text
    assert "held-out loss: reached in 1 seeds" in verdict(faked(found, held_out=[0.0, 3.0]))
    assert "held-out loss: not reached" in verdict(faked(found, held_out=[3.0, 3.0]))
    assert text.startswith("**No start reaches the default's final quality")


def test_final_difference(found: list[Record]) -> None:
    same = final_difference(found, "gensim", "simlex999")
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    own, other = (
        np.mean([record.values["starts"][name]["curve"]["simlex999"][-1] for record in found])
        for name in ("gensim", "matched")
    )
    difference = final_difference(found, "matched", "simlex999")
    assert difference.mean == pytest.approx(other - own, abs=1e-3)  # cosines have four digits
    assert difference.low < difference.mean < difference.high
    loss = final_difference(faked(found, held_out=[1.9, 1.7]), "matched", "held_out")
    assert loss.mean == pytest.approx(-0.2)
    assert loss.high == pytest.approx(-0.2 + 12.71 * 0.1, rel=1e-3)
    assert not loss.is_clear
