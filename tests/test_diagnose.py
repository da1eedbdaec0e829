"""The experiment: repeatable, what it trains and scales is what it says, figures of any run."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hessinit_book.chapters.diagnose import figures
from hessinit_book.chapters.diagnose import run as experiment
from hessinit_book.chapters.diagnose.run import DiagnoseParameters, make, standardized, tokens
from hessinit_book.data import load
from hessinit_book.networks.gpt import Gpt
from hessinit_book.randomness import generator
from hessinit_book.records.records import Record, read_all
from hessinit_lib.diagnosis import diagnose

TINY = {
    "networks": ["squeezenet"],
    "trained": ["squeezenet"],
    "steps": 2,
    "batch_size": 4,
    "learning_rates": [0.01, 0.1],
    "factors": [1.0, 100.0],
}
PROBE = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8)


def run(folder: Path, **given: Any) -> list[Record]:
    common = {"profile": "smoke", "device": "cpu", "results_dir": str(folder)}
    return experiment.run(DiagnoseParameters.check(**{**common, **TINY, **given}))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return run(tmp_path_factory.mktemp("found"), seeds=[0, 1])


def test_repeatable_and_global_state_left_alone(found: list[Record], tmp_path: Path) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    (again,) = run(tmp_path, seeds=[1])
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(again.values) == repr(found[1].values)  # by text: NaN is not itself
    assert repr(found[0].values) != repr(found[1].values)


def test_values_are_those_of_the_pieces(found: list[Record]) -> None:
    images, labels = load("cifar10", sample=True).tensors("train")
    order = torch.randperm(len(images), generator=generator(0, "batches"))
    values = found[0].values
    x, y = standardized(images[order[:4]]), labels[order[:4]]
    expected = diagnose(make("squeezenet", 0, (x, y)), F.cross_entropy, x, y, curvature="none")
    kept = values["networks"]["squeezenet"]
    assert kept["loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert kept["gain"] == pytest.approx([layer.gain for layer in expected.layers], rel=1e-3)
    first = [curve[0] for curve in values["losses"]["squeezenet"]]
    assert first == [pytest.approx(expected.loss, rel=1e-3)] * 2  # of the start, at any rate
    assert values["named"]["relu"] == {"right": [0.0, 1.0], "any": [0.0, 1.0]}
    assert standardized(images[:4]).std().item() == pytest.approx(1, rel=1e-5)


def test_broken_and_mended_differ_in_their_weights_alone() -> None:
    broken, mended = make("vgg11_broken", 3, PROBE), make("vgg11_mended", 3, PROBE)
    for ours, theirs in zip(broken.modules(), mended.modules(), strict=True):
        if isinstance(ours, nn.Conv2d | nn.Linear):
            fan_in = ours.weight[0].numel()
            assert ours.weight.std().item() * (3 * fan_in) ** 0.5 == pytest.approx(1, rel=0.05)
            assert theirs.weight.std().item() * (fan_in / 2) ** 0.5 == pytest.approx(1, rel=0.05)
            assert not theirs.bias.any()


def test_the_text_says_what_full_scale_records_show() -> None:
    shown = read_all(Path(__file__).resolve().parent.parent / "results", "paper", "diagnose")
    losses = figures.final_losses(shown)
    guess = round(math.log(10), 2)
    at_most = "most over seeds"
    ours, he = (figures.TITLES[name] for name in ("vgg11_looks_linear", "vgg11_mended"))
    assert losses.loc[(ours, 0.03), at_most] < guess - 0.05
    assert losses.loc[(he, 0.03), at_most] >= guess - 0.05
    assert losses.loc[(ours, 0.003), "least over seeds"] < losses.loc[(he, 0.003), at_most]
    for rate in (0.003, 0.03):
        assert losses.loc[(ours, rate), "largest"] < losses.loc[(he, rate), "largest"]
    for record in shown:
        faulty = [name for name, row in record.values["networks"].items() if row["faults"]]
        assert faulty == ["vgg11_broken"]


def test_our_start_mends_what_is_broken() -> None:
    broken, ours = make("vgg11_broken", 3, PROBE), make("vgg11_looks_linear", 3, PROBE)
    assert [type(m) for m in broken.modules()] == [type(m) for m in ours.modules()]
    assert diagnose(broken, F.cross_entropy, *PROBE, curvature="none").verdict == "vanishing"
    found = diagnose(ours, F.cross_entropy, *PROBE, curvature="none")
    assert found.faults == ()
    assert found.loss == pytest.approx(math.log(10), rel=0.2)


def test_gpt_looks_only_back_and_starts_as_it_says() -> None:
    model = Gpt(11, 9, 16, 4, 2, torch.Generator().manual_seed(0))
    words = torch.arange(9)[None]
    changed = words.clone()
    changed[0, 5] = 10
    same = (model(words) == model(changed)).all(-1)[0]
    assert same.tolist() == [True] * 5 + [False] * 4
    assert model.blocks[0].up.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.blocks[1].down.weight.std().item() == pytest.approx(0.01, rel=0.1)
    with pytest.raises(ValueError, match="heads 3: expected a divisor of the width 16"):
        Gpt(11, 9, 16, 3, 2, torch.Generator())


@pytest.mark.parametrize("draw", [figures.sizes, figures.losses, figures.named])
def test_figures(draw: Any, found: list[Record]) -> None:
    figure = draw(found)
    figure.savefig(io.BytesIO(), format="svg")
    assert figure.legends[0].get_texts()
    assert plt.get_fignums() == []


def test_tables(found: list[Record]) -> None:
    table = figures.summary(found)
    assert table.loc["SqueezeNet", "verdict"] == "balanced"
    assert table.loc["SqueezeNet", "seeds with a fault"] == 0
    losses = figures.final_losses(found).loc[("SqueezeNet", 0.1)]
    curves = [record.values["losses"]["squeezenet"][1] for record in found]
    assert losses["largest"] == pytest.approx(np.median(np.max(curves, 1)), abs=0.006)
    assert losses["mean of the last 2 steps"] == pytest.approx(
        np.median(np.mean(curves, 1)), abs=0.006
    )


def test_tokens_are_what_follows() -> None:
    read, follow = tokens(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(read[:, 1:], follow[:, :-1])
    assert read.min() >= 0
    assert read.max() < 16


def test_loss_of_tokens_is_the_mean_over_positions() -> None:
    logits, follow = torch.randn(2, 5, 7), torch.arange(10).view(2, 5) % 7
    expected = F.cross_entropy(logits.transpose(1, 2), follow)
    torch.testing.assert_close(experiment.token_loss(logits, follow), expected)
