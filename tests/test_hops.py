"""How often `layer_hessians` passes the model on: parsed, unwrapped and checked once."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import pytest
import torch
from networks import labels, seeded
from torch import nn

import hessinit_lib
from hessinit_lib import layer_hessians
from hessinit_lib.hessians.case import Case

LIBRARY = str(Path(hessinit_lib.__file__).parent)
OWN = {name for name, value in vars(Case).items() if isinstance(value, property)}
ROUTES = {
    "chain": (
        nn.Sequential(
            *(nn.Linear(784, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 10))
        ),
        (784,),
    ),
    "graph": (
        nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
        ),
        (1, 8, 8),
    ),
    "estimate": (
        nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)),
        (4,),
    ),
}


def is_passed(frame: FrameType, model: nn.Module) -> bool:
    """Whether a call got the model as an argument, by itself or in a case."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4)
    values = (frame.f_locals.get(name) for name in code.co_varnames[:count])
    return any(v is model or (isinstance(v, Case) and v.model is model) for v in values)


@pytest.mark.parametrize("route", ROUTES)
def test_the_model_is_passed_on_few_times(route: str) -> None:
    model, shape = ROUTES[route]
    x, y = torch.randn(16, *shape, generator=seeded(0)), labels(16)
    calls: list[str] = []
    seen: list[FrameType] = []  # a generator goes on in its frame: it got the model once

    def note(frame: FrameType, event: str, _: object) -> None:
        inside = event == "call" and frame.f_code.co_filename.startswith(LIBRARY)
        inside = inside and frame.f_code.co_name not in OWN  # what a case says of itself
        if inside and frame not in seen and is_passed(frame, model):
            seen.append(frame)
            calls.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        report = layer_hessians(model, nn.CrossEntropyLoss(), x, y)
    finally:
        sys.setprofile(None)
    assert bool(report.why_estimated) == (route == "estimate")
    assert "layer_hessians" in calls
    assert len(calls) <= 36, calls
