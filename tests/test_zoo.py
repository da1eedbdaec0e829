"""The zoo's lists and its bookkeeping; `make zoo` runs all of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hessinit_book.zoo import advice, run
from hessinit_book.zoo.faults import FAULTS, Problem
from hessinit_book.zoo.networks import CLASSIC, NETWORKS, TORCHVISION, held_out, seeded


def test_there_is_enough_and_a_third_is_held_out():
    assert len(NETWORKS) >= 44
    assert len(FAULTS) >= 42
    for names in (NETWORKS, FAULTS):
        assert held_out(names) == held_out([*names][::-1])
        assert 0.3 < len(held_out(names)) / len(names) < 0.37
    assert all(len(set(network.settings)) == 4 for network in NETWORKS.values())
    assert not set(CLASSIC) & set(TORCHVISION)


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
    run.run("lstm", "", False, tmp_path)
    first = capsys.readouterr().out

    def fail(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(run, "_diagnose", fail)
    run.run("lstm", "", False, tmp_path)
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
