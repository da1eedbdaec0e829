"""The experiments on CIFAR-10: records, figures, and what they read off a network."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F

from hessinit_book.chapters.cifar_networks import figures
from hessinit_book.chapters.cifar_networks import run as cifar_networks
from hessinit_book.chapters.cifar_networks import scores as evaluation
from hessinit_book.chapters.cifar_networks.run import (
    CifarNetworksParameters,
    Probe,
    early_loss,
    precision_of,
    summarize,
)
from hessinit_book.chapters.cifar_networks.signal_sizes import probe_loss, signals
from hessinit_book.chapters.cifar_stability import run as cifar_stability
from hessinit_book.chapters.cifar_stability.figures import stable_rates
from hessinit_book.chapters.cifar_stability.run import CifarStabilityParameters
from hessinit_book.drawing.regimes import regimes
from hessinit_book.errors import ParameterError
from hessinit_book.networks import NETWORKS, build
from hessinit_book.networks.starts import weight_layers
from hessinit_book.statistics import families
from hessinit_book.training.images import Images, Progress, Recipe, train
from hessinit_book.training.layer_norms import layer_norms
from hessinit_book.training.step_gain import step_gain
from hessinit_lib import layer_hessians

SMOKE = {"profile": "smoke", "device": "cpu"}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["cnn4", "resnet20_norm"])
def test_probing_leaves_the_network_as_it_is(name: str) -> None:
    model = build(NETWORKS[name], "he", seeded()).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    inputs, labels = torch.rand(6, 3, 32, 32, generator=seeded()), torch.arange(6)
    names = list(weight_layers(model))
    found = layer_norms(model, inputs, labels, names[:2])
    seen = signals(model, inputs, labels, names)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.training
    first = model.get_submodule(names[0].removesuffix(".weight"))(inputs)
    assert seen["activation"][0] == pytest.approx(first.square().mean().sqrt().item(), rel=1e-3)
    # He's own deviation, but for the few weights of small layers.
    assert seen["deviation"] == pytest.approx([1] * len(names), abs=0.15)
    loss = F.cross_entropy(model(inputs), labels)
    assert seen["loss"] == pytest.approx(loss.item(), rel=1e-4)
    loss.backward()
    expected = [model.get_parameter(n).grad.norm().item() for n in names[:2]]
    assert found["gradient"] == pytest.approx(expected, rel=1e-4)
    assert found["exact"]


def test_probed_norms_are_those_of_layer_hessians() -> None:
    model = build(NETWORKS["cnn4"], "he", seeded())
    inputs, labels = torch.rand(6, 3, 32, 32, generator=seeded()), torch.arange(6)
    names = list(weight_layers(model))
    found = layer_norms(model, inputs, labels, names)
    report = layer_hessians(model, F.cross_entropy, inputs, labels)
    assert found["frobenius"] == pytest.approx([report[n].frobenius for n in names], rel=1e-4)


def test_short_steps_gain_what_is_predicted() -> None:
    model = build(NETWORKS["cnn4"], "he", seeded()).double()
    inputs = torch.rand(6, 3, 32, 32, generator=seeded(), dtype=torch.float64)
    gain = step_gain(model, inputs, torch.arange(6), rate=1e-4)
    assert gain["realized"] == pytest.approx(gain["predicted"], rel=1e-3)


def test_early_losses_are_those_of_the_training_to_come() -> None:
    model = build(NETWORKS["cnn4"], "he", seeded())
    model.append(torch.nn.Dropout(0.3))
    before = [value.clone() for value in model.parameters()]
    pixels = torch.randint(256, (40, 3, 32, 32), generator=seeded(), dtype=torch.uint8)
    data = Images(pixels, torch.arange(40) % 10)
    probe = Probe(data.batch(torch.arange(6)), data.labels[:6], [])
    recipe = Recipe(steps=11, batch_size=4, learning_rate=0.05, augment=False)
    torch.manual_seed(3)
    found = early_loss(model, data, recipe, seeded(1), probe)
    assert all(map(torch.equal, before, model.parameters()))
    train(model, data, Recipe(**{**vars(recipe), "steps": 10}), seeded(1))
    assert found == probe_loss(model, probe.inputs, probe.labels)


def test_precision_is_that_of_the_device() -> None:
    """Not all processors are fast in bfloat16."""
    assert precision_of(torch.device("cpu")) == "float32"
    assert precision_of(torch.device("cuda")) == "bfloat16"


def test_summary_of_a_divergence() -> None:
    losses = torch.tensor([2.0] * 10 + [1.0] * 10 + [math.nan] * 5)
    found = summarize(Progress(losses, diverged=True), level=1.5)
    assert found["final_loss"] == math.inf
    assert found["diverged_at"] == 20
    assert found["steps_to_level"] == 16  # six of ten steps at 1: the mean is below 1.5


def test_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "REPETITIONS", 20)
    before = torch.get_rng_state()
    given = {**SMOKE, "results_dir": str(tmp_path)}
    found = cifar_networks.run(CifarNetworksParameters.check(**given))
    assert torch.equal(before, torch.get_rng_state())
    (record,) = found
    assert list(record.values) == ["cnn4", "resnet20_norm"]
    for schemes in record.values.values():
        for values in schemes.values():
            assert values["tracked"]["steps"] == [0, 2, 4]
            assert len(values["tracked"]["frobenius"][0]) == len(values["tracked"]["layers"])
    drawn = figures.norms_at_start(found), figures.loss_curves(found)
    for figure in (*drawn, figures.norms_in_training(found)):
        assert figure.axes[0].lines
    assert len(figures.summary(found)) == 4
    table = evaluation.networks(found)
    assert len(table) == 4
    # He's weights are He's; torch's have a sixth of their variance.
    off = table.groupby("scheme").variance_weights.max()
    assert off["he"] < 0.1 < off["torch"] == pytest.approx(math.log10(6) / 2, abs=0.1)
    assert [*figures.contest_table(found).index] == [*evaluation.FAMILIES.values()]
    assert figures.reading(found).startswith("Nothing can be tested")
    assert not plt.get_fignums()


def test_stability(tmp_path: Path) -> None:
    given = {**SMOKE, "results_dir": str(tmp_path)}
    found = cifar_stability.run(CifarStabilityParameters.check(**given))
    for values in found[0].values["rates"].values():
        assert values["bound"] == pytest.approx(2 / values["sharpness"], rel=1e-4)
        assert values["ratio"] == pytest.approx(values["largest"] / values["bound"], rel=1e-3)
    assert stable_rates(found).axes[0].lines
    assert regimes(found).axes[0].lines


@pytest.mark.parametrize("name", ["batch_size", "probe_size", "sharpness_size"])
def test_more_than_there_is(name: str) -> None:
    with pytest.raises(ParameterError, match=f"{name}: got 2000, expected at most 1500"):
        cifar_stability.run(CifarStabilityParameters.check(**SMOKE, **{name: 2000}))
