"""A learning rate is tried on a copy: what is said of it, and that nothing of the model changes."""

from __future__ import annotations

import copy
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diagnosis_networks import batch, cnn, encoder, loss, mlp
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from hessinit_lib.diagnosis import Diagnosis, diagnose
from hessinit_lib.diagnosis.command import main
from hessinit_lib.diagnosis.rate import STEPS, optimizer_maker, try_rate
from hessinit_lib.hessians.case import Case

X, Y = batch("vectors")
ask = partial(diagnose, curvature="none")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 64)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh())[:, :10]


class NoCopy(nn.Linear):
    def __deepcopy__(self, memo: object) -> nn.Module:
        raise RuntimeError("not this one")


NETWORKS = {
    "batch norm": lambda: cnn(norm=True),
    "tied": Tied,
    "no copy": lambda: nn.Sequential(NoCopy(64, 10)),
    "parametrized": lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Linear(64, 32)), nn.ReLU(), nn.Linear(32, 10)
    ),
    "hooks": lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(64, 32)), nn.Linear(32, 10)),
    "frozen": lambda: nn.Sequential(nn.Linear(64, 32).requires_grad_(False), nn.Linear(32, 10)),
}
OPTIMIZERS = {
    "momentum": partial(torch.optim.SGD, lr=0.02, momentum=0.9, weight_decay=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.003, weight_decay=0.1),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.001),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_trial_is_training(name: str, make: Any) -> None:
    """The same losses as a plain loop on the model itself, which the trial leaves as it is."""
    torch.manual_seed(0)
    model = NETWORKS[name]().train()
    x, y = batch("images" if name == "batch norm" else "vectors")
    optimizer = make(model.parameters())
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    found = ask(model, loss, x, y, optimizer=optimizer)
    assert torch.equal(torch.get_rng_state(), random)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())
    assert not optimizer.state
    (trial,) = found.trials
    expected = []
    for _ in range(STEPS + 1):
        value = loss(model(x), y)
        expected.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert trial.losses == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_dropout_is_off_and_the_result_the_same_each_time() -> None:
    x, y = batch("tokens")
    found = [ask(encoder().train(), loss, x, y, optimizer="adamw", lr=0.01) for _ in range(2)]
    assert found[0].trials == found[1].trials
    assert found[0].trials[0].falls


@pytest.mark.parametrize(
    ("optimizer", "good", "bad"),
    [(None, 0.03, 3.0), ("adam", 0.003, 1.0), (torch.optim.RMSprop, 0.001, 1.0)],
)
def test_a_rate_that_is_too_high_is_named(optimizer: Any, good: float, bad: float) -> None:
    model = mlp(5)
    assert ask(model, loss, X, Y, optimizer=optimizer, lr=good).faults == ()
    found = ask(model, loss, X, Y, optimizer=optimizer, lr=bad)
    (fault,) = found.faults
    assert (fault.kind, fault.where, found.verdict) == ("rate", "", "exploding")
    assert f" at {bad:g}: loss {found.loss:.4g} to " in fault.reason
    last = found.trials[-1]
    assert last.rate == bad / 2 ** (len(found.trials) - 1)
    assert last.falls
    assert fault.tried
    assert fault.remedy == (
        f"lower it to {last.rate:.3g}: loss {last.losses[0]:.4g} to {last.end:.4g}"
    )
    assert Diagnosis.from_json(found.to_json()).to_json() == found.to_json()
    assert str(last) in str(found)


def test_where_no_rate_helps_it_is_said() -> None:
    model = mlp(3)
    with torch.no_grad():
        model[0].weight.mul_(1e20)
    found = ask(model, loss, X, Y, lr=1e20)
    assert found.faults[-1].kind == "rate"
    assert found.faults[-1].remedy.endswith("no rate down to 2.4e+16 lowers the loss")
    assert not found.faults[-1].tried


def test_the_suggested_rate_was_tried() -> None:
    found = diagnose(mlp(5), loss, X, Y)
    (trial,) = found.trials
    assert (trial.optimizer, trial.rate) == ("SGD", found.suggested_rate)
    assert trial.falls
    assert f"suggested: {trial.rate:.2g}, for plain SGD" in str(found)


def test_a_suggested_rate_at_which_the_loss_grows_is_halved() -> None:
    """A start at which the curvature says nothing about where the first step leads."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1, bias=False)
            nn.init.constant_(self.layer.weight, 0.1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) ** 4

    x, y = torch.eye(2), torch.full((2, 1), 1.0)
    found = diagnose(Flat(), nn.MSELoss(), x, y, curvature="all")
    assert found.trials[0].grows
    assert found.suggested_rate == found.trials[-1].rate < found.trials[0].rate
    assert found.trials[-1].falls


def test_no_rate_is_suggested_where_nothing_lowers_the_loss() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False))
    for weight in model.parameters():
        nn.init.constant_(weight, -1.0)
    found = diagnose(model, nn.MSELoss(), torch.rand(8, 4), torch.ones(8, 1))
    assert math.isnan(found.suggested_rate)
    assert "suggested: none" in str(found)


def test_memory_is_passed_on() -> None:
    model = mlp(4)
    found, expected = diagnose(model, loss, X, Y, max_memory=1 << 22), diagnose(model, loss, X, Y)
    assert found.largest_eigenvalue == pytest.approx(expected.largest_eigenvalue, rel=0.2)
    with pytest.raises(ValueError, match="max_memory=0: expected a positive size"):
        diagnose(model, loss, X, Y, max_memory=0)


class Strange(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        raise RuntimeError("not today")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": 0.0}, r"lr=0.0: expected a positive number"),
        ({"lr": -1.0}, r"lr=-1.0: expected a positive number"),
        ({"lr": math.nan}, r"lr=nan: expected a positive number"),
        ({"optimizer": "sdg"}, r"optimizer='sdg': expected a torch.optim.Optimizer, .*adamw.*"),
        ({"optimizer": "lbfgs"}, r"optimizer: LBFGS took no step: .*, such as SGD"),
        ({"optimizer": "sparseadam", "lr": 0.1}, r"optimizer: SparseAdam took no step: .*"),
        ({"optimizer": nn.Linear}, r"optimizer: Linear cannot be tried: .*"),
        ({"optimizer": list}, r"optimizer: list cannot be tried: .*"),
        ({"optimizer": Strange, "lr": 0.1}, r"optimizer: Strange took no step: not today; .*"),
        ({"optimizer": partial(torch.optim.SGD, maximize=True)}, r"optimizer: .* it maximizes, .*"),
        ({"optimizer": partial(torch.optim.SGD, lr=0.0)}, r"optimizer: .* its rate is 0 .*"),
        (
            {"optimizer": torch.optim.Adam([torch.ones(3, 2)])},
            r"optimizer: Adam holds a tensor of shape \(3, 2\) that is no parameter of the .*",
        ),
    ],
)
def test_wrong_rates_and_optimizers_are_refused_in_one_line(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{message}$"):
        ask(mlp(3), loss, X, Y, **given)
    with pytest.raises(ValueError, match=r"optimizer=3: expected a torch\.optim\.Optimizer, or"):
        optimizer_maker(Case(mlp(3), loss, X, Y), 3, None)


def test_sparse_gradients_are_as_in_training() -> None:
    model = nn.Sequential(nn.Embedding(17, 8, sparse=True), nn.Flatten(), nn.Linear(96, 10))
    x = batch("tokens")[0]
    sparse = torch.optim.SparseAdam([model[0].weight])
    assert ask(model, loss, x, Y[: len(x)], optimizer=sparse).trials[0].falls
    assert ask(model, loss, x, Y[: len(x)], lr=0.1).trials[0].falls


def test_an_optimizer_may_have_groups_and_scheduled_steps() -> None:
    model = mlp(3)
    groups = [{"params": [model[4].weight], "lr": 0.5}, {"params": [model[0].weight]}]
    optimizer = torch.optim.SGD(groups, lr=torch.tensor(0.01))
    torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5)
    (trial,) = ask(model, loss, X, Y, optimizer=optimizer).trials
    assert trial.rate == pytest.approx(0.25)
    case = Case(model, loss, X, Y)
    made = optimizer_maker(case, optimizer, 0.1)(dict(model.named_parameters()))
    assert [group["lr"] for group in made.param_groups] == [0.1, 0.1]
    assert try_rate(case, optimizer_maker(case, optimizer, 0.1), 0.5).rate == 0.05
    assert float(optimizer.param_groups[1]["lr"]) == pytest.approx(0.005)


CASES = """
import torch
from torch import nn
def sound():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, nn.CrossEntropyLoss(), torch.randn(16, 4), torch.arange(16) % 3
"""


def test_the_command_line_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cases.py").write_text(CASES)
    spec = ["diagnose", "cases.py:sound", "--curvature", "none"]
    assert main([*spec, "--optimizer", "adam"]) == 0
    assert "Adam at 0.001: loss" in capsys.readouterr().out
    assert main([*spec, "--lr", "1000", "--json", "it.json"]) == 1
    assert json.loads(Path("it.json").read_text(encoding="utf-8"))["faults"][0]["kind"] == "rate"
    assert main([*spec, "--lr", "nan"]) == 2
    assert capsys.readouterr().err == "error: lr=nan: expected a positive number\n"
