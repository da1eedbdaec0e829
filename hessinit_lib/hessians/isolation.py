"""Nothing of the caller's stays changed: modes, hooks, random states, settings, attributes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hessinit_lib.hessians.numerics.precision import without_callers_modes

P = ParamSpec("P")
R = TypeVar("R")


def entry(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function whose first argument is a model: modes of the caller do not matter.

    See `without_callers_modes`. Should it not end, the model's modes, hooks and tensors, the
    random state and the settings of the process are put back. What changes them does that by
    itself, but an interrupt may come between two of its lines.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        model = args[0] if args else kwargs.get("model")
        with without_callers_modes():
            model = model if isinstance(model, nn.Module) else nn.Module()
            put_back = _put_back(model)
            kept = [b for b in model.buffers() if not (b.is_meta or b.is_inference() or is_lazy(b))]
            before = [buffer.clone() for buffer in kept]
            try:
                return function(*args, **kwargs)
            except BaseException:
                put_back()
                raise
            finally:  # a loss may call the model by itself
                for buffer, value in zip(kept, before, strict=True):
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)

    return call


def _put_back(model: nn.Module) -> Callable[[], None]:
    """Give the function that makes all what it is now, but for the numbers in tensors."""
    tables = ("_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks")
    modules = [
        (
            module,
            module.training,
            [(vars(module)[table], [*vars(module)[table].items()]) for table in tables],
        )
        for module in model.modules()
    ]
    cuda, devices = torch.backends.cuda, cards(p for p in model.parameters() if not is_lazy(p))
    random = random_states(devices)
    threads = torch.get_num_threads()
    switches = [
        (cuda.enable_flash_sdp, cuda.flash_sdp_enabled()),
        (cuda.enable_mem_efficient_sdp, cuda.mem_efficient_sdp_enabled()),
        (cuda.enable_math_sdp, cuda.math_sdp_enabled()),
        (cuda.enable_cudnn_sdp, cuda.cudnn_sdp_enabled()),
    ]
    backends: list[Any] = [torch.backends.cudnn, torch.backends.mkldnn]
    libraries = [(owner, owner.enabled) for owner in backends]

    def put_back() -> None:
        for module, training, contents in modules:
            module.training = training
            for table, items in contents:
                if [*map(id, table.values())] != [id(value) for _, value in items]:
                    table.clear()
                    table.update(items)
        for switch, value in switches:
            switch(value)
        for owner, enabled in libraries:
            owner.enabled = enabled
        set_random_states(random, devices)
        torch.set_num_threads(threads)

    return put_back


def random_states(devices: Sequence[int]) -> list[Tensor]:
    """Give the states of the global streams, of the processor and of some GPUs."""
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]


def set_random_states(states: Sequence[Tensor], devices: Sequence[int]) -> None:
    """Put back what `random_states` gave."""
    torch.set_rng_state(states[0])
    for state, device in zip(states[1:], devices, strict=True):
        torch.cuda.set_rng_state(state, device)


@contextmanager
def random_state_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Put the global random state back, on the processor and the devices of some tensors."""
    with torch.random.fork_rng(devices=cards(tensors)):
        yield


def cards(tensors: Iterable[Tensor]) -> list[int]:
    """Give the numbers of the GPUs that hold some of the tensors."""
    return sorted({tensor.device.index or 0 for tensor in tensors if tensor.is_cuda})


@contextmanager
def dense_gradients(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let embeddings have dense gradients: sparse ones have no derivative."""
    with ExitStack() as stack:
        for module in modules:
            if getattr(module, "sparse", False) is True:
                stack.enter_context(attribute(module, "sparse", False))
        yield


@contextmanager
def attribute(owner: object, name: str, value: object) -> Iterator[None]:
    """Set an attribute, and put it back."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
