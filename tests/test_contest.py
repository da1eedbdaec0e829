"""The contest: every scheme on every kind of network, on the same terms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from scipy import stats
from torch import nn

from hessinit_book.chapters.contest import figures
from hessinit_book.chapters.contest import run as contest
from hessinit_book.chapters.contest.courses import make_course
from hessinit_book.chapters.contest.data import load_data
from hessinit_book.chapters.contest.networks import Block, CharacterGpt, resnet, vgg
from hessinit_book.chapters.contest.run import ContestParameters, entrants
from hessinit_book.chapters.contest.schemes import ONLY, SCHEMES, Entry
from hessinit_book.chapters.contest.text import draw_text, read_text
from hessinit_book.chapters.contest.tuning import choose_rate
from hessinit_book.errors import DataError, ParameterError
from hessinit_book.records.records import Record, read_all
from hessinit_lib.init.forward_graph import forward_graph, residual_branches
from tests.networks import seeded

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["torch", "fixup", "looks_linear", "looks_linear_sized"]


def run(folder: Path, **given: Any) -> list[Record]:
    tiny = {
        "profile": "smoke",
        "schemes": QUICK,
        "networks": ["tanh_30", "resnet", "gpt"],
        "extensions": 0,
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
                assert scheme["cost"] > 0
                assert scheme["tried"]["rates"] == [scheme["rate"]]
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
        run(tmp_path, seeds=[0], networks=["resnet", "vgg"])
    (again,) = run(tmp_path, seeds=[0], networks=["resnet", "vgg"])
    assert held == ["resnet", "vgg", "vgg"]
    for scheme, row in again.values["resnet"].items():
        assert row["final"] == found[0].values["resnet"][scheme]["final"]
    assert [path.name for path in (tmp_path / "smoke" / "contest").iterdir()] == ["seed-0.json"]


def test_a_scheme_that_finds_no_weights_is_counted_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(entry: Entry) -> None:
        raise ValueError("no such norms")

    monkeypatch.setitem(SCHEMES, "looks_linear_sized", refuse)
    monkeypatch.setattr(contest, "_warm_up", lambda device: None)
    (one,) = run(tmp_path, seeds=[0], networks=["resnet"])
    row = one.values["resnet"]["looks_linear_sized"]
    assert (row["refused"], row["diverged"]) == ("no such norms", True)
    shown = figures.standings([one], "resnet").loc["looks_linear_"]
    assert (shown["rates chosen"], shown["diverged"]) == ("-", "100%")
    assert (shown["at an end"], shown["final loss [nat]"][:8]) == (0, "diverged")
    assert figures.against_published([one], "looks_linear_sized").verdict.tolist() == ["behind"]
    plt.close(figures.final_losses([one]))


def started(name: str, network: str) -> nn.Module:
    """Initialize a network of the smoke profile by one scheme."""
    parameters = ContestParameters.check(profile="smoke")
    data = load_data(sample=True, data_dir=None)[0]
    course = make_course(parameters, network, 0, data)
    model = course.make()
    SCHEMES[name](Entry(model, course.batches, course.classes, False, False, 1, seeded(3)))
    return model


@pytest.mark.parametrize(
    ("network", "before", "after"),
    [
        *((name, "looks_linear", "looks_linear_sized") for name in ("tanh_30", "resnet", "gpt")),
        ("vgg", "he", "usual_sized"),
        ("relu_30", "orthogonal", "orthogonal_sized"),
    ],
)
def test_the_size_of_the_logits_is_set_by_the_last_layer(
    network: str, before: str, after: str
) -> None:
    first, second = (dict(started(name, network).named_parameters()) for name in (before, after))
    differ = [name for name in first if not torch.equal(first[name], second[name])]
    assert differ == [[name for name in first if name.endswith("weight")][-1]]
    ratio = second[differ[0]] / first[differ[0]]
    assert torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-4)


def test_skipinit_starts_from_identities_and_zero_from_nothing_drawn() -> None:
    model = started("skipinit", "resnet")
    assert [m.multiplier.item() for m in model.modules() if isinstance(m, Block)] == [0, 0]
    pairs = zip(*(started("zero", "resnet").parameters() for _ in range(2)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_rates_are_chosen_on_other_data_weights_and_batches() -> None:
    parameters = ContestParameters.check(profile="smoke")
    data = load_data(sample=True, data_dir=None)[0]
    for network in ("relu_30", "vgg", "gpt"):
        sides = [make_course(parameters, network, 0, data, tuning=t) for t in (False, True)]
        seen = [
            {tuple(row.flatten().tolist()) for k in range(3) for row in side.batches(k)[0]}
            for side in sides
        ]
        if network != "gpt":  # letters that are drawn may repeat themselves
            assert not seen[0] & seen[1]
        assert not torch.equal(sides[0].batches(0)[0], sides[1].batches(0)[0])


def test_no_end_of_a_grid_is_chosen_while_it_can_be_extended() -> None:
    def train(rates: list[float]) -> dict[str, list[Any]]:
        return {
            "final": [abs(math.log(rate / 0.0005)) for rate in rates],
            "diverged": [rate > 0.05 for rate in rates],
        }

    found = choose_rate(train, [0.012, 0.036], 9)
    assert found["rates"] == [0.000148, 0.000443, 0.00133, 0.004, 0.012, 0.036]
    assert found["rate"] == 0.000443
    assert choose_rate(train, [0.012, 0.036], 1)["rate"] == 0.004  # it ends, and the table says so
    lost = choose_rate(lambda rates: {**train(rates), "diverged": [True] * len(rates)}, [1.0], 2)
    assert lost["rates"] == [0.111, 0.333, 1.0]


def test_all_schemes_take_part() -> None:
    parameters = ContestParameters.check(profile="smoke")
    assert entrants(parameters, "resnet") == [name for name in SCHEMES if name != "tailored"]
    assert entrants(parameters, "gpt") == [name for name in SCHEMES if name not in ONLY]
    assert set(ONLY) < set(SCHEMES)
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
    verdicts = figures.against_published(found, "looks_linear_sized")
    assert set(verdicts["verdict"]) <= {"first", "tied", "behind"}
    alone = figures.against_published(found[:1], "looks_linear_sized")
    assert set(alone["verdict"]) == {"one seed"}
    steps = figures.against_published(found, "looks_linear_sized", "steps")
    assert set(steps["verdict"]) == {"nobody"}
    assert set(steps["best published"]) == {"none"}
    parts = figures.parts(found)
    assert (parts.loc["equal Hessian norms"] == "-").all()  # it did not take part
    assert not (parts.loc["size of the logits, looks linear"] == "-").any()
    assert figures.summary(found).startswith("On final loss `looks_linear_` is ")
    assert list(figures.LABELS) == list(SCHEMES)
    assert {*figures.PUBLISHED, *figures.SIZED, "hessian"} == set(SCHEMES)
    assert {name for part in figures.PARTS for name in part[:2]} - {"usual"} <= set(SCHEMES)


def rows_of(found: list[Record], **losses: list[float]) -> list[Record]:
    """Make records of one network from the final losses of each scheme, by seed."""
    return [
        found[0].model_copy(
            update={
                "seed": seed,
                "values": {
                    "vgg": {
                        name: {
                            "final": taken[seed],
                            "steps": 10 * taken[seed] if taken[seed] <= 1 else math.inf,
                            "diverged": not math.isfinite(taken[seed]),
                            "cost": 1.0,
                            "rate": 0.1,
                            "tried": {"rates": [0.1, 0.3], "final": [1, 2], "diverged": [0, 1]},
                        }
                        for name, taken in losses.items()
                    }
                },
            }
        )
        for seed in range(3)
    ]


def test_a_seed_that_is_lost_is_shown_as_such(found: list[Record]) -> None:
    records = rows_of(found, he=[0.3, 0.4, math.nan], looks_linear_sized=[0.2, 0.2, 0.2])
    table = figures.standings(records, "vgg")
    assert table.loc["He", "final loss [nat]"] == "0.400 [0.300, diverged]"
    assert table.loc["He", ["diverged", "of those tried", "at an end"]].tolist() == [
        "33%", "50%", 3,
    ]  # fmt: skip
    (row,) = figures.against_published(records, "looks_linear_sized").to_dict("records")
    assert (row["verdict"], row["difference"]) == ("first", "-")


@pytest.mark.parametrize(
    ("by", "verdict", "word"),
    [
        ([-0.1, -0.11, -0.09], "first", "lower"),
        ([0.1, 0.11, 0.09], "behind", "higher"),
        ([0.1, -0.11, 0.02], "tied", "no different"),
    ],
)
def test_differences_are_paired_by_seeds(
    found: list[Record], by: list[float], verdict: str, word: str
) -> None:
    base = [1.0, 2.0, 3.0]
    moved = [a + b for a, b in zip(base, by, strict=True)]
    records = rows_of(found, torch=base, looks_linear_sized=moved)
    (row,) = figures.against_published(records, "looks_linear_sized").to_dict("records")
    assert row["verdict"] == verdict
    records = rows_of(found, he=base, looks_linear_sized=base, hessian=moved)
    assert f"Equal Hessian norms on top of it end {word} on 1 of 1" in figures.summary(records)


def test_the_strongest_published_start_is_the_rival_whichever_it_is(found: list[Record]) -> None:
    """Directions alone are published; what sets the logits too is no rival of itself."""
    records = rows_of(
        found, he=[1.1, 1.1, 1.1], looks_linear=[0.3, 0.35, 0.3],
        orthogonal_sized=[0.1, 0.1, 0.1], looks_linear_sized=[0.4, 0.5, 0.45],
    )  # fmt: skip
    (row,) = figures.against_published(records, "looks_linear_sized").to_dict("records")
    assert (row["best published"], row["verdict"]) == ("looks linear, 0.300", "behind")
    (row,) = figures.against_published(records, "looks_linear_sized", "steps").to_dict("records")
    assert row["best published"] == "looks linear, 3"
    added = figures.parts(records)["VGG, no normalization"]
    assert added["size of the logits, looks linear"].startswith("+0.133 ± ")
    assert added["mirrored around the activation"].startswith("+0.350 ± ")


def test_intervals_hold_for_all_networks_at_once(found: list[Record]) -> None:
    """Of two networks each interval is one of 97.5 %."""
    records = rows_of(found, torch=[1.0, 2.0, 3.0], looks_linear_sized=[0.9, 1.7, 2.8])
    double = [
        record.model_copy(update={"values": {**record.values, "gpt": record.values["vgg"]}})
        for record in records
    ]
    one, two = (
        float(figures.against_published(each, "looks_linear_sized")["difference"].iloc[0][9:])
        for each in (records, double)
    )
    assert two / one == pytest.approx(stats.t.ppf(0.9875, 2) / stats.t.ppf(0.975, 2), rel=0.01)


def test_a_scheme_without_a_label_is_shown_under_its_own_name(found: list[Record]) -> None:
    records = rows_of(found, mine=[0.3, 0.35, 0.3], looks_linear_sized=[0.4, 0.5, 0.45])
    figure = figures.final_losses(records)
    drawn = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    plt.close(figure)
    assert drawn == ["mine", figures.LABELS["looks_linear_sized"]]
    assert "mine" in figures.standings(records, "vgg").index
    (row,) = figures.against_published(records, "looks_linear_sized").to_dict("records")
    assert row["best published"] == "mine, 0.300"


@pytest.mark.parametrize("chosen", [["he", "mine"], ["looks_linear_sized"]])
def test_without_a_match_there_is_no_verdict(found: list[Record], chosen: list[str]) -> None:
    records = rows_of(found, **{name: [0.3, 0.4, 0.5] for name in chosen})
    assert figures.against_published(records, "looks_linear_sized").empty
    plt.close(figures.final_losses(records))


def test_the_text_says_what_full_scale_records_show() -> None:
    """At least five seeds, the papers' rounds, rates at an end where nothing is learned alone."""
    shown = read_all(ROOT / "results", "paper", "contest")
    assert len(shown) >= 5
    assert shown[0].parameters["rounds"] == 500
    learners = {
        name
        for name in figures.PUBLISHED
        if name in shown[0].values["relu_100"]
        and figures.median(figures._found(shown, "relu_100", name, "final")) < 2
    }
    assert learners == {"tailored", "looks_linear"}
    for record in shown:
        for network, row in record.values.items():
            for scheme, one in row.items():
                guessing = math.log(27 if network == "gpt" else 10)
                if one["final"] is not None and one["final"] < 0.99 * guessing:
                    assert not figures._at_an_end(record, network, scheme), (network, scheme)
