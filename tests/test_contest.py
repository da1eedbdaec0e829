"""The contest: every scheme on every kind of network, on the same terms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from hessinit_lib.errors import DataError, ParameterError
from hessinit_lib.experiments import contest
from hessinit_lib.experiments.contest import ContestParameters, entrants
from hessinit_lib.experiments.contest_networks import Gpt, resnet, vgg
from hessinit_lib.experiments.contest_schemes import SCHEMES
from hessinit_lib.experiments.contest_text import draw_text, read_text
from hessinit_lib.figures import contest as figures
from hessinit_lib.init.branches import residual_branches
from hessinit_lib.init.trace import trace
from hessinit_lib.records import Record
from tests.networks import seeded

QUICK = ["torch", "fixup", "hessian"]


def run(folder: Path, **given: Any) -> list[Record]:
    tiny = {
        "profile": "smoke",
        "schemes": QUICK,
        "networks": ["tanh_30", "resnet", "vgg", "gpt"],
        "width": 4,
        "blocks": 1,
        "steps": 10,
        "final_steps": 5,
        "batch_size": 8,
        "context": 4,
        "results_dir": str(folder),
        "device": "cpu",
    }
    return contest.run(ContestParameters.check(**{**tiny, **given}))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return run(tmp_path_factory.mktemp("found"), seeds=[0, 1])


def test_every_network_has_its_entrants(found: list[Record]) -> None:
    for record in found:
        assert record.dataset.kind == "sample"
        assert record.dataset.name == "MNIST, CIFAR-10, drawn letters"
        for network, values in record.values.items():
            expected = QUICK if network == "resnet" else ["torch", "hessian"]
            assert list(values) == expected
            for scheme in values.values():
                assert len(scheme["final"]) == 1
                assert scheme["cost"] > 0
    assert found[0].values["resnet"]["fixup"]["first_loss"] == pytest.approx(math.log(10), rel=1e-3)


def test_same_seed_gives_the_same_losses(found: list[Record], tmp_path: Path) -> None:
    before = torch.get_rng_state()
    (again,) = run(tmp_path, seeds=[1], networks=["resnet", "gpt"])
    for network, values in again.values.items():
        for scheme, row in values.items():
            assert row["final"] == found[1].values[network][scheme]["final"]
    assert torch.equal(torch.get_rng_state(), before)


def test_all_schemes_take_part() -> None:
    parameters = ContestParameters.check(profile="smoke")
    assert entrants(parameters, "resnet") == list(SCHEMES)
    assert entrants(parameters, "gpt") == [name for name in SCHEMES if name != "fixup"]
    with pytest.raises(ParameterError, match=r"schemes: got .*, expected some of torch, lecun"):
        ContestParameters.check(profile="smoke", schemes=["mine"])
    with pytest.raises(ParameterError, match=r"networks\[0\]: got 'lstm'"):
        ContestParameters.check(profile="smoke", networks=["lstm"])


@pytest.mark.parametrize(
    ("model", "inputs", "branches"),
    [
        (resnet(3, 8), torch.rand(2, 3, 16, 16), 3),
        (vgg(1, 8), torch.rand(2, 3, 16, 16), 0),
        (Gpt(27, 2, 8, 2, 6), torch.zeros(2, 6, dtype=torch.long), 4),
    ],
)
def test_networks(model: nn.Module, inputs: torch.Tensor, branches: int) -> None:
    assert len(residual_branches(trace(model, inputs))) == branches
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_gpt_does_not_look_ahead() -> None:
    model = Gpt(27, 2, 8, 2, 6)
    text = torch.randint(27, (1, 6), generator=seeded(0))
    changed = text.clone()
    changed[0, 4] = (text[0, 4] + 1) % 27
    assert torch.allclose(model(text)[:4], model(changed)[:4])
    assert not torch.allclose(model(text)[4:], model(changed)[4:])


def test_text(tmp_path: Path) -> None:
    (tmp_path / "text8").write_text(" anarchism z", encoding="ascii")
    text, info = read_text(tmp_path)
    assert text.tolist() == [0, 1, 14, 1, 18, 3, 8, 9, 19, 13, 0, 26]
    assert (info.name, info.kind, info.train_size) == ("text8", "full", 12)
    (tmp_path / "text8").write_text("Capital", encoding="ascii")
    with pytest.raises(DataError, match="expected nothing but small letters and spaces"):
        read_text(tmp_path)
    with pytest.raises(DataError, match="no text8 or wiki8 in"):
        read_text(tmp_path / "nowhere")
    assert draw_text(seeded(1))[1].sha256 == draw_text(seeded(1))[1].sha256


def test_figures(found: list[Record]) -> None:
    figure = figures.final_losses(found)
    visible = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title() for ax in visible] == [
        figures.NETWORKS[network] for network in found[0].values
    ]
    plt.close(figure)
    table = figures.standings(found, "resnet")
    assert list(table.index) == [figures.LABELS[name] for name in QUICK]
    verdicts = figures.verdicts(found)
    assert set(verdicts["verdict"]) <= {"first", "tied", "behind"}
    assert set(figures.verdicts(found[:1])["verdict"]) == {"one seed"}
    steps = figures.verdicts(found, "steps")
    assert set(steps["verdict"]) == {"tied"}  # nobody gets there in so few
    assert set(steps["ours"]) == {"10"}
    assert set(figures.LABELS) == set(SCHEMES)


def test_verdict_is_paired_by_seeds(found: list[Record]) -> None:
    def shifted(by: list[float]) -> list[Record]:
        rows = []
        for seed, shift in enumerate(by):
            base = {"steps": [1.0], "diverged": [False], "cost": 1.0}
            values = {
                "vgg": {
                    "torch": {**base, "final": [1.0 + seed]},
                    "hessian": {**base, "final": [1.0 + seed + shift]},
                }
            }
            rows.append(found[0].model_copy(update={"seed": seed, "values": values}))
        return rows

    assert list(figures.verdicts(shifted([-0.1, -0.11, -0.09]))["verdict"]) == ["first"]
    assert list(figures.verdicts(shifted([0.1, 0.11, 0.09]))["verdict"]) == ["behind"]
    assert list(figures.verdicts(shifted([0.1, -0.11, 0.02]))["verdict"]) == ["tied"]
