"""Follow the advice of a diagnosis, and see by the loss after 300 steps whether it helped.

Steps of SGD without momentum on batches of 32 of 512 samples, at the best of seven
rates (of three where that takes long).
"""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import torch

from hessinit_book.randomness import generator as seeded
from hessinit_book.zoo.faults import POOL, Planted, Problem
from hessinit_lib import init
from hessinit_lib.diagnosis.report import Diagnosis

STEPS, BATCH, SAMPLES = 300, 32, 512
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
SLOW = 3.0  # seconds of a training, from which on every other rate is left out


def followed(planted: Planted, found: Diagnosis, seconds: float = 60.0) -> dict[str, Any]:
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
        expected = _step_seconds(before) * STEPS
        rates = RATES if expected <= SLOW else RATES[1::2]
        if expected > seconds:
            return {"skipped": f"300 steps take more than {seconds:g} s"}
        how, after = _mended(planted, found)
        if after is None:
            return {"skipped": how}
        losses = {"before": trained(before, STEPS, rates), "after": trained(after, STEPS, rates)}
        return {"how": how, "rates": len(rates), **losses}
    except (RuntimeError, ValueError) as error:
        return {"skipped": f"following it raised {type(error).__name__}: {str(error)[:200]}"}
    finally:
        POOL.reset(token)


def trained(problem: Problem, steps: int, rates: Sequence[float] = RATES) -> float:
    """Give the lowest loss over rates after these many steps."""
    return min((_loss_after(problem, rate, steps) for rate in rates), default=math.inf)


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
    """Do what the advice says, word by word; by hand where it is about code or data."""
    problem = planted.make()
    model = problem.model
    generator = torch.Generator().manual_seed(1)
    if found.scheme == "looks_linear_":
        init.looks_linear_(model, problem.inputs, generator=generator)
        return "looks_linear_", problem
    if planted.mended is not None:
        return "in words", planted.mended()
    done = []
    for fault in found.faults:
        owner = fault.where.rpartition(".")[0]
        if drawn := re.fullmatch(r"draw (its|all) weights by .*'(\w+)'\)?", fault.remedy):
            part = model if drawn[1] == "all" else model.get_submodule(owner)
            init.apply(part, drawn[2], generator=generator)
        elif factor := re.fullmatch(r"multiply (\S+) by (\S+)", fault.remedy):
            model.get_parameter(factor[1]).data.mul_(float(factor[2]))
        elif factor := re.fullmatch(r"multiply its weight and bias by (\S+)", fault.remedy):
            for parameter in model.get_submodule(owner).parameters():
                parameter.data.mul_(float(factor[1]))
        elif fault.remedy == "set its bias to zero":
            model.get_parameter(f"{owner}.bias").data.zero_()
        elif fault.remedy in ("set it to zero", "start it at 1"):
            model.get_parameter(fault.where).data.fill_(float(fault.remedy == "start it at 1"))
        elif fault.remedy.startswith("start "):
            for name, value in model.named_parameters():
                if name in fault.remedy or ("all" in fault.remedy and _is_zero_scale(name, value)):
                    value.data.fill_(1)
        elif fault.kind == "recurrent" and fault.tried:
            torch.nn.init.orthogonal_(model.get_parameter(fault.where), generator=generator)
        else:
            continue
        done.append(fault.remedy)
    if not done:
        return f"in words only: {found.faults[0].remedy}", None
    return "; ".join(dict.fromkeys(done)), problem


def _is_zero_scale(name: str, value: torch.Tensor) -> bool:
    return value.ndim == 1 and name.endswith("weight") and not value.any()
