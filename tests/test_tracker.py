"""The tracker records at its interval and disturbs nothing."""

from __future__ import annotations

import contextlib
import pickle
import re
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import Case, make_case, seeded
from torch import nn

from hessinit_lib import HessianTracker, layer_hessians
from hessinit_lib.hessians.background import take_snapshot
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import HessianReport
from hessinit_lib.hessians.tracker import log_schedule


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
        model,
        nn.CrossEntropyLoss(),
        torch.zeros(5, 4),
        torch.zeros(5, dtype=torch.int64),
        method="exact",
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


@pytest.mark.parametrize("every", [0, -1, np.int64(0)])
def test_interval_must_be_positive(every: object) -> None:
    with pytest.raises(ValueError, match=f"every={re.escape(repr(every))}: expected"):
        HessianTracker(
            nn.Linear(4, 3), nn.CrossEntropyLoss(), torch.zeros(1, 4), torch.zeros(1), every=every
        )


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (np.int64(3), [0, 3, 6]),
        ([1, 5, 99], [1, 5]),
        (np.array([2, 4]), [2, 4]),
        (lambda step: step > 5, [6, 7]),
        (log_schedule(7, 4), [0, 1, 3, 7]),
    ],
)
def test_schedules(every: object, expected: list[int]) -> None:
    tracker = HessianTracker(
        nn.Linear(4, 3), nn.MSELoss(), torch.zeros(2, 4), torch.zeros(2, 3), every=every
    )
    for _ in range(8):
        tracker.step()
    assert list(tracker.history) == expected


@given(st.integers(1, 10**6), st.integers(3, 60))
def test_log_schedule(total: int, count: int) -> None:
    steps = log_schedule(total, count)
    assert steps[:2] == [0, 1]
    assert steps[-1] == total
    assert steps == sorted(set(steps))
    assert len(steps) <= count
    if total >= 10 * 2**count:
        assert len(steps) == count


@pytest.mark.parametrize(("total", "count"), [(0, 5), (5, 2)])
def test_log_schedule_needs_steps(total: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"total={total}, count={count}"):
        log_schedule(total, count)


def make_training(**options: object) -> tuple[HessianTracker, torch.optim.Optimizer, Case]:
    case = make_case([4, 6, 3], ["tanh"], "cross_entropy", 7, 1.0, seed=2)
    tracker = HessianTracker(case.model, case.loss_fn, case.inputs, case.targets, **options)
    return tracker, torch.optim.SGD(case.model.parameters(), lr=0.1, momentum=0.9), case


def train(optimizer: torch.optim.Optimizer, case: Case, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        noise = torch.rand(case.inputs.shape)  # the global stream: records must not touch it
        case.loss_fn(case.model(case.inputs + noise), case.targets).backward()
        optimizer.step()


def test_attached_to_the_optimizer_it_records_what_a_loop_records() -> None:
    torch.manual_seed(0)
    tracker, optimizer, case = make_training(every=2)
    for _ in range(3):
        tracker.step()
        train(optimizer, case, 1)
    tracker.record()

    torch.manual_seed(0)
    attached, optimizer, other = make_training(every=2)
    with attached.attach(optimizer) as same:
        train(optimizer, other, 3)
    assert same is attached
    assert list(attached.history) == [0, 2, 3]
    for step, report in attached.history.items():
        assert dict(report) == dict(tracker.history[step])
    train(optimizer, other, 2)  # no longer attached
    assert list(attached.history) == [0, 2, 3]


def test_training_does_not_feel_the_tracker() -> None:
    torch.manual_seed(0)
    _, optimizer, plain = make_training()
    train(optimizer, plain, 4)
    torch.manual_seed(0)
    tracker, optimizer, tracked = make_training(every=1)
    with tracker.attach(optimizer):
        train(optimizer, tracked, 4)
    for a, b in zip(plain.model.parameters(), tracked.model.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a.grad, b.grad)


def test_interrupted_training_keeps_its_history() -> None:
    tracker, optimizer, case = make_training(every=1)
    with contextlib.suppress(KeyboardInterrupt), tracker.attach(optimizer):
        train(optimizer, case, 2)
        raise KeyboardInterrupt
    assert list(tracker.history) == [0, 1]
    train(optimizer, case, 1)
    assert list(tracker.history) == [0, 1]


def test_a_logger_is_called_after_each_record() -> None:
    seen = []
    tracker, optimizer, case = make_training(
        every=2, on_record=lambda step, report: seen.append((step, report))
    )
    with tracker.attach(optimizer):
        train(optimizer, case, 3)
    assert seen == list(tracker.history.items())
    assert [step for step, _ in seen] == [0, 2, 3]


def test_options_reach_layer_hessians(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def spy(_: object, options: Options, *__: object) -> HessianReport:
        assert isinstance(options.generator, torch.Generator)
        calls.append((options.norms, float(torch.rand((), generator=options.generator))))
        return HessianReport([])

    monkeypatch.setattr("hessinit_lib.hessians.layers.block_hessians", spy)
    mine, other = seeded(0), seeded(0)
    tracker, _, _ = make_training(every=1, norms=("frobenius",), generator=mine)
    tracker.step()
    torch.rand((), generator=mine)  # what others draw from it changes nothing
    tracker.step()
    assert calls == [(("frobenius",), float(torch.rand((), generator=other))) for _ in range(2)]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"norms": ("nuclear",)}, ValueError, "nuclear"),
        ({"tolerance": -1.0}, ValueError, "tolerance=-1.0"),
        ({"precision": 3}, TypeError, "precision"),
    ],
)
def test_options_are_checked_at_once(
    options: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make_training(**options)


def test_asynchronous_records_are_the_same() -> None:
    seen = []
    torch.manual_seed(0)
    now, optimizer, case = make_training(every=2)
    with now.attach(optimizer):
        train(optimizer, case, 5)
    torch.manual_seed(0)
    later, optimizer, other = make_training(
        every=2, asynchronous=True, on_record=lambda step, _: seen.append(step)
    )
    with later.attach(optimizer):
        train(optimizer, other, 5)
    assert seen == list(later.history) == [0, 2, 4, 5]
    for step, report in now.history.items():
        assert dict(report) == dict(later.history[step])
    for a, b in zip(case.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_errors_of_asynchronous_records_come_up_once() -> None:
    targets = torch.full((7,), 3)  # classes are 0 to 2
    case = make_case([4, 6, 3], ["tanh"], "cross_entropy", 7, 1.0, seed=2)
    tracker = HessianTracker(
        case.model, case.loss_fn, case.inputs, targets, every=[1], asynchronous=True
    )
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="class target 3"), tracker.attach(optimizer):
        train(optimizer, case, 2)
    assert not tracker.history


def test_asynchronous_needs_what_can_be_pickled() -> None:
    with pytest.raises(ValueError, match=r"asynchronous=True: expected .* that can be pickled"):
        HessianTracker(
            nn.Linear(4, 3),
            lambda outputs, _: outputs.square().mean(),
            torch.zeros(1, 4),
            torch.zeros(1),
            asynchronous=True,
        )


def test_a_worker_that_was_killed_is_replaced() -> None:
    case = make_case([4, 6, 3], ["tanh"], "cross_entropy", 7, 1.0, seed=2)
    tracker = HessianTracker(
        case.model, case.loss_fn, case.inputs, case.targets, every=1, asynchronous=True
    )
    worker = tracker._worker
    assert worker is not None
    with contextlib.closing(worker):
        tracker.step()
        assert list(tracker.history) == [0]
        assert worker._pool is not None
        for process in worker._pool._processes.values():
            process.kill()
            process.join()
        tracker.step()
        with contextlib.suppress(BrokenProcessPool):  # unless its death was seen before
            assert tracker.history
        tracker.step()
        assert 2 in tracker.history


def test_one_process_of_several_tracks_without_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward pass of the wrapper waits for all processes."""
    case = make_case([4, 6, 3], ["tanh"], "cross_entropy", 7, 1.0, seed=2)
    distributed, parallel = torch.distributed, nn.parallel.DistributedDataParallel
    if not distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        wrapped = parallel(case.model)
        monkeypatch.setattr(parallel, "forward", lambda *_: pytest.fail("waits for the others"))
        report = HessianTracker(wrapped, case.loss_fn, case.inputs, case.targets).step()
        assert report is not None
        assert list(report) == ["0.weight", "2.weight"]
        later = take_snapshot(wrapped, case.loss_fn, case.inputs, case.targets, {})
    finally:
        distributed.destroy_process_group()
    assert type(pickle.loads(later)[0]) is nn.Sequential  # a worker is in no group of processes


def test_networks_without_an_exact_route_are_tracked_by_their_gauss_newton_blocks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(0.5), nn.Linear(8, 12))
    x, y = torch.randn(32, 4), torch.randint(12, (32,))
    tracker = HessianTracker(model, nn.CrossEntropyLoss(), x, y)
    first, second = tracker.record(), tracker.record()
    assert {layer.curvature for layer in first.values()} == {"ggn"}
    assert "stopped at the budget of 2.5 training steps" in first.why_estimated
    assert repr(first) == repr(second)  # what is kept from one record to the next changes nothing
    close = HessianTracker(model, nn.CrossEntropyLoss(), x, y, tolerance=0.1).record()
    assert all(layer.stderr <= 0.1 * layer.frobenius for layer in close.values())
    whole = HessianTracker(model, nn.CrossEntropyLoss(), x, y, curvature="hessian").record()
    assert {layer.curvature for layer in whole.values()} == {"hessian"}
