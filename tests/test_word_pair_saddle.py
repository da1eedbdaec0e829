"""The experiment on Word2Vec's saddle: repeatable, what it says it is, and hard to crash."""

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

from hessinit_book.chapters.word_pair_saddle import figures
from hessinit_book.chapters.word_pair_saddle import run as word_pair_saddle
from hessinit_book.chapters.word_pair_saddle.run import (
    STARTS,
    WordPairSaddleParameters,
    descend,
    start_vectors,
)
from hessinit_book.data.word_pairs import WordTable, draw_counts
from hessinit_book.errors import ParameterError
from hessinit_book.randomness import generator
from hessinit_book.records.records import Record

TINY = {"profile": "smoke", "words": 6, "dimension": 3, "pairs": 500, "topics": 2, "device": "cpu"}


def run(folder: Path, **given: Any) -> list[Record]:
    values = {**TINY, "results_dir": str(folder), **given}
    return word_pair_saddle.run(WordPairSaddleParameters.check(**values))


def table_of(parameters: WordPairSaddleParameters) -> WordTable:
    counts = draw_counts(
        parameters.words, parameters.topics, parameters.pairs, generator(0, "word pairs")
    )
    return WordTable(counts, parameters.negatives)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Records of two seeds."""
    return run(tmp_path_factory.mktemp("found"), seeds=[0, 1])


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Records of steps that are far too long."""
    folder = tmp_path_factory.mktemp("diverged")
    return run(folder, seeds=[0], learning_rate=1e200, rates=[1e200])


# The run


def test_statement_11_check_holds(found: list[Record]) -> None:
    for record in found:
        check = record.values["checks"]["statement_11"]
        assert 0 <= check["value"] <= check["allowed"] == 1e-9


def test_statement_11_check_sees_a_wrong_block(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = WordPairSaddleParameters.check(**TINY)
    right = word_pair_saddle.WordPairs.cross_blocks

    def wrong(pairs: Any, *, curvature: bool = True) -> torch.Tensor:
        return right(pairs, curvature=curvature) * (1 + 1e-8)

    monkeypatch.setattr(word_pair_saddle.WordPairs, "cross_blocks", wrong)
    check = word_pair_saddle.check(parameters, table_of(parameters), seed=0)
    assert check["value"] > check["allowed"]


def test_same_parameters_give_the_same_values(found: list[Record], tmp_path: Path) -> None:
    torch.manual_seed(99)  # must not matter
    before = torch.get_rng_state()
    again = run(tmp_path, seeds=[1, 0])
    assert [record.values for record in again] == [found[1].values, found[0].values]
    assert found[0].values != found[1].values
    assert torch.equal(torch.get_rng_state(), before)


def test_record_has_all_escapes_and_starts(found: list[Record]) -> None:
    for record in found:
        assert len(record.values["escapes"]) == 2 * 3
        assert tuple(record.values["training"]) == STARTS
        for escape in record.values["escapes"].values():
            for way in ("predicted", "descent", "sgd"):
                assert escape[way]["distance"][0] == pytest.approx(escape["scale"], rel=1e-5)
                assert math.isfinite(escape[way]["steps_to_leave"])
                assert len(escape[way]["distance"]) == len(escape["step"])
        for training in record.values["training"].values():
            assert training["steps"][0] == 0
            assert training["steps"][-1] == 40
            assert len(training["loss"]) == len(training["smallest"]) == len(training["steps"])


def test_training_starts_at_the_saddle(found: list[Record]) -> None:
    for record in found:
        training, saddle = record.values["training"]["word2vec"], record.values["saddle"]
        assert training["inputs"][0] == saddle["gradient_inputs"] == 0
        assert training["loss"][0] == pytest.approx(6 * math.log(2), rel=1e-5)
        assert training["smallest"][0] == pytest.approx(saddle["all"]["found"][0], rel=1e-5)
        assert training["smallest"][0] < 0 < training["largest"][0]


def test_smaller_starts_follow_the_prediction_longer(found: list[Record]) -> None:
    """Without noise, the linearized steps are exact from near enough to zero."""
    for record in found:
        for name, escape in record.values["escapes"].items():
            assert escape["scale"] in (0.01, 1.0), name
            if escape["scale"] == 0.01:
                early = np.array(escape["step"]) <= escape["predicted"]["steps_to_leave"] / 2
                np.testing.assert_allclose(
                    np.array(escape["descent"]["distance"])[early],
                    np.array(escape["predicted"]["distance"])[early],
                    rtol=1e-3,
                )


def test_matched_start_has_blocks_like_the_cross_blocks() -> None:
    parameters = WordPairSaddleParameters.check(**TINY)
    table = table_of(parameters)
    small = start_vectors(parameters, table, 0, "both")
    matched = start_vectors(parameters, table, 0, "matched")
    assert small.inputs.abs().max() <= 1 / (2 * parameters.dimension)
    factor = (matched.inputs / small.inputs).mean()
    torch.testing.assert_close(matched.inputs, factor * small.inputs)
    torch.testing.assert_close(matched.outputs, factor * small.outputs)
    norms = small.block_norms()
    # At zero scores, diagonal blocks are quadratic in the scale, cross blocks do not move.
    diagonal = factor**2 * math.hypot(norms.inputs, norms.outputs)
    assert diagonal.item() == pytest.approx(norms.cross_curvature, rel=1e-9)


def test_descent_is_plain() -> None:
    """Two steps written down once more by automatic differentiation."""
    parameters = WordPairSaddleParameters.check(**TINY)
    table = table_of(parameters)
    start = start_vectors(parameters, table, 0, "both")
    vectors = [start.inputs.clone(), start.outputs.clone()]
    *_, last = descend(start, table, 0.7, 2, 10, generator(3, "batches"))
    source = generator(3, "batches")
    for _ in range(2):
        positive, negative = table.batch(10, source)
        inputs, outputs = (x.requires_grad_() for x in vectors)
        scores = inputs @ outputs.mT
        loss = -(positive * scores.sigmoid().log() + negative * (-scores).sigmoid().log()).sum()
        gradients = torch.autograd.grad(loss, [inputs, outputs])
        vectors = [x.detach() - 0.7 * g for x, g in zip(vectors, gradients, strict=True)]
    torch.testing.assert_close([last.inputs, last.outputs], vectors)


def test_divergence_is_an_outcome(diverged: list[Record]) -> None:
    training = diverged[0].values["training"]["word2vec"]
    assert training["loss"][0] == pytest.approx(6 * math.log(2), rel=1e-5)
    assert not math.isfinite(training["loss"][-1])
    assert math.isnan(training["smallest"][-1])


def test_device_without_double_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="device: got 'mps', expected one with double"):
        run(tmp_path, device="mps")
    assert list(tmp_path.iterdir()) == []


# The pairs


def test_counts_follow_frequency_and_topic() -> None:
    counts = draw_counts(4, 2, 200_000, seeded(0)).double()
    assert counts.sum() == 200_000
    # Words 1 and 3 share a topic, 1 and 2 do not: 4 / sqrt(3) against 1 / sqrt(2).
    expected = 4 / math.sqrt(3) * math.sqrt(2)
    assert (counts[0, 2] / counts[0, 1]).item() == pytest.approx(expected, rel=0.03)
    torch.testing.assert_close(counts, counts.mT, rtol=0.1, atol=0)


def test_batches_have_the_mean_of_the_table() -> None:
    table = WordTable(draw_counts(5, 2, 300, seeded(1)), negatives=3)
    positive, negative = table.batch(200_000, seeded(2))
    assert positive.sum().item() == pytest.approx(1)
    assert negative.sum().item() == pytest.approx(3)
    for drawn, mean, negatives in ((positive, table.positive, 1), (negative, table.negative, 3)):
        # Five standard errors; those of counts are about their roots.
        error = 5 * (mean * negatives / 200_000).sqrt() + 1e-4
        assert ((drawn - mean).abs() < error).all()
    torch.testing.assert_close(negative.sum(1), 3 * positive.sum(1))  # centers of the pairs


def test_tables_that_are_refused() -> None:
    with pytest.raises(ValueError, match="counts of sum 0: expected pairs"):
        WordTable(torch.zeros(2, 2, dtype=torch.int64), negatives=1)
    with pytest.raises(ValueError, match="negatives 0: expected 1 or more"):
        WordTable(torch.ones(2, 2, dtype=torch.int64), negatives=0)


# Figures


@pytest.mark.parametrize("which", ["found", "diverged"])
@pytest.mark.parametrize(
    "draw",
    [figures.eigenvalues_at_start, figures.escapes, figures.outputs_first, figures.training],
)
def test_figures(draw: Any, which: str, request: pytest.FixtureRequest) -> None:
    """Any warning is an error, too."""
    drawn: list[Record] = request.getfixturevalue(which)
    figure = draw(drawn)
    figure.savefig(io.BytesIO(), format="svg")
    notes = [text.get_text() for text in figure.texts]
    assert any(note.startswith("synthetic word pairs (SAMPLE, 500 pairs)") for note in notes)
    assert plt.get_fignums() == []


def test_figures_show_the_numbers(found: list[Record]) -> None:
    curve = figures.training(found).axes[0].lines[0]
    losses = [record.values["training"]["word2vec"]["loss"] for record in found]
    np.testing.assert_allclose(curve.get_ydata(), np.median(losses, 0))


def test_summary(found: list[Record]) -> None:
    table = figures.summary(found)
    assert len(table) == 6
    name = "scale_1e+0_rate_2e+0"
    steps = [record.values["escapes"][name]["sgd"]["steps_to_leave"] for record in found]
    assert table.loc[(1.0, 2.0), "SGD [steps]"] == np.median(steps)
    table.to_html()
