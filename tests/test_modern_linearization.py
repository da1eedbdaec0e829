"""The experiment that measures the linearization of modern networks, and checks statement 12."""

from __future__ import annotations

import io
import math
from functools import partial
from pathlib import Path
from typing import Any, get_args

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev
from tqdm.auto import tqdm

from hessinit_book.chapters.modern_linearization import checks as modern_checks
from hessinit_book.chapters.modern_linearization import figures
from hessinit_book.chapters.modern_linearization import run as modern
from hessinit_book.chapters.modern_linearization.networks import (
    CLASSES,
    LETTERS,
    Lstm,
    Name,
    fit_statistics,
    make_network,
)
from hessinit_book.chapters.modern_linearization.run import (
    MOMENTS,
    READERS,
    ModernLinearizationParameters,
)
from hessinit_book.drawing.style import data_label
from hessinit_book.errors import ParameterError
from hessinit_book.records.records import Record
from hessinit_book.word2vec import corpora

TEXT = " ".join(["the quick brown fox jumps over the lazy dog", "étude in b", "x2"] * 40).split()
TINY: dict[str, Any] = {
    "profile": "smoke",
    "device": "cpu",
    "networks": ["gpt_tied", "lstm", "vit"],
    "batch_sizes": [2],
    "context": 5,
    "batch_size": 4,
    "steps": 2,
}


def run(folder: Path, **given: Any) -> list[Record]:
    fixed = {**TINY, "results_dir": str(folder)}
    return modern.run(ModernLinearizationParameters.check(**{**fixed, **given}))


@pytest.fixture(autouse=True)
def short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the tests the reading of the whole extract."""
    monkeypatch.setattr(corpora, "_read", lambda spec, folder: ("a short text", iter(TEXT)))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Records of two seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "_read", lambda spec, folder: ("a short text", iter(TEXT)))
        return run(tmp_path_factory.mktemp("found"), seeds=[0, 1])


def test_statement_12_checks_hold_and_see_errors(
    found: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    for record in found:
        entries = record.values["checks"]
        assert list(entries) == [f"statement_12{key}" for key in ("", "_variance", "_bound")]
        assert all(0 <= entry["value"] <= entry["allowed"] for entry in entries.values())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    real = modern_checks._factors

    def off(*given: Any) -> Any:
        factors, roots = real(*given)
        return [factors[0], 1.01 * factors[1]], roots

    monkeypatch.setattr(modern_checks, "_factors", off)
    entries = modern_checks.checks(0, images)
    assert entries["statement_12"]["value"] > 1e-4
    assert entries["statement_12_variance"]["value"] > 1e-4


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("lstm", ["lstm.weight_ih_l0", "lstm.weight_hh_l1"]),
        ("efficientnet", ["blocks.1.gate.squeeze.weight", "blocks.0.depthwise.0.weight"]),
    ],
)
def test_ratios_are_those_of_dense_blocks(name: Name, layers: list[str]) -> None:
    """Networks so small that blocks can be formed."""
    stream = torch.Generator().manual_seed(0)
    if name == "lstm":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Lstm(4).double()
        x, y = torch.randint(0, LETTERS, (2, 3, 4), generator=stream)
    else:
        model = make_network(name, 16, 1, 1, stream).double().eval()
        x = torch.rand(3, 3, 32, 32, generator=stream).double()
        y = torch.tensor([0, 1, 2])
        fit_statistics(model, x)
    measured = modern.measure(model, (x, y))
    values = {key: value.detach() for key, value in model.named_parameters()}
    names = [key for key, value in values.items() if value.ndim > 1]
    buffers = dict(model.named_buffers())
    for layer in layers:

        def outputs(weight: Tensor, layer: str = layer) -> Tensor:
            return functional_call(model, {**values, **buffers, layer: weight}, (x,))

        weight = values[layer]
        whole = hessian(lambda w, f=outputs: modern.mean_loss(f(w), y))(weight)
        whole = whole.reshape(weight.numel(), -1)
        p = outputs(weight).flatten(0, -2).softmax(1)
        curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        jacobian = jacrev(outputs)(weight).reshape(*p.shape, -1)
        kept = torch.einsum("bim,bij,bjn->mn", jacobian, curvature, jacobian) / len(p)
        position, error = names.index(layer), 4 * modern.TOLERANCE
        expected = float(kept.norm() / whole.norm())
        assert measured["linearization"][position] == pytest.approx(expected, rel=error)
        expected = float((whole - kept).norm() / whole.norm())
        assert measured["residual"][position] == pytest.approx(expected, rel=error)


def test_record(found: list[Record]) -> None:
    for record in found:
        networks = record.values["networks"]
        assert list(networks) == TINY["networks"]
        layers = 0
        for network in networks.values():
            names = network["names"]
            layers += sum(name != "head.weight" for name in names)
            for moment in MOMENTS:
                values = network[moment]["b2"]
                assert {len(values[key]) for key in ("linearization", "residual", "stderr")} == {
                    len(names)
                }
                if "head.weight" in names:
                    assert values["linearization"][names.index("head.weight")] == 1
                    assert values["residual"][names.index("head.weight")] == 0
                assert values["smallest"] <= values["median"]
        assert record.values["overview"]["start"]["b2"]["layers"] == layers
    assert "head.weight" not in found[0].values["networks"]["gpt_tied"]["names"]
    assert found[0].values != found[1].values
    assert found[0].dataset.name == "CIFAR-10, a short text"


def test_same_parameters_give_the_same_values(found: list[Record], tmp_path: Path) -> None:
    torch.manual_seed(99)  # must not matter
    before = torch.get_rng_state()
    again = run(tmp_path, seeds=[1], networks=["lstm"])
    assert torch.equal(torch.get_rng_state(), before)
    for name, network in again[0].values["networks"].items():
        assert network == found[1].values["networks"][name]


def test_training_lowers_the_loss() -> None:
    parameters = ModernLinearizationParameters.check(**{**TINY, "steps": 60, "batch_size": 16})
    text = modern.letters(corpora.load_corpus("sample", held_out=0.01))
    model = make_network("lstm", 16, 1, 5, torch.Generator().manual_seed(0))
    streams = [torch.Generator().manual_seed(1), tqdm(disable=True)]
    losses = modern.train(model, parameters, 3e-3, partial(cut, text), *streams)
    assert losses[0] == pytest.approx(math.log(LETTERS), rel=0.05)
    assert losses[-1] < 0.9 * losses[0]


def cut(text: Tensor, size: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    return modern.texts(text, size, 5, stream)


@pytest.mark.parametrize("name", get_args(Name))
def test_networks(name: Name) -> None:
    model = make_network(name, 16, 1, 6, torch.Generator().manual_seed(0))
    read = name in READERS
    inputs = torch.zeros(2, 6, dtype=torch.int64) if read else torch.zeros(2, 3, 32, 32)
    assert model(inputs).shape == ((2, 6, LETTERS) if read else (2, CLASSES))
    if name == "gpt_tied":
        assert model.get_parameter("head.weight") is model.get_parameter("tokens.weight")
    for key, weight in model.named_parameters():
        assert weight.ndim < 2 or figures.kind_of(key)


def test_statistics_are_those_of_the_batch() -> None:
    model = make_network("efficientnet", 16, 1, 6, torch.Generator().manual_seed(0))
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    fit_statistics(model.eval(), images)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert not model.training
    assert all(layer.momentum == 0.1 for layer in norms)
    with torch.no_grad():
        evaluated, trained = model(images), model.train()(images)
    torch.testing.assert_close(evaluated, trained, rtol=0.2, atol=0.05)  # variances by n - 1, n


def test_letters_and_texts() -> None:
    corpus = corpora.load_corpus("sample", held_out=0.01)
    text = modern.letters(corpus)
    start = "the quick brown fox jumps over the lazy dog tude in b x the"
    assert "".join(" abcdefghijklmnopqrstuvwxyz"[i] for i in text[: len(start)]) == start
    inputs, targets = modern.texts(text, 3, 5, torch.Generator().manual_seed(0))
    assert inputs.shape == targets.shape == (3, 5)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"networks": ["gtp"]}, r"networks\[0\]: got 'gtp', expected 'gpt', 'gpt_tied'"),
        ({"width": 20}, "width: got 20, expected a multiple of 16"),
        ({"batch_sizes": [9999]}, "batch_sizes: got 9999, expected at most 1500"),
    ],
)
def test_bad_parameters(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=message):
        run(tmp_path, **given)
    assert list(tmp_path.iterdir()) == []


def test_figure_and_tables_show_the_numbers(found: list[Record]) -> None:
    """Any warning is an error, too."""
    figure = figures.layers_map(found)
    figure.savefig(io.BytesIO(), format="svg")
    assert data_label(found, "training images and words") in [t.get_text() for t in figure.texts]
    assert plt.get_fignums() == []
    line = figure.axes[1].lines[TINY["networks"].index("lstm")]
    rows = [record.values["networks"]["lstm"]["trained"]["b2"] for record in found]
    expected = np.median([row["linearization"][:-1] for row in rows], 0)
    np.testing.assert_allclose(line.get_xdata(), expected)
    medians = np.median([row["median"] for row in rows])
    assert (
        figures.summary(found)
        .loc["LSTM", ("after training", "B = 2")]
        .startswith(f"{medians:.2f} (")
    )
    table = figures.by_kind(found)
    assert table.loc[("LSTM", "head"), ("at the start", "G / H")] == "1.00"
