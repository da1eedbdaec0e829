"""Recurrent layers over time: measured on the batch, and named where training fails.

Trials of networks of 64 units that read the last output, with Adam (0.002) and clipped gradients:
the loss of recalling one of 8 tokens (chance: 2.08) that was some steps ago.

| layer, start | steps | first/last gradient | recalled | loss |
| --- | --- | --- | --- | --- |
| RNN, torch's | 28, 100 | 3e-9, 2e-31 | 5 ago | 0.10, 0.10 |
| RNN, torch's, orthogonal | 28 | 3e-9, 2e-3 | 28 ago | 2.09, 0.10 |
| RNN x 3, x 5, x 10 | 28 | 1e1, 6e3, 2e7 | 5 ago | 0.15, 1.75, 2.03 |
| LSTM, torch's | 28, 100 | 2e-6, 1e-20 | 5 ago | 0.96, 0.96 |
| LSTM, torch's, open gates | 28 | 2e-6, 5e-2 | 28 ago | 2.09, 0.10 |
| LSTM x 8, x 16, x 32 | 28 | 9e1, 7e5, 4e10 | 5 ago | 1.20, 2.08, 2.11 |
| GRU, torch's | 28, 100 | 2e-6, 3e-21 | 5 ago | 0.86, 0.81 |
| GRU, torch's, open gates | 28 | 2e-6, 5e-3 | 28 ago | 2.09, 0.10 |
| GRU x 8, x 16, x 32 | 28 | 3e2, 5e6, 5e10 | 5 ago | 1.97, 2.06, 2.18 |
| all, open gates or orthogonal | 64, 100 | 1e-10 to 2e-3 | all ago | 2.08 to 2.10 |
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hessinit_lib.diagnosis import diagnose
from hessinit_lib.diagnosis.signals import observe
from hessinit_lib.hessians.case import Case


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


ask = partial(diagnose, curvature="none")


class Recurrent(nn.Module):
    """A layer whose last output is read, or all of them."""

    def __init__(self, layer: nn.Module, width: int = 32, read: Any = -1) -> None:
        super().__init__()
        self.r, self.o, self.read = layer, nn.Linear(width, 4), read

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.r(x)[0][:, self.read])


class Steps(nn.Module):
    """A cell that is called step by step."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.o = cell, nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for part in x.unbind(1):
            state = self.cell(part, state)
        return self.o(state[0] if isinstance(state, tuple) else state)


def batch(steps: int, *labels: int) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(16, steps, 8, generator=stream)
    return x, torch.randint(4, (16, *labels), generator=stream)


def layer(kind: type[nn.RNNBase], factor: float = 1.0, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    made = kind(8, 32, batch_first=True, **options)
    with torch.no_grad():
        for name, value in made.named_parameters():
            value.mul_(factor if "weight_hh" in name else 1.0)
    return made


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("steps", [5, 28])
def test_the_ratio_is_that_of_the_inputs_gradients(kind: type[nn.RNNBase], steps: int) -> None:
    model, (x, y) = Recurrent(layer(kind)), batch(steps)
    given = x.clone().requires_grad_()
    loss(model(given), y).backward()
    assert given.grad is not None
    norms = given.grad.norm(dim=(0, 2))
    part = max(1, steps // 8)
    found = next(s for s in observe(Case(model, loss, x, y)).signals if "weight_hh" in s.name)
    expected = (norms[:part].max() / norms[-part:].max()).item()
    assert (found.steps, found.over_time) == (steps, pytest.approx(expected, rel=1e-4))


@pytest.mark.parametrize("steps", [28, 64, 100])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_gated_layers_of_torch_are_sound_with_a_note(kind: type[nn.RNNBase], steps: int) -> None:
    found = ask(Recurrent(layer(kind)), loss, *batch(steps))
    assert found.faults == ()
    told = [note for note in found.notes if note.startswith("r.weight_hh_l0: the gradient")]
    assert len(told) == (steps > 28)
    assert all(note.endswith("(tried)") for note in told)


@pytest.mark.parametrize(
    "model",
    [
        Recurrent(layer(nn.RNN)),
        Recurrent(layer(nn.LSTM, bidirectional=True), 64),
        Recurrent(layer(nn.RNN, bidirectional=True), 64, 0),
        Recurrent(layer(nn.LSTM, num_layers=2)),
        Steps(nn.GRUCell(8, 32)),
        Steps(nn.LSTMCell(8, 32)),
        Steps(nn.RNNCell(8, 32)),
    ],
)
def test_starts_of_28_steps_are_sound(model: nn.Module) -> None:
    found = ask(model, loss, *batch(28))
    assert found.faults == ()
    assert not any("times the last's" in note for note in found.notes)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_what_reads_all_steps_forgets_nothing(kind: type[nn.RNNBase]) -> None:
    found = ask(Recurrent(layer(kind), read=slice(None)), loss, *batch(200, 200))
    assert found.faults == ()
    assert not any("times the last's" in note for note in found.notes)


@pytest.mark.parametrize(
    ("made", "steps", "verdict"),
    [
        (lambda: Recurrent(layer(nn.RNN)), 100, "vanishing"),
        (lambda: Recurrent(layer(nn.RNN, 10.0)), 64, "exploding"),
        (lambda: Recurrent(layer(nn.LSTM, 16.0)), 64, "exploding"),
        (lambda: Recurrent(layer(nn.GRU, 16.0)), 64, "exploding"),
        (lambda: Steps(nn.RNNCell(8, 32)), 100, "vanishing"),
    ],
)
def test_faults_over_time_are_named(made: Any, steps: int, verdict: str) -> None:
    (fault,) = ask(made(), loss, *batch(steps)).faults
    assert (fault.kind, fault.verdict) == ("recurrent", verdict)
    assert "weight_hh" in fault.where
    assert ("torch.nn.init.orthogonal_" in fault.remedy) == fault.tried


def test_a_remedy_that_fails_is_not_given() -> None:
    (fault,) = ask(Recurrent(layer(nn.RNN)), loss, *batch(300)).faults
    assert fault.remedy.startswith("read the outputs of more steps")
    assert str(fault).endswith("(not tried).")
