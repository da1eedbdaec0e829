"""What is the user's is as it was: after a call, an error or an interrupt, and with threads."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_book.rivals.fixup import fixup_
from hessinit_book.rivals.gradinit import gradinit_
from hessinit_book.rivals.metainit import metainit_
from hessinit_lib import HessianTracker, diagnose, init, layer_hessians, model_hessian, spectrum
from hessinit_lib.hessians.tracker import due

X = torch.linspace(-1, 1, 24).view(6, 4)
Y = torch.arange(6) % 3


class Interrupted(nn.Module):
    """Passes its inputs on, draws random numbers and counts calls, until the last one."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.seen = 0
        self.last: int | None = None
        self.error: type[BaseException] = RuntimeError

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.calls += 1
        torch.rand(1)
        if self.seen == self.last:
            raise self.error("stop")
        return x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.tanh(self.first(x)))


def network() -> tuple[nn.Sequential, Interrupted]:
    stop = Interrupted()
    parts = [nn.Linear(4, 4), nn.Dropout(0.5), Block(), Block(), stop, nn.Linear(4, 3)]
    model = nn.Sequential(*parts)
    model[0].register_forward_hook(lambda *_: None)
    F.cross_entropy(model(X), Y).backward()
    return model, stop


def state_of(model: nn.Module) -> list[Any]:
    """List all that a call must leave: as values that can be compared."""
    matmul = torch.backends.cuda.matmul
    return [
        {name: value.clone() for name, value in model.state_dict().items()},
        {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        [(p.requires_grad, p.data_ptr()) for p in model.parameters()],
        [module.training for module in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        torch.get_rng_state(),
        process_state(),
        getattr(matmul, "fp32_precision", None),
    ]


def process_state() -> list[Any]:
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return [
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
    ]


def same(left: list[Any], right: list[Any]) -> bool:
    torch.testing.assert_close(left[:6], right[:6], rtol=0, atol=0, equal_nan=True)
    return left[6:] == right[6:]


def _tracked(model: nn.Module) -> object:
    return HessianTracker(model, F.cross_entropy, X, Y).step()


GENERATOR = torch.Generator()
READERS: dict[str, Callable[[nn.Module], object]] = {
    "layer_hessians": lambda m: layer_hessians(m.eval(), F.cross_entropy, X, Y),
    "model_hessian": lambda m: model_hessian(m.eval(), F.cross_entropy, X, Y),
    "spectrum": lambda m: spectrum(m.eval(), F.cross_entropy, X, Y, steps=3),
    "tracker": _tracked,
    "diagnose": lambda m: diagnose(m, F.cross_entropy, X, Y),
}
BATCHES = [(X, Y)] * 3
WRITERS: dict[str, Callable[[nn.Module], object]] = {
    "apply": lambda m: init.apply(m, "torch"),
    "hessian_": lambda m: init.hessian_(m, F.cross_entropy, X, Y, tolerance=3.0),
    "looks_linear_": lambda m: init.looks_linear_(m, X),
    "scale_outputs_": lambda m: init.scale_outputs_(m, X),
    "lsuv_": lambda m: init.lsuv_(m, X),
    "fixup_": lambda m: fixup_(m, X),
    "metainit_": lambda m: metainit_(m, F.cross_entropy, BATCHES),
    "gradinit_": lambda m: gradinit_(m, F.cross_entropy, BATCHES),
}


@pytest.mark.parametrize("entry", READERS)
def test_a_call_leaves_all_as_found(entry: str) -> None:
    model, _ = network()
    model.train(entry in ("tracker", "diagnose"))
    before = state_of(model)
    READERS[entry](model)
    assert same(state_of(model), before)


@pytest.mark.parametrize("entry", WRITERS)
def test_an_initialization_changes_weights_alone(entry: str) -> None:
    model, _ = network()
    with_generator = {"apply", "hessian_", "looks_linear_", "lsuv_", "fixup_"}
    before = state_of(model)
    WRITERS[entry](model)
    after = state_of(model)
    weights = dict(model.named_parameters())
    assert not all(torch.equal(after[0][name], before[0][name]) for name in weights)
    for name in weights:
        after[0].pop(name), before[0].pop(name)
    if entry in with_generator:  # which draw from the global one
        after[5] = before[5]
    assert same(after, before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("entry", [*READERS, *WRITERS])
def test_an_error_in_the_middle_leaves_all_as_found(entry: str, error: type[BaseException]) -> None:
    run = {**READERS, **WRITERS}[entry]
    model, stop = network()
    model.train(entry not in ("layer_hessians", "model_hessian", "spectrum"))
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    stop.seen = 0
    run(model)
    calls = stop.seen
    model.load_state_dict(kept)
    if calls == 0:
        pytest.skip("does not call the model")
    raised = 0
    for last in sorted({1, 2, 3, calls // 2, calls - 1, calls} & set(range(1, calls + 1))):
        before = state_of(model)
        stop.seen, stop.last, stop.error = 0, last, error
        try:
            run(model)
        except (RuntimeError, ValueError, NotImplementedError, KeyboardInterrupt) as caught:
            raised += "stop" in str(caught)
            assert same(state_of(model), before), last
        else:  # what only looks may go on after an error, not after an interrupt
            assert error is RuntimeError
            model.load_state_dict(kept)
    assert raised


def test_drawing_that_is_interrupted_leaves_weights_and_generators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Layers are drawn one after the other; so are the weights that descents give back."""
    model, _ = network()
    generator = torch.Generator().manual_seed(3)
    before, drawn = state_of(model), generator.get_state()
    from hessinit_lib.init import schemes

    calls = 0

    def interrupted(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return init.orthogonal_(*args, **kwargs)

    monkeypatch.setattr(schemes, "orthogonal_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        init.apply(model, "orthogonal", generator=generator)
    assert same(state_of(model), before)
    assert torch.equal(generator.get_state(), drawn)


@pytest.mark.parametrize(
    "entry", ["layer_hessians", "spectrum", "tracker", "diagnose", "hessian_", "lsuv_"]
)
def test_an_interrupt_between_two_lines_leaves_all_as_found(
    entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a hook is set and whoever is to remove it does not know it yet."""
    model, _ = network()
    model[3] = nn.LayerNorm(4)  # for which there are hooks on all routes
    model.train(entry not in ("layer_hessians", "model_hessian", "spectrum"))
    before = state_of(model)
    register = nn.Module.register_forward_hook

    def interrupted(*args: Any, **kwargs: Any) -> None:
        register(*args, **kwargs)
        for module in model.modules():
            module.training = not module.training
        torch.backends.cuda.enable_flash_sdp(False)
        torch.set_num_threads(torch.get_num_threads() + 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(nn.Module, "register_forward_hook", interrupted)
    with pytest.raises(KeyboardInterrupt):
        {**READERS, **WRITERS}[entry](model)
    assert same(state_of(model), before)


def test_threads_leave_the_settings_of_the_process() -> None:
    """The second call starts in the first one, and ends after it."""
    within, ended = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    class Waiting(nn.Module):
        def __init__(self, tell: threading.Event, wait: threading.Event) -> None:
            super().__init__()
            self.tell, self.wait, self.met = tell, wait, False

        def forward(self, x: Tensor) -> Tensor:
            self.tell.set()
            if not self.met:
                self.met = True
                self.wait.wait(0.3)
            return torch.tanh(x)

    inside = threading.Event()
    first = nn.Sequential(nn.Linear(4, 4), Waiting(inside, within), nn.Linear(4, 3))
    second = nn.Sequential(nn.Linear(4, 4), Waiting(within, ended), nn.Linear(4, 3))

    def run(model: nn.Module, before: threading.Event | None, after: threading.Event) -> None:
        try:
            if before is not None:
                before.wait(5)
            layer_hessians(model, F.cross_entropy, X, Y)
        except BaseException as error:
            errors.append(error)
        finally:
            after.set()

    before = process_state()
    threads = [
        threading.Thread(target=run, args=(first, None, ended)),
        threading.Thread(target=run, args=(second, inside, threading.Event())),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert process_state() == before


def test_modes_of_the_caller_do_not_matter() -> None:
    for entry in WRITERS:
        torch.manual_seed(0)
        model, _ = network()
        wanted, found = network()[0], network()[0]
        for other in (wanted, found):
            other.load_state_dict(model.state_dict())
        torch.manual_seed(1)
        WRITERS[entry](wanted)
        torch.manual_seed(1)
        with torch.no_grad(), torch.autocast("cpu"):
            WRITERS[entry](found)
        torch.testing.assert_close(found.state_dict(), wanted.state_dict())


@pytest.mark.parametrize("every", [[-1], [], [0, -2]])
def test_a_schedule_that_never_comes_is_refused(every: list[int]) -> None:
    with pytest.raises(ValueError, match="expected steps from 0 on"):
        due(every)


def test_what_is_no_generator_is_refused() -> None:
    """In a process of its own: in this one, annotations are checked at each call."""
    code = """
import torch, hessinit_lib
from torch import nn
case = nn.Linear(2, 2), nn.MSELoss(), torch.ones(3, 2), torch.zeros(3, 2)
for entry in ("layer_hessians", "model_hessian", "spectrum", "diagnose", "HessianTracker"):
    try:
        getattr(hessinit_lib, entry)(*case, generator=5)
    except ValueError as error:
        assert "expected a torch.Generator" in str(error), error
        print(entry)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) == 5


def test_a_loss_that_calls_the_model_leaves_its_buffers() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    x, y = torch.randn(5, 4), torch.randn(5, 3)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = model(x)
        return (outputs - teacher).square().mean()

    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match="batch normalization"):
        layer_hessians(model, loss, x, y)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
