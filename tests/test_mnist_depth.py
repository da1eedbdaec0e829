"""Stacked networks train like single ones, and predictors are judged on what they have not seen."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hessinit_book.chapters.mnist_depth import figures, reading
from hessinit_book.chapters.mnist_depth import run as mnist_depth
from hessinit_book.chapters.mnist_depth import scheme_figures as schemes
from hessinit_book.chapters.mnist_depth import schemes as mnist_schemes
from hessinit_book.chapters.mnist_depth import scores as evaluation
from hessinit_book.chapters.mnist_depth.dropout import RULES, try_dropout, variances_of
from hessinit_book.chapters.mnist_depth.initializations import make_network
from hessinit_book.chapters.mnist_depth.predictors import FAMILIES, members
from hessinit_book.chapters.mnist_depth.run import MnistDepthParameters
from hessinit_book.chapters.mnist_depth.stack import Stack
from hessinit_book.chapters.mnist_depth.training import make_task, steps_below, train_all
from hessinit_book.data import load
from hessinit_book.drawing.regimes import regimes
from hessinit_book.networks.dense import dense_network
from hessinit_book.networks.starts import draw_weights
from hessinit_book.records.records import Record
from hessinit_book.statistics import families
from hessinit_book.statistics.families import Score
from hessinit_book.training.cosines import cosine_distance
from hessinit_book.training.step_gain import gradient_and_curvature
from hessinit_lib.init.looks_linear import OUTPUT_RMS


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "REPETITIONS", 20)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("found")
    given = {"profile": "smoke", "seeds": [0, 1], "device": "cpu", "results_dir": str(folder)}
    return mnist_depth.run(MnistDepthParameters.check(**given))


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_stacked_networks_train_like_single_ones(activation: str) -> None:
    schemes = ("he", "torch", "orthogonal")
    networks = [
        draw_weights(dense_network((12, 7, 7, 4), activation), scheme, seeded()).double()
        for scheme in schemes
    ]
    inputs = torch.randn(30, 12, generator=seeded(1), dtype=torch.float64)
    labels = torch.randint(4, (30,), generator=seeded(2))
    order = torch.randint(30, (9, 8), generator=seeded(3))
    rates = torch.tensor([0.1, 0.5, 0.02], dtype=torch.float64)
    curves = Stack(networks, activation).train(inputs, labels, order, rates)
    for network, curve, rate in zip(networks, curves, rates.tolist(), strict=True):
        optimizer = torch.optim.SGD(network.parameters(), rate)
        for step, batch in enumerate(order):
            loss = F.cross_entropy(network(inputs[batch]), labels[batch])
            assert curve[step].item() == pytest.approx(loss.item(), rel=1e-6)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def test_one_network_that_diverges_leaves_the_others_alone() -> None:
    inputs, labels = torch.randn(30, 12, generator=seeded(1)), torch.zeros(30).long()
    order = torch.randint(30, (20, 8), generator=seeded(3))

    def curve(rates: list[float]) -> torch.Tensor:
        networks = [draw_weights(dense_network((12, 7, 4), "relu"), "he", seeded()) for _ in rates]
        return Stack(networks, "relu").train(inputs, labels, order, torch.tensor(rates))[0]

    assert curve([0.1, 1e30]).isfinite().all()
    torch.testing.assert_close(curve([0.1, 1e30]), curve([0.1]))


def test_starts_have_their_deviations() -> None:
    widths, batch = (784, 100, 100, 10), (torch.rand(8, 784), torch.arange(8))
    first = make_network("first_0.3", 0.3, widths, "relu", seeded(), batch)
    every = make_network("all_0.3", 0.3, widths, "tanh", seeded(), batch)
    assert [first[k].weight.std().item() for k in (0, 2)] == pytest.approx(
        [0.3, math.sqrt(2 / 100)], rel=0.03
    )
    assert [every[k].weight.std().item() for k in (0, 2)] == pytest.approx([0.3, 0.3], rel=0.03)


def test_our_start_sets_the_size_of_the_outputs() -> None:
    batch = torch.rand(32, 784, generator=seeded(1)), torch.arange(32) % 10
    start = "looks_linear"
    network = make_network(start, start, (784, 20, 20, 10), "relu", seeded(), batch)
    with torch.no_grad():
        size = network(batch[0]).square().mean().sqrt().item()
    assert size == pytest.approx(OUTPUT_RMS, rel=0.05)


# Dropout


def test_stacked_networks_drop_out_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    network = draw_weights(dense_network((12, 7, 7, 4), "relu"), "he", seeded()).double()
    inputs = torch.randn(30, 12, generator=seeded(1), dtype=torch.float64)
    labels = torch.randint(4, (30,), generator=seeded(2))
    order = torch.randint(30, (5, 8), generator=seeded(3))

    def masks(stream: torch.Generator, batch: int) -> list[torch.Tensor]:
        kept = [torch.rand(batch, 7, generator=stream) >= 0.25 for _ in range(2)]
        return [mask.double() / 0.75 for mask in kept]

    stream, again = seeded(4), seeded(4)
    rate = torch.tensor([0.3], dtype=torch.float64)
    stack = Stack([network], "relu")
    curve = stack.train(inputs, labels, order, rate, masks=partial(masks, stream))[0]

    drawn = iter(())
    drop = nn.Dropout(0.25)
    drop.forward = lambda z: z * next(drawn)
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    single = nn.Sequential(linears[0], nn.ReLU(), drop, linears[1], nn.ReLU(), drop, linears[2])
    optimizer = torch.optim.SGD(single.parameters(), 0.3)
    for step, batch in enumerate(order):
        drawn = iter(masks(again, len(batch)))
        loss = F.cross_entropy(single(inputs[batch]), labels[batch])
        assert curve[step].item() == pytest.approx(loss.item(), rel=1e-6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    expected = single.eval()[6](F.relu(single[3](F.relu(single[0](inputs))))).argmax(1) == labels
    assert stack.accuracies(inputs, labels).item() == pytest.approx(expected.double().mean().item())


def test_norms_with_dropout_grow_by_one_over_p_a_layer_unless_allowed_for() -> None:
    data = load("mnist", sample=True)
    task = make_task(data, torch.device("cpu"), 0, probe_size=64, batch_size=8, steps=3)
    widths, ticks = (784, 100, 100, 100, 10), []
    found = try_dropout(0.5, widths, 0, task, (0.01, 0.1), 1.15, lambda: ticks.append(1))
    he, rescaled, plain = (norms[0] for norms in found["frobenius"])
    # Three layers above the first read dropped-out units.
    assert he / rescaled == pytest.approx(2**3, rel=0.3)
    assert plain / rescaled == pytest.approx(4**3, rel=0.3)
    assert found["starts"] == ", ".join(RULES)
    assert [len(trained["accuracy"]) for trained in found["trained"]] == [3, 3]
    assert len(ticks) == 3
    assert variances_of("plain", widths, 0.5) == [2 / 784, *[4 / 100] * 3]


def test_steps_are_counted_to_the_level() -> None:
    losses = torch.full((3, 30), 2.0)
    losses[0, 12:] = 1.0
    losses[1] = math.nan
    assert steps_below(losses, 1.5) == [18.0, math.inf, math.inf]


def test_early_losses_are_those_on_the_probe_after_ten_steps() -> None:
    data = load("mnist", sample=True)
    task = make_task(data, torch.device("cpu"), 0, probe_size=16, batch_size=8, steps=30)
    network = draw_weights(dense_network((784, 7, 10), "relu"), "he", seeded())
    rates = (0.1, 1e30)
    found = train_all([network], "relu", task, rates, 1.15, lambda: None)
    assert [trained["early_loss"] for trained in found][1] == [math.inf]
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for batch in task.order[:10]:
        optimizer.zero_grad()
        F.cross_entropy(network(task.inputs[batch]), task.labels[batch]).backward()
        optimizer.step()
    inputs, labels = task.probe_batch
    expected = F.cross_entropy(network(inputs), labels).item()
    assert found[0]["early_loss"] == pytest.approx([expected], rel=1e-4)


def test_cosine_distances_are_means_over_pairs() -> None:
    z = 1e-30 * torch.randn(5, 3, 2, generator=seeded())
    z[3] = 0  # a direction of its own
    pairs = [
        F.cosine_similarity(1e30 * z[i].flatten(), 1e30 * z[j].flatten(), dim=0).item()
        for i in range(5)
        for j in range(5)
        if i != j
    ]
    assert cosine_distance(z) == pytest.approx(1 - sum(pairs) / 20, rel=1e-5)
    assert cosine_distance(torch.zeros(4, 3)) == 0


def test_gradient_and_curvature_agree_with_the_dense_hessian() -> None:
    network = draw_weights(dense_network((3, 4, 2), "tanh"), "he", seeded()).double()
    inputs = torch.randn(5, 3, generator=seeded(1), dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0, 1])
    _, gradients, square, curvature = gradient_and_curvature(network, inputs, labels)
    names, values = zip(*network.named_parameters(), strict=True)
    sizes = [value.numel() for value in values]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = [p.view_as(v) for p, v in zip(flat.split(sizes), values, strict=True)]
        found = torch.func.functional_call(network, dict(zip(names, parts, strict=True)), (inputs,))
        return F.cross_entropy(found, labels)

    at = torch.cat([value.detach().flatten() for value in values])
    hessian = torch.func.hessian(loss)(at)
    g = torch.cat([gradient.flatten() for gradient in gradients])
    assert square == pytest.approx((g @ g).item())
    assert curvature == pytest.approx((g @ hessian @ g).item(), rel=1e-9)


def test_record_and_figures(found: list[Record]) -> None:
    table = evaluation.networks(found, rate=0.1)
    starts = len(found[0].values["grid"]["relu"]["depth_2"]["starts"].split(", "))
    assert len(table) == 2 * 3 * 2 * (starts - 1)
    assert len(evaluation.networks(found, rate=0.1, ours=True)) == 2 * 3 * 2 * starts
    assert evaluation.OURS not in set(table.start)
    assert table.groupby("setting").seed.nunique().eq(2).all()
    assert [len(row) for row in table.frobenius] == table.depth.tolist()
    assert found[0].values != found[1].values
    drawn = (figures.outcomes, figures.comparison, regimes, schemes.scheme_losses, schemes.dropout)
    for draw in drawn:
        assert draw(found).axes
    assert schemes.scheme_table(found).shape == (6, 6)
    assert schemes.lead_over_he(found).shape == (6, 5)
    assert schemes.dropout_table(found).shape == (4, 4)
    assert figures.share_that_trains(found).shape == (starts, 6)
    assert len(figures.contest_table(figures.contests(found))) == 2 * 2 * len(FAMILIES)
    assert not plt.get_fignums()


def test_intervals_are_learned_on_one_data_set_and_tested_on_another(found: list[Record]) -> None:
    table = evaluation.networks(found, rate=0.1)
    learn, test = table.copy(), table.loc[table["depth"] == 2].copy()
    test["trains"] = learn["trains"] = table.final_loss < table.final_loss.median()

    def accuracy() -> float:
        return evaluation.transfer(learn, test, ["Hessian"])["Hessian"].estimate().value

    known = accuracy()
    assert known > 0.6
    # What is learned of shapes that the other does not have is of no account.
    learn.loc[learn["depth"] == 3, "trains"] = True
    assert accuracy() == known
    # Nor is what the outcome is there.
    test["trains"] = ~test["trains"]
    assert accuracy() == pytest.approx(1 - known)


def test_starts_are_judged_at_their_best_rate(found: list[Record]) -> None:
    table = mnist_schemes.schemes(found, ["he", "looks_linear"])
    grid = found[1].values["grid"]["relu"]["depth_3"]
    i = grid["starts"].split(", ").index("he")
    losses = {t["learning_rate"]: t["final_loss"][i] for t in grid["trained"]}
    (row,) = table.query("seed == 1 and function == 'relu' and depth == 3 and start == 'he'").iloc
    assert (row.final_loss, row.rate) == min((loss, rate) for rate, loss in losses.items())
    assert len(table) == 2 * 3 * 2 * 2

    gains = mnist_schemes.lead(table, "looks_linear", "he", ["function", "depth"]).gain
    both = table.query("function == 'relu' and depth == 3").pivot(
        index="seed", columns="start", values="final_loss"
    )
    assert gains["relu", 3].mean == pytest.approx((both.he - both.looks_linear).mean())
    table.loc[(table.start == "he") & (table.depth == 3), "final_loss"] = math.inf
    lost = mnist_schemes.lead(table, "looks_linear", "he", ["function", "depth"]).gain
    assert math.isnan(lost["relu", 3].mean)

    dropped = mnist_schemes.with_dropout(found)
    assert len(dropped) == 2 * 2 * 2 * len(RULES)
    assert set(dropped["drop"]) == {0.2, 0.5}
    assert dropped.accuracy.between(0, 1).all()


def test_same_parameters_give_the_same_values(found: list[Record], tmp_path: Path) -> None:
    given = {"profile": "smoke", "device": "cpu", "results_dir": str(tmp_path)}
    before = torch.get_rng_state()
    (again,) = mnist_depth.run(MnistDepthParameters.check(**given))
    assert again.values == found[0].values
    assert torch.equal(before, torch.get_rng_state())


# The contest of numbers


@pytest.mark.parametrize("split", evaluation.SPLITS)
def test_folds_keep_apart(found: list[Record], split: str) -> None:
    parts = evaluation.folds(evaluation.networks(found, rate=0.1), split)
    assert all((learn ^ test).all() for learn, test in parts.values())


def test_the_reading_follows_the_figures(found: list[Record]) -> None:
    said = reading.reading(found, reading.contests(found))
    assert said.startswith("- Nothing can be tested")  # after five steps nobody trains

    def held(own: list[float], other: list[float]) -> list[reading.Contest]:
        scores = {
            family: Score((members(family)[0],), np.array(own if family == "Hessian" else other))
            for family in FAMILIES
        }
        return [reading.Contest(0.1, "depth", scores, ["depth 3"])]

    said = reading.reading(found, held([0.9] * 9, [0.7] * 9))
    assert "accuracy is 0.90 in 1 test; guessing is ruled out in all 1" in said
    assert "**Against variances** (difference +0.20): ahead on another depth (rate 0.1)." in said
    assert "**Left out**: depth 3 (rate 0.1)." in said
    said = reading.reading(found, held([0.5] * 9, [0.7] * 9))
    assert "guessing is ruled out in none of 1" in said
    assert "(difference -0.20): behind on another depth (rate 0.1)." in said
    said = reading.reading(found, held([0.7] * 9, [0.7] * 9))
    assert "no difference is clear" in said
