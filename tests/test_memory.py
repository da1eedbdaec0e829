"""Bounds on the memory of the route for graphs of any shape."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from networks import graph_hessians, labels, seeded
from test_graph_hessians import Inception, ResNet, Tokens, normal, prepare
from torch import Tensor, nn

from hessinit_lib.hessians.graph import backward
from hessinit_lib.hessians.graph.backward import segments
from hessinit_lib.hessians.graph.capture import capture
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import HessianReport


def report(model: nn.Module, inputs: Tensor, limit: int | None) -> HessianReport:
    options = Options(max_memory=limit)
    return graph_hessians(model, nn.CrossEntropyLoss(), inputs, labels(len(inputs)), options)


def smallest(model: nn.Module, inputs: Tensor) -> int:
    """Read the bytes that are needed at least from the error."""
    with pytest.raises(ValueError, match=r"max_memory=1: at least \d+ bytes") as caught:
        report(model, inputs, 1)
    return int(str(caught.value).split("at least ")[1].split()[0])


CASES = {
    "residual": (ResNet, normal(6, 2, 8, 8)),
    "branches": (Inception, normal(6, 2, 6, 6)),
    "tokens": (Tokens, torch.randint(11, (6, 6), generator=seeded(3))),
    "groups": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)
        ),
        normal(6, 4, 6, 6),
    ),
}


@pytest.mark.parametrize("part", [1.0, 1.2, 2.0, 20.0])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_results_do_not_depend_on_the_memory(
    case: tuple[Callable[[], nn.Module], Tensor], part: float
) -> None:
    model, inputs = prepare(case[0](), 1), case[1]
    least = smallest(model, inputs)
    free, bound = report(model, inputs, None), report(model, inputs, int(part * least) + 8)
    for name, layer in free.items():
        assert bound[name].frobenius == pytest.approx(layer.frobenius, rel=1e-12)
        assert bound[name].trace == pytest.approx(layer.trace, rel=1e-12)
        assert bound[name].spectral == pytest.approx(layer.spectral, rel=1e-9)
    with pytest.raises(ValueError, match="at least"):
        report(model, inputs, least // 2)


def test_segments_need_not_be_held_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = prepare(ResNet(), 1), normal(5, 2, 4, 4)
    joined = report(model, inputs, None)
    monkeypatch.setattr(backward, "_SEGMENT", 1)
    layers, logits = capture(model, inputs)
    assert [len(part.layers) for part in segments(logits, layers, 1)] == [1, 2, 1]
    for name, layer in report(model, inputs, None).items():
        assert layer.frobenius == pytest.approx(joined[name].frobenius, rel=1e-12)


_MEASURE = """
import pathlib, torch
from torch import nn
from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.graph.capture import capture
from hessinit_lib.hessians.graph.hessians import graph_hessians
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import HessianReport

def peak():  # of this process alone: getrusage counts what its parent had at the fork
    status = dict(line.split(":") for line in pathlib.Path("/proc/self/status").open())
    return int(status["VmHWM"].split()[0]) * 1024

layers = [nn.Conv2d(3, 16, 3, padding=1)]
for _ in range(5):
    layers += [nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)]
model = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
x, y = torch.rand(32, 3, 32, 32), torch.arange(32) % 10
graph_hessians(Case(model, nn.CrossEntropyLoss(), x[:2], y[:2]))  # libraries and their buffers
graph = capture(model, x)
before = peak()
del graph
graph_hessians(Case(model, nn.CrossEntropyLoss(), x, y), Options(max_memory={limit}))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_the_bound_holds_for_the_process() -> None:
    def used(limit: int | None) -> int:
        code = _MEASURE.replace("{limit}", str(limit))
        # What is freed goes back to the system at once: glibc would keep some of it.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, check=True
        )
        return int(run.stdout)

    limit = 40 << 20
    assert used(limit) < 1.25 * limit < used(None)
