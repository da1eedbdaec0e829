"""Our side of the benchmark: a training step, and the calls of `layer_hessians`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.rows import Problem
from benchmarks.timing import interleave
from hessinit_book.randomness import generator
from hessinit_lib import layer_hessians
from hessinit_lib.hessians import HessianReport

Norms = dict[str, tuple[float, float]]
"""Frobenius and spectral norm of each layer's Hessian block, by the weight's name."""

CALLS: dict[str, dict[str, Any]] = {
    "exact": {"method": "exact"},
    "exact_frobenius": {"method": "exact", "norms": ("frobenius",), "parts": False},
    "estimate_frobenius": {
        **{"method": "estimate", "norms": ("frobenius",)},
        **{"parts": False, "tolerance": 0.01},
    },
    "spectral": {"norms": ("spectral",), "parts": False, "tolerance": 0.01},
}
"""The options of each call that is timed."""

DRAWS = 3  # random draws behind the error of an estimate


def call(problem: Problem, seed: int = 0, **options: Any) -> HessianReport:
    """Compute the norms of all layers."""
    return layer_hessians(
        *(problem.model, problem.loss_fn, problem.inputs, problem.labels),
        generator=generator(seed, "estimate"),
        **options,
    )


def norms_of(report: HessianReport) -> Norms:
    """Take both norms out of a report."""
    return {name: (layer.frobenius, layer.spectral) for name, layer in report.items()}


def reference(problem: Problem) -> Norms:
    """Compute the exact norms in float64; the tests compare these with dense Hessians."""
    model = copy.deepcopy(problem.model).double()
    inputs = problem.inputs.double()
    found = layer_hessians(model, problem.loss_fn, inputs, problem.labels, method="exact")
    return norms_of(found)


def largest_error(found: list[Norms], exact: Norms) -> float:
    """Give the largest relative error of any layer and norm, rms over draws.

    Args:
        found: norms, one mapping a draw; NaN for a norm that was not asked for.
        exact: what they should be.
    """
    errors = [
        math.sqrt(sum((norms[name][i] / exact[name][i] - 1) ** 2 for norms in found) / len(found))
        for name in exact
        for i in (0, 1)
        if not math.isnan(found[0][name][i])
    ]
    return max(errors)


def training_step(problem: Problem) -> Callable[[], object]:
    """Make a training step: forward, loss, backward, SGD; rate 0, so that it stays the same."""
    model = copy.deepcopy(problem.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def step() -> None:
        optimizer.zero_grad()
        problem.loss_fn(model(problem.inputs), problem.labels).backward()
        optimizer.step()

    return step


def measure(
    problem: Problem, exact: Norms, budget: float, beside: Callable[[], object]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Time a training step and our calls, and check the accuracy of these.

    Args:
        problem: network and batch.
        exact: the norms as they should be.
        budget: time for the rounds [s].
        beside: something else to time in the same rounds.

    Returns:
        Duration of a "step", of what is "beside" it and of each call [s]; for each call its cost
        in steps and its largest relative error, or a note why there is none.
    """
    values: dict[str, Any] = {}
    actions: dict[str, Callable[[], object]] = {"step": training_step(problem), "beside": beside}
    for name, options in CALLS.items():
        try:
            seeds = range(DRAWS if options.get("method") == "estimate" else 1)
            found = [norms_of(call(problem, seed, **options)) for seed in seeds]
        except NotImplementedError as error:
            values[name] = {"note": str(error)}
            continue
        values[name] = {"error": largest_error(found, exact)}
        actions[name] = lambda options=options: call(problem, **options)
    least = interleave(actions, budget)
    for name in actions.keys() & values.keys():
        values[name]["steps"] = least[name] / least["step"]
    return least, values
