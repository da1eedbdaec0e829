"""The tracker records at its interval and disturbs nothing."""

from __future__ import annotations

import pytest
import torch
from networks import make_case
from torch import nn

from hessinit_lib import HessianTracker, layer_hessians


def test_records_what_layer_hessians_gives() -> None:
    case = make_case([4, 6, 3], ["tanh"], "cross_entropy", 7, 1.0, seed=1)
    tracker = HessianTracker(case.model, case.loss_fn, case.inputs, case.targets, every=3)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    made = []
    expected = {}
    for step in range(7):
        if step % 3 == 0:
            expected[step] = layer_hessians(case.model, case.loss_fn, case.inputs, case.targets)
        made.append(tracker.step() is not None)
        optimizer.zero_grad()
        case.loss_fn(case.model(case.inputs), case.targets).backward()
        optimizer.step()
    tracker.record()
    assert made == [True, False, False, True, False, False, True]
    assert list(tracker.history) == [0, 3, 6, 7]
    for step, report in expected.items():
        assert dict(tracker.history[step]) == dict(report)
    frame = tracker.to_frame()
    assert frame.index.names == ["step", "parameter"]
    assert frame.loc[(3, "0.weight"), "frobenius"] == expected[3]["0.weight"].frobenius


def test_dropout_is_off_while_recording_and_on_again_after() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3))
    x, y = torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64)
    HessianTracker(model, nn.CrossEntropyLoss(), x, y).step()
    assert model.training
    assert model[1].training


def test_mode_comes_back_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))
    tracker = HessianTracker(
        model, nn.CrossEntropyLoss(), torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64)
    )
    with pytest.raises(NotImplementedError):
        tracker.step()
    assert model.training


def test_submodules_keep_their_own_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3))
    model[1].eval()  # switched off by its owner while the rest trains
    x, y = torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64)
    HessianTracker(model, nn.CrossEntropyLoss(), x, y).step()
    assert not model[1].training
    assert model[0].training


def test_empty_history_is_an_empty_table() -> None:
    tracker = HessianTracker(
        nn.Linear(4, 3), nn.CrossEntropyLoss(), torch.zeros(1, 4), torch.zeros(1)
    )
    assert tracker.to_frame().empty


@pytest.mark.parametrize("every", [0, -1])
def test_interval_must_be_a_positive_whole_number(every: object) -> None:
    with pytest.raises(ValueError, match=f"every={every}"):
        HessianTracker(
            nn.Linear(4, 3), nn.CrossEntropyLoss(), torch.zeros(1, 4), torch.zeros(1), every=every
        )
