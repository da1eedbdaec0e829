"""The contest: every scheme on every kind of network, on the same terms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

from hessinit_book.chapters.contest import figures
from hessinit_book.chapters.contest import run as contest
from hessinit_book.chapters.contest.data import load_data
from hessinit_book.chapters.contest.networks import CharacterGpt, resnet, vgg
from hessinit_book.chapters.contest.run import ContestParameters, entrants
from hessinit_book.chapters.contest.schemes import SCHEMES, Entry
from hessinit_book.chapters.contest.text import draw_text, read_text
from hessinit_book.errors import DataError, ParameterError
from hessinit_book.records.records import Record, look_up, read_all
from hessinit_book.statistics.best_rate import at_best_rate
from hessinit_lib.init.forward_graph import forward_graph, residual_branches
from tests.networks import seeded

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["torch", "fixup", "level", "directions", "hessian"]


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
            assert list(values) == [s for s in QUICK if s != "fixup" or network == "resnet"]
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


def test_an_interrupted_run_goes_on_with_the_next_network(
    found: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, held = contest.hold, []

    def interrupted(parameters: ContestParameters, network: str, *rest: Any) -> dict[str, Any]:
        if network == "vgg" and not held.count("vgg"):
            held.append(network)
            raise KeyboardInterrupt
        held.append(network)
        return hold(parameters, network, *rest)

    monkeypatch.setattr(contest, "hold", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, seeds=[0])
    (again,) = run(tmp_path, seeds=[0])
    assert held == ["tanh_30", "resnet", "vgg", "vgg", "gpt"]
    for network, values in again.values.items():
        for scheme, row in values.items():
            assert row["final"] == found[0].values[network][scheme]["final"]
    assert [path.name for path in (tmp_path / "smoke" / "contest").iterdir()] == ["seed-0.json"]


@pytest.mark.parametrize("network", ["tanh_30", "resnet", "vgg", "gpt"])
def test_ours_is_its_directions_with_the_last_layer_scaled(network: str) -> None:
    parameters = ContestParameters.check(profile="smoke")
    course = contest.make_course(parameters, network, 0, load_data(sample=True, data_dir=None)[0])
    models = [course.make(), course.make()]
    for model, name in zip(models, ("directions", "hessian"), strict=True):
        SCHEMES[name](
            Entry(model, course.batches, course.classes, False, False, 1, seeded(3)),
        )
    alone, ours = (dict(model.named_parameters()) for model in models)
    differ = [name for name in alone if not torch.equal(alone[name], ours[name])]
    assert len(differ) == 1
    last = [name for name in alone if name.endswith("weight")][-1]
    assert differ == [last]
    ratio = ours[last] / alone[last]
    assert torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-4)


def test_level_alone_keeps_the_usual_directions() -> None:
    parameters = ContestParameters.check(profile="smoke")
    course = contest.make_course(parameters, "vgg", 0, load_data(sample=True, data_dir=None)[0])
    usual, level = course.make(), course.make()
    Entry(usual, course.batches, course.classes, False, False, 1, seeded(3)).start()
    SCHEMES["level"](Entry(level, course.batches, course.classes, False, False, 1, seeded(3)))
    pairs = zip(usual.named_parameters(), level.parameters(), strict=True)
    differ = [name for (name, a), b in pairs if not torch.equal(a, b)]
    assert differ == [[name for name, p in usual.named_parameters() if p.ndim > 1][-1]]


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
        (CharacterGpt(27, 2, 8, 2, 6), torch.zeros(2, 6, dtype=torch.long), 4),
    ],
)
def test_networks(model: nn.Module, inputs: torch.Tensor, branches: int) -> None:
    assert len(residual_branches(forward_graph(model, inputs))) == branches
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_gpt_does_not_look_ahead() -> None:
    model = CharacterGpt(27, 2, 8, 2, 6)
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
    assert set(steps["verdict"]) == {"nobody"}
    assert set(steps["best other"]) == {"none"}
    assert set(steps["ours"]) == {"10"}
    assert figures.halves(found).empty  # without the usual weights there is nothing to add to
    assert list(figures.LABELS) == list(SCHEMES)
    assert {*figures.HALVES, figures.OURS} < set(SCHEMES)


def test_the_text_says_what_full_scale_records_show() -> None:
    """Each statement of the notebook that is no number: it must not outlive its records."""
    shown = read_all(ROOT / "results", "paper", "contest")
    budget = shown[0].parameters["steps"]

    def steps(network: str, scheme: str) -> np.ndarray:
        return at_best_rate(shown, network, scheme, "steps")

    for network, row in shown[0].values.items():
        ours = steps(network, "hessian")
        assert not at_best_rate(shown, network, "hessian", "diverged").any()
        assert np.median(look_up(shown, f"values.{network}.hessian.cost")) < 20
        rivals = [name for name in row if name not in (*figures.HALVES, figures.OURS)]
        there = sum(int((steps(network, name) <= budget).sum()) for name in rivals)
        assert (ours <= budget).all()
        if network in ("relu_30", "relu_100", "gelu_30", "tanh_100"):
            assert there == 0
        if network == "vgg":
            assert there <= 2
    verdicts = figures.verdicts(shown, "steps")["verdict"]
    tied = {figures.NETWORKS[name] for name in ("resnet", "gpt")}
    assert set(verdicts[verdicts == "tied"].index) == tied
    assert set(verdicts) == {"first", "tied"}
    losses = figures.verdicts(shown)["verdict"]
    assert set(losses.drop(figures.NETWORKS["gpt"])) == {"first"}
    for what in ("final", "steps"):
        added = figures.halves(shown, what)["the level adds"]
        sure = {name: abs(float(x.split(" ± ")[0])) > float(x.split(" ± ")[1])
                for name, x in added.items()}  # fmt: skip
        smooth = ("tanh_30", "tanh_100", *(["gelu_30"] if what == "final" else []))
        known = {figures.NETWORKS[name] for name in smooth}
        assert {name for name, is_sure in sure.items() if is_sure} == known
    gelu = figures.NETWORKS["gelu_30"]
    assert figures.halves(shown).loc[gelu, "the level adds"].startswith("-")
    assert at_best_rate(shown, "gelu_30", "level", "diverged").all()


def test_a_seed_that_is_lost_is_shown_as_such(found: list[Record]) -> None:
    records = rows_of(found, he=[3, 4, math.nan], hessian=[2, 2, 2])
    table = figures.standings(records, "vgg")
    assert table.loc["He", "final loss [nat]"] == "0.400 [0.300, diverged]"


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


def rows_of(found: list[Record], **steps: list[float]) -> list[Record]:
    """Make records of one network from the steps of each scheme, by seed; losses go with them."""
    return [
        found[0].model_copy(
            update={
                "seed": seed,
                "values": {
                    "vgg": {
                        name: {
                            "final": [taken[seed] / 10],
                            "steps": [taken[seed] if taken[seed] <= 10 else math.inf],
                            "diverged": [False],
                            "cost": 1.0,
                        }
                        for name, taken in steps.items()
                    }
                },
            }
        )
        for seed in range(3)
    ]


def test_a_scheme_without_a_label_is_shown_under_its_own_name(found: list[Record]) -> None:
    records = rows_of(found, mine=[3, 3.5, 3], hessian=[4, 5, 4.5])
    figure = figures.final_losses(records)
    drawn = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    plt.close(figure)
    assert drawn == ["mine", figures.LABELS["hessian"]]
    assert "mine" in figures.standings(records, "vgg").index
    (row,) = figures.verdicts(records).to_dict("records")
    assert row["best other"] == "mine, 0.300"


@pytest.mark.parametrize("chosen", [["he", "mine"], ["hessian"], ["hessian", "level"]])
def test_without_a_match_there_is_no_verdict(found: list[Record], chosen: list[str]) -> None:
    records = rows_of(found, **{name: [3, 4, 5] for name in chosen})
    assert figures.verdicts(records).empty
    plt.close(figures.final_losses(records))


def test_a_half_of_ours_is_no_rival(found: list[Record]) -> None:
    records = rows_of(
        found, he=[11, 11, 11], level=[9, 9.5, 9], directions=[3, 3.5, 3], hessian=[4, 5, 4.5]
    )
    (row,) = figures.verdicts(records).to_dict("records")
    assert (row["best other"], row["verdict"]) == ("He, 1.100", "first")
    (row,) = figures.verdicts(records, "steps").to_dict("records")
    assert (row["best other"], row["verdict"]) == ("none", "first")
    (row,) = figures.halves(records).to_dict("records")
    assert row["usual weights"] == "He, 1.100"
    assert (row["level alone"], row["directions alone"], row["both"]) == ("0.900", "0.300", "0.450")
    assert row["directions add"].startswith("-0.467 ± ")
    assert row["the level adds"].startswith("+0.133 ± ")
    (row,) = figures.halves(records, "steps").to_dict("records")
    assert row["usual weights"] == "He, 10"


def test_what_is_added_to_a_half_that_diverged(found: list[Record]) -> None:
    lost = [math.nan] * 3
    records = rows_of(found, he=[11, 11, 11], level=lost, directions=[3, 4, 3], hessian=[4, 5, 4])
    (row,) = figures.halves(records).to_dict("records")
    assert (row["level alone"], row["directions add"]) == ("diverged", "-")
    assert row["the level adds"].startswith("+0.100 ± ")
