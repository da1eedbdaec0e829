"""How many kernels a call launches, and how often the host waits: what takes the time on a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.modern_networks import NETWORKS
from benchmarks.rows import ROWS
from hessinit_lib import layer_hessians

# Launches and waits of one call; before the work on them, and what they may be.
BUDGETS = {
    "resnet20_b64": (600, 10),  # 2,600 and 62
    "mlp512_b1024": (230, 6),  # 679 and 29
    "lenet_b128": (260, 10),  # 740 and 45
    "tanh_b128": (830, 12),  # 3,533 and 198
    "gpt": (3000, 90),  # 6,284 and 275
}


SAMPLES = {"resnet20_b64": 16, "mlp512_b1024": 480}


@pytest.mark.parametrize("name", BUDGETS)
def test_launches_and_waits(name: str, gpu: Any) -> None:
    if gpu is None:
        pytest.skip("counted on a pretend GPU")
    options: dict[str, Any] = {}
    if name in ROWS:
        problem = ROWS[name].problem()
    else:
        problem = NETWORKS[next(key for key in NETWORKS if name in key.lower())].problem()
        options = {"curvature": "ggn", "tolerance": 0.05, "norms": ("frobenius",)}
    some = slice(SAMPLES.get(name))  # of more, operations are larger, but not more
    model, x, y = problem.model.cuda(), problem.inputs[some].cuda(), problem.labels[some].cuda()
    gpu.clear()
    layer_hessians(model, problem.loss_fn, x, y, **options)
    launches, waits = BUDGETS[name]
    assert gpu.launches.total() <= launches
    assert gpu.waits.total() <= waits
