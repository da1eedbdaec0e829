"""Follow the advice of a diagnosis, and see by the loss after 300 steps whether it helped.

Steps of SGD without momentum on batches of 32 of 512 samples, at the best of three rates.
"""

from __future__ import annotations

import copy
import math
import time
from typing import Any

import torch
from torch import nn

from hessinit_book.randomness import generator as seeded
from hessinit_book.zoo.faults import POOL, Planted, Problem
from hessinit_lib import init
from hessinit_lib.diagnosis.report import Diagnosis

STEPS, RATES, BATCH, SAMPLES = 300, (0.001, 0.01, 0.1), 32, 512


def followed(planted: Planted, found: Diagnosis, seconds: float = 3.0) -> dict[str, Any]:
    """Give the losses before and after the advice, or why there are none.

    Args:
        planted: the fault.
        found: what `diagnose` said of it.
        seconds: the most that one training may take; larger problems are skipped.
    """
    if not found.faults:
        return {"skipped": "no fault was named"}
    if not planted.trainable:
        return {"skipped": "the losses before and after cannot be compared"}
    token = POOL.set(SAMPLES)
    try:
        before = planted.make()
        if _step_seconds(before) * STEPS > seconds:
            return {"skipped": f"300 steps take more than {seconds:g} s"}
        how, after = _mended(planted, found)
        if after is None:
            return {"skipped": how}
        return {"how": how, "before": trained(before, STEPS), "after": trained(after, STEPS)}
    except (RuntimeError, ValueError) as error:
        return {"skipped": f"following it raised {type(error).__name__}: {str(error)[:200]}"}
    finally:
        POOL.reset(token)


def trained(problem: Problem, steps: int) -> float:
    """Give the lowest loss over rates after these many steps."""
    return min((_loss_after(problem, rate, steps) for rate in RATES), default=math.inf)


def _loss_after(problem: Problem, rate: float, steps: int) -> float:
    model = copy.deepcopy(problem.model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=rate)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        source = seeded(0, "zoo training")
        for _ in range(steps):
            optimizer.zero_grad()
            some = torch.randperm(len(problem.inputs), generator=source)[:BATCH]
            loss = problem.loss(model(problem.inputs[some]), problem.targets[some])
            if not math.isfinite(loss.item()):
                return math.inf
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            loss = problem.loss(model(problem.inputs), problem.targets).item()
    return loss if math.isfinite(loss) else math.inf


def _step_seconds(problem: Problem) -> float:
    times = []
    for steps in (1, 0, 3):  # the first warms up; the second is what comes after the steps
        start = time.perf_counter()
        _loss_after(problem, 0.0, steps)
        times.append(time.perf_counter() - start)
    return max(times[2] - times[1], 0.0) / 3


def _mended(planted: Planted, found: Diagnosis) -> tuple[str, Problem | None]:
    """Do what the advice says: by its scheme, else by hand where that is known."""
    problem = planted.make()
    generator = torch.Generator().manual_seed(1)
    if found.scheme == "hessian_":
        init.hessian_(
            problem.model, problem.loss, problem.inputs, problem.targets, generator=generator
        )
        return "hessian_", problem
    if found.scheme and planted.mended is None:
        modules = [_owner(problem.model, fault.where) for fault in found.faults]
        for module in modules:
            init.apply(module, found.scheme, generator=generator)
        return found.scheme, problem
    if planted.mended is not None:
        return "in words", planted.mended()
    return f"in words only: {found.faults[0].remedy}", None


def _owner(model: nn.Module, where: str) -> nn.Module:
    """Find the module of a weight; the whole model where a fault names none."""
    modules = dict(model.named_modules())
    return modules.get(where) or modules.get(where.rpartition(".")[0], model)
