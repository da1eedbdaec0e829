"""The zoo's lists and its bookkeeping; `make zoo` runs all of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hessinit_book.zoo import advice, run
from hessinit_book.zoo.faults import FAULTS, Problem
from hessinit_book.zoo.held_out import FAULTS_HELD_OUT, NETWORKS_HELD_OUT
from hessinit_book.zoo.networks import CLASSIC, NETWORKS, TORCHVISION, batch_for, seeded


def test_there_is_enough():
    assert len(run.KNOWN_NETWORKS) >= 84
    assert len(run.KNOWN_FAULTS) >= 76
    assert len(NETWORKS_HELD_OUT) >= 30
    assert len(FAULTS_HELD_OUT) >= 22
    for network in run.ALL_NETWORKS.values():
        assert len(set(network.settings)) == 4
    assert not set(CLASSIC) & set(TORCHVISION)


def test_what_is_held_out_stands_nowhere_else():
    known = (*run.KNOWN_NETWORKS, *run.KNOWN_FAULTS)
    held_out = (*NETWORKS_HELD_OUT, *FAULTS_HELD_OUT)
    assert len(set(known) | set(held_out)) == len(known) + len(held_out)
    assert {run.part_of(name) for name in known} == {"dev"}
    assert {run.part_of(name) for name in held_out} == {"held-out"}
    parts = (("dev", run.KNOWN_NETWORKS), ("held-out", NETWORKS_HELD_OUT))
    for part, networks in parts:
        jobs = run._jobs("", part, False)
        assert {job.split(" ", 1)[0] for job in jobs} == {"fault", "sound"}
        assert sum(job.startswith("sound ") for job in jobs) == 4 * len(networks)


NOT_CLASSIC = {
    "ernie": "transformers", "sew": "transformers", "glm": "transformers",
    "vit after resnet": "timm", "crossvit": "timm", "stablelm": "transformers",
    "data2vec text": "transformers", "hardcorenas": "timm",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", ["u-net", "tanh densenet", "lenet-5", "text cnn", "regnet_y_3_2gf", *NOT_CLASSIC]
)
def test_a_network_gives_every_weight_a_gradient(name):
    if name in NOT_CLASSIC:
        pytest.importorskip(NOT_CLASSIC[name])
    network = run.ALL_NETWORKS[name]
    size, batch = network.settings[0]
    model = seeded(lambda: network.make(size))
    inputs, targets = batch_for(network, size, batch)
    loss = nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad is not None for weight in model.parameters())


def test_no_sentence_names_every_held_out_fault():
    said = ["the network looks sound", "scale other.weight: it is larger than it should be"]
    accepted = [n for n, f in FAULTS_HELD_OUT.items() if any(f.is_named(text) for text in said)]
    assert len(accepted) <= 2  # of a whole deep network "scale" is a fair name


def test_a_sound_setting_and_the_same_weights_at_each_call():
    result = run.sound_setting("lstm", 16, 8)
    assert (result["alarm"], result["error"]) == (False, "")
    first, second = (seeded(lambda: NETWORKS["lstm"].make(16)).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_planted_fault_is_named_and_its_advice_helps(monkeypatch):
    monkeypatch.setattr(advice, "STEPS", 30)
    result = run.fault_setting("mlp: third layer / 100")
    assert result["named"]
    assert result["advice"]["after"] < 0.9 * result["advice"]["before"]


def test_what_is_not_named_is_a_miss():
    assert not FAULTS["mlp: third layer x 100"].is_named("scale 0.weight: too large")
    assert FAULTS["mlp: third layer x 100"].is_named("scale 4.weight: too large")
    # "its inputs" of a layer is not the batch.
    assert not FAULTS["mlp: inputs of 1e5"].is_named("noise 2: it multiplies its inputs by 2")


def test_an_error_on_a_sound_network_is_a_false_alarm(monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(run, "_diagnose", fail)
    assert run.sound_setting("mlp", 16, 8)["alarm"]
    assert run.fault_setting("mlp: third layer x 100")["named"] is False


def test_a_training_that_diverges_is_infinite():
    x = torch.full((4, 2), 1e20)
    problem = Problem(nn.Linear(2, 1), nn.MSELoss(), x, torch.zeros(4, 1))
    assert advice.trained(problem, 5) == float("inf")


def test_a_run_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    run.run("lstm", "dev", False, tmp_path)
    first = capsys.readouterr().out

    def fail(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(run, "_diagnose", fail)
    run.run("lstm", "dev", False, tmp_path)
    assert capsys.readouterr().out == first


def test_a_loss_that_diverged_comes_back_as_a_number(tmp_path, monkeypatch):
    told = {"fault": "", "part": "dev", "named": True, "faults": [], "error": ""}
    told["advice"] = {"how": "he", "before": float("inf"), "after": 1.0}
    monkeypatch.setattr(run, "_jobs", lambda *_: {"fault a": lambda: told})
    for _ in range(2):  # the second time from its file
        run.run("a", "", True, tmp_path)
    assert not list(tmp_path.rglob("seed-*.json"))  # a part is no record


def test_rates_are_counted_apart_for_what_was_held_out():
    sound = [{"network": "a", "part": part, "alarm": part == "dev"} for part in ("dev", "held-out")]
    tried = {"advice": {"before": 2.0, "after": 1.0}, "named": True}
    silent = {"advice": {"skipped": "no fault was named"}, "named": False}
    values = run.summary(sound * 4, [{"part": "dev", **tried}, {"part": "held-out", **silent}])
    counts = {"networks": 1, "settings": 4, "faults": 1}
    assert values["dev"] == {**counts, "alarms": 4, "named": 1, "tried": 1, "helped": 1}
    assert values["held_out"] == {**counts, "alarms": 0, "named": 0, "tried": 0, "helped": 0}


@pytest.mark.parametrize("name", ["mlp: NaN in a weight", "mlp: dead ReLUs"])
def test_faults_without_training(name):
    assert run.fault_setting(name, training=False)["named"]
