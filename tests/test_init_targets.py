"""The race of starts: repeatable, fair, and each start is what its name says."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_book.chapters.contest.training import train_any
from hessinit_book.chapters.init_targets import figures
from hessinit_book.chapters.init_targets import run as init_targets
from hessinit_book.chapters.init_targets.gauss_newton_norms import gauss_newton_norms
from hessinit_book.chapters.init_targets.initializers import STARTS, Start, inverse_norms
from hessinit_book.chapters.init_targets.run import InitTargetsParameters
from hessinit_book.errors import ParameterError
from hessinit_book.networks.dense import dense_network
from hessinit_book.records.records import Record, read_all
from hessinit_book.statistics import best_rate as evaluation
from hessinit_book.statistics.intervals import Interval
from hessinit_book.training.batches import independent_batches
from hessinit_book.training.rate_grid import (
    summarize,
    train_dense,
)
from hessinit_lib import layer_hessians
from hessinit_lib.init import apply
from hessinit_lib.init.layers import weight_layers
from tests.networks import labels, seeded

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Records of two seeds and two kinds of networks."""
    return run(tmp_path_factory.mktemp("found"))


def run(folder: Path, **given: Any) -> list[Record]:
    tiny = {
        "profile": "smoke",
        "seeds": [0, 1],
        "activations": ["relu", "tanh"],
        "rates": [0.01, 1e6],
        "steps": 10,
        "width": 8,
        "depths": [3],
        "results_dir": str(folder),
        "device": "cpu",
    }
    return init_targets.run(InitTargetsParameters.check(**{**tiny, **given}))


def start(activation: str, depth: int = 4) -> Start:
    model = dense_network((784, *[12] * (depth - 1), 10), activation)
    apply(model, "he", generator=seeded(0))
    return Start(model, torch.rand(20, 784, generator=seeded(1)), labels(20, 10), seeded(2))


def norms(of: Start, norm: str = "frobenius") -> list[float]:
    return gauss_newton_norms(of.model, of.inputs, of.labels, norm)


# The run


def test_all_starts_are_recorded(found: list[Record]) -> None:
    for record in found:
        assert list(record.values) == ["relu_3", "tanh_3"]
        for network in record.values.values():
            assert list(network) == list(STARTS)
            for values in network.values():
                assert [len(values[key]) for key in ("final", "steps", "diverged")] == [2, 2, 2]
                assert len(values["frobenius"]) == 3
    assert any(v["diverged"][1] for v in found[0].values["relu_3"].values())


def test_same_parameters_give_the_same_values(found: list[Record], tmp_path: Path) -> None:
    before = torch.get_rng_state()
    (again,) = run(tmp_path, seeds=[1], starts=["equal_rows", "mirrored_sized"])
    for network, starts in again.values.items():
        for name, values in starts.items():
            # As text: NaN is not equal to itself.
            assert str(values) == str(found[1].values[network][name])
            assert str(values) != str(found[0].values[network][name])
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_start_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"starts: got .*, expected some of he, orthogonal"):
        InitTargetsParameters.check(profile="smoke", starts=["best"])


# Training


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_stacked_training_is_plain_sgd(activation: str) -> None:
    of = start(activation)
    order = independent_batches(20, 8, 6, seeded(3))
    curve = train_dense(of.model, (0.01, 0.1), [1.0] * 4, of.inputs, of.labels, order)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return of.inputs[order[step]], of.labels[order[step]]

    expected = train_any(of.model, (0.01, 0.1), batch, 6)
    assert torch.allclose(curve, expected, rtol=1e-4)
    assert curve[-1, 1] < curve[0, 1]


def test_multipliers_are_rates_of_layers() -> None:
    of = start("relu", depth=3)
    order = torch.arange(20).repeat(2, 1)
    curve = train_dense(of.model, (0.1,), [0.0, 2.0, 0.0], of.inputs, of.labels, order)
    weight = of.model[2].weight
    loss = F.cross_entropy(of.model(of.inputs), of.labels)
    gradients = torch.autograd.grad(loss, [weight, of.model[2].bias])
    with torch.no_grad():
        for p, g in zip((weight, of.model[2].bias), gradients, strict=True):
            p -= 0.2 * g
        expected = F.cross_entropy(of.model(of.inputs), of.labels)
    assert curve[1, 0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_training_of_any_model_stops_where_it_is_lost() -> None:
    of = start("relu")
    curve = train_any(of.model, (1e9, 0.01), lambda step: (of.inputs, of.labels), 12)
    assert not torch.isfinite(curve[:, 0]).all()
    assert torch.isfinite(curve[:, 1]).all()


def test_summary_counts_steps_and_diverged_runs() -> None:
    falling = torch.cat((torch.full((12,), 3.0), torch.full((20,), 0.5)))
    lost = torch.cat((torch.full((31,), 0.5), torch.tensor([math.nan])))
    high = torch.full((32,), 4.0)
    found = summarize(torch.stack((falling, lost, high), 1), 1.0, 10, 5)
    assert found["steps"] == [21.0, 10.0, math.inf]  # eight of ten at 0.5: a mean of just 1.0
    assert found["diverged"] == [False, True, True]
    assert found["final"][0] == 0.5


# Norms and starts


@pytest.mark.parametrize("norm", ["frobenius", "spectral", "trace"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_norms_against_the_library(activation: str, norm: str) -> None:
    of = start(activation)
    report = layer_hessians(of.model, F.cross_entropy, of.inputs, of.labels)
    expected = [getattr(layer.linearization, norm) for layer in report.values()]
    assert norms(of, norm) == pytest.approx(expected, rel=2e-3)


def test_centered_norms_take_the_batch_mean_out() -> None:
    of = start("relu", depth=3)
    shift = Start(of.model, of.inputs - of.inputs.mean(0), of.labels, of.generator)
    centered = gauss_newton_norms(of.model, of.inputs, of.labels, "trace", centered=True)
    factor = gauss_newton_norms(of.model, of.inputs, of.labels, "trace")[0] / (
        of.inputs.square().sum(1).mean().item()
    )
    # tr A_b hardly differs between samples here.
    assert centered[0] == pytest.approx(
        factor * shift.inputs.square().sum(1).mean().item(), rel=0.05
    )


@pytest.mark.parametrize(
    ("name", "norm"), [("equal_frobenius", "frobenius"), ("equal_spectral", "spectral")]
)
def test_balanced_starts_have_equal_norms_and_the_same_outputs(name: str, norm: str) -> None:
    of = start("relu")
    before = of.model(of.inputs)
    STARTS[name](of)
    values = norms(of, norm)
    assert values == pytest.approx([values[0]] * 4, rel=1e-3)
    assert torch.allclose(of.model(of.inputs), before, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["equal_centered", "equal_later", "equal_rows", "most_gain"])
def test_scales_keep_the_outputs_of_relu_networks(name: str) -> None:
    of = start("relu")
    before, weights = of.model(of.inputs), [w.weight.clone() for w in weight_layers(of.model)]
    STARTS[name](of)
    assert torch.allclose(of.model(of.inputs), before, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(weight_layers(of.model)[0].weight, weights[0], rtol=1e-2)


def test_rows_of_the_whole_hessian_are_balanced() -> None:
    of = start("relu", depth=3)
    STARTS["equal_rows"](of)
    weights = [layer.weight for layer in weight_layers(of.model)]
    loss = F.cross_entropy(of.model(of.inputs), of.labels)
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    rows = torch.zeros(3)
    for _ in range(200):
        v = [torch.randn(w.shape, generator=of.generator) for w in weights]
        products = torch.autograd.grad(gradients, weights, v, retain_graph=True)
        rows += torch.stack([p.square().sum() for p in products])
    rows = rows.sqrt()
    assert (rows.max() / rows.min()).item() < 1.5


def test_most_gain_raises_the_predicted_gain() -> None:
    def gain(of: Start) -> float:
        weights = [layer.weight for layer in weight_layers(of.model)]
        loss = F.cross_entropy(of.model(of.inputs), of.labels)
        g = torch.autograd.grad(loss, weights, create_graph=True)
        inner = torch.stack([(a * a.detach()).sum() for a in g]).sum()
        hg = torch.autograd.grad(inner, weights)
        square = sum(a.square().sum().item() for a in g)
        return square**2 / sum((a * b).sum().item() for a, b in zip(g, hg, strict=True))

    of = start("relu")
    before = gain(of)
    STARTS["most_gain"](of)
    assert gain(of) > 1.03 * before


def test_gain_of_a_layer_does_not_depend_on_scales() -> None:
    """What the page derives: |g_k|^4 / g_k . H g_k stays if the product of scales does."""

    def gains(of: Start) -> list[float]:
        weights = [layer.weight for layer in weight_layers(of.model)]
        loss = F.cross_entropy(of.model(of.inputs), of.labels)
        g = torch.autograd.grad(loss, weights, create_graph=True)
        found = []
        for weight, part in zip(weights, g, strict=True):
            (hg,) = torch.autograd.grad(part, weight, part.detach(), retain_graph=True)
            found.append(part.square().sum().item() ** 2 / (part * hg).sum().item())
        return found

    of = start("relu")
    before = gains(of)
    STARTS["equal_frobenius"](of)
    assert gains(of) == pytest.approx(before, rel=1e-3)


def test_other_starts() -> None:
    of = start("relu")
    STARTS["all_one"](of)
    assert norms(of) == pytest.approx([1.0] * 4, rel=0.05)
    of = start("tanh")
    STARTS["zero_last"](of)
    assert not of.model[6].weight.any()
    of = start("tanh")
    STARTS["narrow_last"](of)
    assert of.model[6].weight.std().item() == pytest.approx(1 / 12, rel=0.2)
    of = start("relu")
    STARTS["centered_biases"](of)
    z = of.inputs
    for module in of.model:
        z = module(z)
        if isinstance(module, nn.Linear):
            assert z.mean(0).abs().max() < 1e-4
    assert np.prod(inverse_norms(of)) == pytest.approx(1, rel=1e-6)
    of = start("relu")
    STARTS["mirrored"](of)
    x, y = of.inputs[:5], of.inputs[5:10]
    assert torch.allclose(of.model(x - y), of.model(x) - of.model(y), atol=1e-4)


# Figures


@pytest.mark.parametrize("experiment", ["init_targets", "contest"])
def test_the_text_takes_its_numbers_at_the_best_rate(experiment: str) -> None:
    text = (ROOT / "notebooks" / f"{experiment}.ipynb").read_text(encoding="utf-8")
    key = rf"paper/{experiment} values\.(\w+)\.(\w+)\.(?:final|steps|diverged)\.(\d+)"
    full_scale = read_all(ROOT / "results", "paper", experiment)
    for network, start, rate in re.findall(key, text):
        best = evaluation.best_rate(full_scale, network, start)
        assert int(rate) == best, f"{network}, {start}"


def test_what_the_text_says_of_equal_norms() -> None:
    shown = read_all(ROOT / "results", "paper", "init_targets")
    names = ["equal_frobenius", "equal_spectral", "equal_centered", "equal_later", "equal_rows"]
    for network in shown[0].values:
        he = evaluation.at_best_rate(shown, network, "he", "final")
        found = [
            Interval.of((evaluation.at_best_rate(shown, network, name, "final") - he).tolist())
            for name in names
        ]
        assert all(difference.mean > 0 for difference in found)
        if network.startswith("tanh"):
            assert all(difference.low > 0 for difference in found)
    assert not evaluation.at_best_rate(shown, "relu_30", "mirrored_sized", "diverged").any()
    best = evaluation.best_rate(shown, "relu_30", "most_gain")
    assert best == 0  # "even at the smallest rate"


def test_figures_are_drawn_from_the_best_rate(found: list[Record]) -> None:
    assert evaluation.best_rate(found, "relu_3", "he") == 0
    finals = evaluation.at_best_rate(found, "relu_3", "he", "final")
    assert list(finals) == [r.values["relu_3"]["he"]["final"][0] for r in found]
    figure = figures.final_losses(found)
    assert len(figure.axes) == 2
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list(figures.LABELS.values())
    plt.close(figure)
    table = figures.summary(found, "tanh_3")
    assert list(table.index) == list(figures.LABELS.values())
    assert set(figures.LABELS) == set(STARTS)


def test_a_start_without_a_label_is_shown_under_its_own_name(found: list[Record]) -> None:
    mine = {
        network: {
            "he": starts["he"],
            "mine": starts["he"],
            "mirrored_sized": starts["mirrored_sized"],
        }
        for network, starts in found[0].values.items()
    }
    records = [found[0].model_copy(update={"values": mine})]
    figure = figures.final_losses(records)
    drawn = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    plt.close(figure)
    assert drawn == ["He", "mine", figures.LABELS["mirrored_sized"]]
    assert "mine" in figures.summary(records, "tanh_3").index
    for starts in mine.values():
        del starts["he"]
    assert set(figures.summary(records, "tanh_3")["less He's"]) == {"-"}
