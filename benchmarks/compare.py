"""What another library's way costs to come within 1 % of the exact norm, for all layers.

Each way is given the best case: it stops as soon as it is close enough, which only the exact
value tells. Ways that would take too long are measured on some layers, spread over the
network, and scaled to all of them.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.ours import Norms
from benchmarks.rows import Problem
from benchmarks.timing import seconds, timed
from benchmarks.ways import AllAtOnce, Average, Stepwise, Way

ACCURACY = 0.01
MOST_PRODUCTS = 8  # of one Hutchinson estimate, while its error and its cost are measured
ESTIMATES = 3  # of these, a layer

Sample = tuple[int, float]  # products, and the relative error of the norm they gave


def compare(
    ways: Sequence[Way], problem: Problem, exact: Norms, step: float, budget: float
) -> dict[str, Any]:
    """Measure all ways.

    Args:
        ways: of the libraries that are installed.
        problem: network and batch.
        exact: the norms as they should be.
        step: duration of a training step [s].
        budget: time for each way [s].

    Returns:
        For each way its norms, its cost in steps to be within 1 %, its largest relative
        error, on how many layers it was measured, whether it got there; or a note why not.
    """
    found: dict[str, dict[str, Any]] = {}
    averages: dict[str, dict[str, tuple[float, list[Sample]]]] = {}
    # The libraries draw from torch's global generator: it is seeded, and put back.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        for way in ways:
            torch.manual_seed(0)
            try:
                if isinstance(way, Average):
                    averages[way.name] = sample(way, problem, exact, budget)
                elif isinstance(way, Stepwise):
                    found[way.name] = climb(way, problem, exact, budget)
                else:
                    found[way.name] = run_at_once(way, problem, exact)
            except (AssertionError, RuntimeError, TypeError, ValueError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                found[way.name] = {"note": f"fails: {reason}"[:200]}
    found |= by_square_root_law(averages, len(exact))
    for value in found.values():
        if "seconds" in value:
            value["steps"] = value.pop("seconds") / step
    return found


def climb(way: Stepwise, problem: Problem, exact: Norms, budget: float) -> dict[str, Any]:
    """Raise the effort until each layer's norm is within 1 %; take the time of that effort."""
    names = spread(exact)
    way.prepare(problem, names[0])(way.efforts[0])  # warm up
    start = time.perf_counter()
    climbs: list[Climb] = []
    for name in names:
        # The first layer may take more: without it there is no figure at all.
        end = start + budget * (1 if climbs else 2)
        one = climb_layer(way, problem, name, exact[name], end)
        if one.stopped == "time" and climbs:
            break  # the layers so far stand for all
        climbs.append(one)
        if one.stopped:
            break
    found = {
        "norms": [way.norm],
        "seconds": sum(one.seconds for one in climbs) / len(climbs) * len(names),
        "error": max(one.error for one in climbs),
        "layers": len(climbs),
        "reached": not climbs[-1].stopped,
    }
    return found | ({"note": climbs[-1].stopped} if climbs[-1].stopped else {})


@dataclass(frozen=True)
class Climb:
    """How far a way came on a layer: time [s] and error of the last effort, what stopped it."""

    seconds: float
    error: float
    stopped: str = ""


def climb_layer(
    way: Stepwise, problem: Problem, name: str, exact: tuple[float, float], end: float
) -> Climb:
    """Raise the effort on one layer until the norm is within 1 %, or the time is over."""
    target = exact[("frobenius", "spectral").index(way.norm)]
    duration, error, before = 0.0, math.inf, way.efforts[0]
    for effort in way.efforts:
        if not way.fits(problem, effort):
            return Climb(duration, error, "memory")
        if time.perf_counter() + duration * way.draws * effort / before > end:
            return Climb(duration, error, "time")
        runs = [_timed(way, problem, name, effort) for _ in range(way.draws)]
        duration, before = min(took for _, took in runs), effort
        error = _rms([value / target - 1 for value, _ in runs])
        if error <= ACCURACY:
            again = 3 if duration < 1.0 else 0  # a moment's load must not count
            repeats = [_timed(way, problem, name, effort)[1] for _ in range(again)]
            return Climb(min([duration, *repeats]), error)
    return Climb(duration, error, "effort")


def run_at_once(way: AllAtOnce, problem: Problem, exact: Norms) -> dict[str, Any]:
    """Time a way that has no effort to choose."""
    reason = way.refuses(problem)
    if reason:
        return {"note": reason}
    norms = way.norms(problem)
    duration = min(seconds(lambda: way.norms(problem)) for _ in range(2))
    error = max(abs(norms[name][i] / exact[name][i] - 1) for name in exact for i in (0, 1))
    return {
        "norms": ["frobenius", "spectral"],
        "seconds": duration,
        "error": error,
        "layers": len(exact),
        "reached": error <= ACCURACY,
    }


def sample(
    way: Average, problem: Problem, exact: Norms, budget: float
) -> dict[str, tuple[float, list[Sample]]]:
    """Take some estimates of few products.

    Returns:
        For each layer that was reached in time: duration of one product [s], and samples.
    """
    start = time.perf_counter()
    taken: dict[str, tuple[float, list[Sample]]] = {}
    for name in spread(exact):
        estimate = way.prepare(problem, name)
        samples = [(1, _off(estimate(1), exact[name][0]))]  # warms up, too
        once = seconds(lambda estimate=estimate: estimate(1))
        # Three layers should fit into the budget, each with as many products as is fast.
        products = max(1, min(MOST_PRODUCTS, int(budget / (3 * ESTIMATES * once))))
        durations = []
        for _ in range(ESTIMATES):
            squared, took = timed(lambda: estimate(products))  # noqa: B023 - called at once
            samples.append((products, _off(squared, exact[name][0])))
            durations.append(took / products)
        taken[name] = (min(durations), samples)
        if time.perf_counter() - start > budget:
            break
    return taken


def by_square_root_law(
    averages: dict[str, dict[str, tuple[float, list[Sample]]]], layers: int
) -> dict[str, dict[str, Any]]:
    """Scale the cost of Hutchinson's estimate to 1 %.

    An average of N products errs by e / sqrt(N), where e, the error of one, is a property of
    the block, the same for every library: it is taken from the samples of all of them.

    Args:
        averages: for each way and layer, duration of a product [s] and samples.
        layers: number of layers of the network.
    """
    pooled: dict[str, list[Sample]] = {}
    for taken in averages.values():
        for name, (_, samples) in taken.items():
            pooled.setdefault(name, []).extend(samples)
    needed = {
        name: max(1.0, (_rms([off * math.sqrt(n) for n, off in samples]) / ACCURACY) ** 2)
        for name, samples in pooled.items()
    }
    return {
        way: {
            "norms": ["frobenius"],
            "seconds": sum(needed[n] * once for n, (once, _) in taken.items())
            * (layers / len(taken)),
            "error": ACCURACY,
            "products": [round(needed[name]) for name in taken],
            "layers": len(taken),
            "reached": True,
        }
        for way, taken in averages.items()
    }


def check_law(way: Average, problem: Problem, exact: Norms, products: int) -> dict[str, Any]:
    """Compare the error of an average of many products with the law's, on the first layer."""
    name = next(iter(exact))
    estimate = way.prepare(problem, name)
    one = _rms([_off(estimate(1), exact[name][0]) for _ in range(2000)])
    many = [math.sqrt(estimate(products)) / exact[name][0] - 1 for _ in range(150)]
    return {
        "products": products,
        "predicted": one / math.sqrt(products),
        "measured": _rms(many),
        "repetitions": len(many),
    }


def spread(names: Sequence[str] | Norms) -> list[str]:
    """Order layers so that the first few of them are spread over the network.

    Example:
        >>> spread(["a", "b", "c", "d", "e"])
        ['a', 'e', 'c', 'b', 'd']
    """
    ordered = list(names)
    last = len(ordered) - 1
    places = [0, last, *(last * part // 8 for part in (4, 2, 6)), *range(last + 1)]
    return [ordered[place] for place in dict.fromkeys(places)]


def _timed(way: Stepwise, problem: Problem, name: str, effort: int) -> tuple[float, float]:
    return timed(lambda: way.prepare(problem, name)(effort))


def _off(squared: float, exact: float) -> float:
    """Turn the error of a squared norm into that of the norm, to first order."""
    return (squared / exact**2 - 1) / 2


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))
