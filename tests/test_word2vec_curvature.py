"""Word2Vec's curvature and its escape: against dense Hessians, dense laws, and gensim."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from networks import seeded

from hessinit_book.chapters.word2vec_curvature import (
    checks as word2vec_curvature_checks,
)
from hessinit_book.chapters.word2vec_curvature import figures
from hessinit_book.chapters.word2vec_curvature import (
    run as word2vec_curvature,
)
from hessinit_book.chapters.word2vec_curvature.blocks import joint_hessian, word_curvature
from hessinit_book.chapters.word2vec_curvature.escape import FastestMode
from hessinit_book.chapters.word2vec_curvature.pair_law import PairLaw
from hessinit_book.chapters.word2vec_curvature.run import Text, Word2VecCurvatureParameters
from hessinit_book.chapters.word2vec_curvature.softmax import predicted_and_measured
from hessinit_book.errors import ParameterError
from hessinit_book.records.records import Record
from hessinit_book.word2vec import by_torch
from hessinit_book.word2vec.pairs import counted
from hessinit_book.word2vec.skip_gram_hessian import WordPairs, escape_norms
from hessinit_book.word2vec.vocabulary import Vocabulary

TINY = {"profile": "smoke", "tokens": 10_000, "escape_tokens": 3000, "compared_tokens": 1500}


@pytest.fixture
def law() -> PairLaw:
    pairs = torch.randint(0, 6, (80, 2), generator=seeded(0))
    counts = torch.bincount(pairs[:, 1], minlength=6).numpy()
    vocabulary = Vocabulary([str(i) for i in range(6)], counts, np.arange(6))
    return PairLaw.of(pairs, vocabulary, negatives=3)


def dense(law: PairLaw) -> tuple[torch.Tensor, torch.Tensor]:
    positive = torch.zeros(6, 6, dtype=torch.float64)
    positive[law.met[:, 0], law.met[:, 1]] = law.shares
    return positive, law.negatives * torch.outer(law.centers, law.noise)


def drawn(seed: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    v, u = scale * torch.randn(2, 6, 4, generator=seeded(seed), dtype=torch.float64)
    return v, u


# The law of the pairs, and blocks


def test_rows_columns_and_products_are_those_of_the_table(law: PairLaw) -> None:
    positive, negative = dense(law)
    v, u = drawn(1)
    for i in range(6):
        torch.testing.assert_close(law.center(i, v, u).positive[0], positive[i])
        torch.testing.assert_close(law.center(i, v, u).negative[0], negative[i])
        torch.testing.assert_close(law.word(i, v, u).positive[:, 0], positive[:, i])
        torch.testing.assert_close(law.word(i, v, u).negative[:, 0], negative[:, i])
    matrix = (negative - positive) / 2
    y = torch.randn(6, generator=seeded(2), dtype=torch.float64)
    torch.testing.assert_close(law.times(y), matrix @ y)
    torch.testing.assert_close(law.times(y, transposed=True), matrix.mT @ y)
    left, values, right = torch.linalg.svd(matrix)
    growth, p, q = law.fastest_mode()
    assert growth == pytest.approx(values[0].item(), rel=1e-9)
    torch.testing.assert_close(
        torch.outer(p, q), torch.outer(left[:, 0], right[0]), atol=1e-5, rtol=0
    )


def test_blocks_check_holds_and_sees_a_wrong_block(monkeypatch: pytest.MonkeyPatch) -> None:
    check = word2vec_curvature_checks.dense_blocks(seed=1)
    assert 0 <= check["value"] <= check["allowed"] == 1e-9
    right = word2vec_curvature_checks.joint_hessian
    monkeypatch.setattr(
        word2vec_curvature_checks, "joint_hessian", lambda *a: (1 + 1e-8) * right(*a)
    )
    assert word2vec_curvature_checks.dense_blocks(seed=1)["value"] > check["allowed"]


def test_gensim_check_holds_and_sees_another_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    check = word2vec_curvature_checks.against_gensim(seed=5)
    assert 0 < check["value"] <= check["allowed"] == 1e-6
    assert check["pairs"] > 50
    # gensim's table is coarse, and a little off: far more than what is allowed above.
    assert check["with_exact_sigmoid"]["objective"] > 1e-3
    right = by_torch.step

    def wrong(*given: Any, **options: Any) -> None:
        right(*given[:4], 1.001 * given[4], **options)

    monkeypatch.setattr(by_torch, "step", wrong)
    assert word2vec_curvature_checks.against_gensim(seed=5)["value"] > check["allowed"]


def test_curvature_at_the_saddle(law: PairLaw) -> None:
    v, _ = drawn(3, scale=1e-5)
    at = word_curvature(law, 2, v, torch.zeros_like(v))
    assert at.inputs == at.gradient == 0
    assert at.smallest == pytest.approx(at.predicted, rel=1e-6)
    assert at.cross == at.cross_curvature > 0
    away = word_curvature(law, 2, *drawn(3))
    assert away.inputs > 0
    assert away.cross != away.cross_curvature


def test_joint_hessian_is_a_part_of_the_whole(law: PairLaw) -> None:
    v, u = drawn(4)
    whole = WordPairs(v, u, *dense(law)).joint_hessian()
    both = [*range(4, 8), *range(24 + 12, 24 + 16)]
    torch.testing.assert_close(joint_hessian(law, 1, 3, v, u), whole[both][:, both])


def test_escape_is_the_slow_limit_of_gradient_descent(law: PairLaw) -> None:
    """Against the prediction of all modes, at a rate so small that steps are a flow."""
    positive, negative = dense(law)
    left, _, right = torch.linalg.svd((negative - positive) / 2)
    # Vectors that lie in the fastest mode alone.
    v = torch.outer(left[:, 0], torch.arange(1.0, 5.0, dtype=torch.float64))
    u = torch.outer(right[0], torch.tensor([0.5, 0.0, -1.0, 2.0], dtype=torch.float64))
    mode, rate, steps = FastestMode(law), 1e-3, 2000
    expected = torch.stack(escape_norms(WordPairs(v, u, positive, negative), rate, steps), 1)
    found = mode.predict(mode.components(v, u), rate, np.arange(steps + 1.0))
    np.testing.assert_allclose(found, expected, rtol=1e-3)


# The trainer in torch


def test_step_is_the_gradient_of_the_loss() -> None:
    v, u = drawn(5)
    pairs = torch.randint(0, 6, (40, 2), generator=seeded(6))
    negatives = torch.randint(0, 6, (40, 3), generator=seeded(7))
    assert not counted(pairs[:, 1], negatives).all()
    both = [v.clone().requires_grad_(), u.clone().requires_grad_()]
    gradients = torch.autograd.grad(by_torch.loss(*both, pairs, negatives), both)
    by_torch.step(v, u, pairs, negatives, 0.1)
    torch.testing.assert_close(v, both[0].detach() - 0.1 * gradients[0])
    torch.testing.assert_close(u, both[1].detach() - 0.1 * gradients[1])


# The run


def run(folder: Path, **given: Any) -> list[Record]:
    values = {**TINY, "results_dir": str(folder), **given}
    return word2vec_curvature.run(Word2VecCurvatureParameters.check(**values))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Records of two seeds."""
    return run(tmp_path_factory.mktemp("found"), seeds=[0, 1])


def test_record(found: list[Record]) -> None:
    for record in found:
        values = record.values
        for check in values["checks"].values():
            assert check["value"] <= check["allowed"]
        for name in ("gensim", "word2vec"):
            blocks = values["blocks"][name]["common"]
            assert blocks["inputs"][0] == blocks["gradient"][0] == 0
            assert blocks["gradient"][-1] > 0
            assert blocks["smallest"][0] == pytest.approx(blocks["predicted"][0], rel=0.2)
        assert values["blocks"]["matched"]["common"]["inputs"][0] > 0.1
        for name, start in values["escape"].items():
            assert start["measured"]["outputs"][0] == start["predicted"]["outputs"][0], name
            # The output vectors leave first, as predicted, within the noise of so few pairs.
            early, expected = (
                math.log(start[way]["pairs_to_leave"][0]) for way in ("measured", "predicted")
            )
            assert early == pytest.approx(expected, abs=0.7)
        trainers = values["trainers"]
        assert trainers["gensim"] < trainers["start"] == trainers["start_of_torch"]
        assert trainers["torch"] == pytest.approx(trainers["gensim"], rel=0.2)
        assert [row["dimension"] for row in values["dimensions"]] == [5, 10]


def test_same_parameters_give_the_same_values(found: list[Record], tmp_path: Path) -> None:
    torch.manual_seed(99)  # must not matter
    before = torch.get_rng_state()
    again = run(tmp_path, seeds=[1])
    assert again[0].values == found[1].values
    assert found[0].values["escape"] != found[1].values["escape"]
    assert torch.equal(torch.get_rng_state(), before)


def test_softmax_prediction() -> None:
    text = Text(Word2VecCurvatureParameters.check(**TINY))
    for row in predicted_and_measured(text.pairs, seed=3):
        assert row["predicted"] == pytest.approx(row["measured"], rel=0.2)


@pytest.mark.parametrize("name", ["escape_tokens", "compared_tokens"])
def test_part_longer_than_the_text_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=f"{name}: got 99000, expected 100 to 9900"):
        run(tmp_path, **{name: 99_000})
    with pytest.raises(ParameterError, match="device: got 'cuda', expected cpu, where gensim"):
        run(tmp_path, device="cuda")
    assert list(tmp_path.iterdir()) == []


# Figures


@pytest.mark.parametrize("draw", [figures.escapes, figures.curvature, figures.full_softmax])
def test_figures(draw: Any, found: list[Record]) -> None:
    """Any warning is an error, too."""
    figure = draw(found)
    figure.savefig(io.BytesIO(), format="svg")
    assert any("SAMPLE, 9,900 tokens" in text.get_text() for text in figure.texts)
    assert plt.get_fignums() == []


def test_tables(found: list[Record]) -> None:
    table = figures.leaving(found)
    key = "values.escape.gensim.measured.pairs_to_leave.0"
    pairs = [record.values["escape"]["gensim"]["measured"]["pairs_to_leave"][0] for record in found]
    assert table.loc[("gensim's own", 3), "gensim [pairs]"] == f"{np.median(pairs):,.0f}", key
    assert figures.checks(found)["holds"].all()
    assert list(figures.dimensions(found).index) == [5, 10]
    assert len(figures.final_losses(found)) == 5
