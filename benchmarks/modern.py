"""Gauss-Newton norms of all layers of the networks people train, beside the other libraries.

Asked for are the Frobenius norms to 5 %: the median layer's error, root mean square over
random draws; the worst layer's is measured, too. Each way gets its smallest effort that does
it, which only a long reference run tells, so all are at their best:

- ours: `layer_hessians(curvature="ggn")`, with the loosest tolerance; traces come along.
- gradients of each sample, by `torch.func` or BackPACK: our estimator on materialized
  gradients of all layers; a draw after the second is paired with those that fit into memory.
- products with vectors, one layer at a time: measured on layers spread over the network, and
  scaled to all. Hutchinson's error falls as the square root of the number of products.

usage: python -m benchmarks.modern [--names NAME ...] [--budget SECONDS] [--device cuda]
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from statistics import median
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import compare, ours, peers
from benchmarks.__main__ import THREADS, prepare
from benchmarks.modern_networks import NETWORKS, Network
from benchmarks.peers import with_torch_func
from benchmarks.per_sample import KEPT, Values, all_columns, fits, from_gradients
from benchmarks.recording import Recording, add_recording
from benchmarks.rows import Problem
from benchmarks.timing import interleave, timed
from benchmarks.ways import Average, GgnWay, PerSample, Stepwise
from hessinit_book.data import load
from hessinit_book.randomness import generator
from hessinit_lib import layer_hessians

ACCURACY, REFERENCE = 0.05, 0.01
TOLERANCES = (0.3, 0.2, 0.14, 0.1, 0.07, 0.05)
DRAWS = 6  # of an estimate, behind its error
EFFORTS = (2, 3, 4, 6, 9)  # draws of per-sample gradients
QUICK_SIZE = 8

CONTEXTS: dict[str, Callable[[], Any]] = {
    "": nullcontext,
    # The fast kernels of attention and of recurrent layers have no forward-mode derivatives.
    "attention by its formula": lambda: sdpa_kernel(SDPBackend.MATH),
    "without oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
}
"""What is changed for a way that does not run otherwise."""


def call(problem: Problem, seed: int, **options: Any) -> tuple[Values, Values]:
    """Call ours: what it gives, and the standard errors that it states."""
    report = layer_hessians(
        *(problem.model, problem.loss_fn, problem.inputs, problem.labels),
        **{"curvature": "ggn", "norms": ("frobenius",), **options},
        generator=generator(seed, "estimate"),
    )
    layers = report.items()
    found = {name: (layer.frobenius, layer.trace) for name, layer in layers}
    return found, {name: (layer.stderr, layer.trace_stderr) for name, layer in layers}


def reference(problem: Problem) -> tuple[Values, float, str]:
    """Compute the norms as they should be, their own error (of the median layer), and say how.

    Piecewise linear: the Hessian's exact norms. Else from gradients of samples, exact where
    those of all columns of the outputs' Hessians fit into memory, or by a long run of ours.
    """
    if not problem.smooth:
        return call(problem, 0, curvature="hessian", method="exact", parts=False)[0], 0.0, "exact"
    found, stderr = call(problem, 0, tolerance=TOLERANCES[0])
    names = [name for name in problem.layers if name in found]
    if fits(problem, names):
        pull = with_torch_func.gradients(problem, names)
        return all_columns(pull, problem), 0.0, "gradients of samples, exact"
    found, stderr = call(problem, 0, tolerance=REFERENCE)
    error = median(stderr[name][0] / found[name][0] for name in found)
    return found, error, "ours, longer"


def errors(found: Sequence[Values], exact: Values) -> dict[str, float]:
    """Give the median and the worst layer's relative error, rms over draws, of norm and trace."""
    rms = [
        [
            math.sqrt(sum((one[name][i] / exact[name][i] - 1) ** 2 for one in found) / len(found))
            for name in exact
        ]
        for i in (0, 1)
    ]
    return {
        **{"error": median(rms[0]), "worst": max(rms[0])},
        **{"trace_error": median(rms[1]), "trace_worst": max(rms[1])},
    }


def run_ours(problem: Problem, exact: Values, budget: float) -> dict[str, dict[str, Any]]:
    """Measure our call with the loosest tolerance that gives 5 %, and with that of 5 %."""
    taken: dict[str, dict[str, Any]] = {}
    start = time.perf_counter()
    for tolerance in TOLERANCES:
        if tolerance > ACCURACY and ("ggn" in taken or time.perf_counter() - start > 2 * budget):
            continue
        found, durations, begun = [], [], time.perf_counter()
        for seed in range(1, DRAWS + 1):
            (values, _), took = timed(partial(call, problem, seed, tolerance=tolerance))
            found.append(values)
            durations.append(took)
            if time.perf_counter() - begun > budget:
                break
        entry = {"seconds": min(durations), "tolerance": tolerance, "draws": len(found)}
        entry |= errors(found, exact)
        entry["reached"] = entry["error"] <= ACCURACY
        if entry["reached"] or tolerance == ACCURACY:
            taken.setdefault("ggn", entry)
        taken["ggn_asked"] = entry  # the last: its tolerance is 5 %
    return taken


def run_per_sample(
    way: PerSample, problem: Problem, exact: Values, budget: float
) -> dict[str, Any]:
    """Raise the number of draws of per-sample gradients until the median layer is within 5 %.

    Where those of all C columns of the outputs' Hessians fit into memory, they give the exact
    norms: taken where that is cheaper.
    """
    pull, start = way.prepare(problem, list(exact)), time.perf_counter()
    device = problem.inputs.device
    with torch.no_grad():
        shape = problem.model(problem.inputs).shape
    size = 4 * len(problem.inputs) * sum(problem.layers[name].numel() for name in exact)
    terms, found = problem.labels.numel(), {"seconds": math.inf, "reached": False}
    for effort in EFFORTS:
        values, durations = [], []
        while len(values) < DRAWS:
            signs = (torch.randint(2, shape, device=device) * 2.0 - 1 for _ in range(effort))
            pulled = map(pull, signs)
            norms, took = timed(partial(from_gradients, pulled, terms, int(KEPT / size) - 1))
            values.append(norms)
            durations.append(took)
            if time.perf_counter() - start + durations[-1] > budget:
                break
        found = {"seconds": min(durations), **errors(values, exact), "draws": len(values)}
        found |= {"effort": effort, "reached": found["error"] <= ACCURACY}
        if found["reached"]:
            break
        if time.perf_counter() - start > budget:
            found["note"] = "time"
            break
    if not found["reached"] and fits(problem, list(exact)):
        every, took = timed(partial(all_columns, pull, problem))
        found = {"seconds": took, **errors([every], exact), "effort": shape[1]}
        found |= {"reached": True, "changed": "exact"}
    return found


def run_stepwise(way: Stepwise, problem: Problem, exact: Values, budget: float) -> dict[str, Any]:
    """Raise the effort until the median of the layers tried is within 5 %; scale to all."""
    start = time.perf_counter()
    names = [compare.spread(exact)[place] for place in (2, 0, 1)]
    found: dict[str, Any] = {"seconds": 0.0, "error": math.inf, "reached": False}
    spent = 0.0  # the last effort's time
    for before, effort in pairwise((way.efforts[0], *way.efforts)):
        if time.perf_counter() - start + spent * effort / before > budget and spent:
            return found | {"note": "time"}
        begin, off, durations = time.perf_counter(), [], []
        for name in list(names):
            estimate, values = way.prepare(problem, name), []
            for _ in range(way.draws):
                value, took = timed(partial(estimate, effort))
                values.append(value)
                durations.append(took)
            off.append(math.sqrt(sum((v / exact[name][0] - 1) ** 2 for v in values) / way.draws))
            if time.perf_counter() - begin > budget / 3:
                names = names[: len(off)]
                break
        spent = time.perf_counter() - begin
        found = {"seconds": sum(durations) / len(durations) * len(exact), "effort": effort}
        found |= {"error": median(off), "worst": max(off), "layers": len(off)}
        found["reached"] = found["error"] <= ACCURACY
        if found["reached"]:
            return found
    return found | {"note": "effort"}


def by_square_root_law(taken: dict[str, dict[str, Any]], layers: int) -> dict[str, Any]:
    """Scale Hutchinson's estimates to 5 %, with the same number of products for each layer.

    Args:
        taken: for each way, what `compare.sample` gives.
        layers: number of layers of the network.
    """
    pooled: dict[str, list[float]] = {}
    for name, (_, samples) in (item for way in taken.values() for item in way.items()):
        pooled.setdefault(name, []).extend(off * math.sqrt(n) for n, off in samples)
    one = {n: math.sqrt(sum(off**2 for off in all_) / len(all_)) for n, all_ in pooled.items()}
    products = max(1.0, (median(one.values()) / ACCURACY) ** 2) if one else 1.0
    return {
        way: {
            "seconds": sum(once for once, _ in found.values()) / len(found) * products * layers,
            **{"error": ACCURACY, "worst": max(one.values()) / math.sqrt(products)},
            **{"products": round(products), "layers": len(found), "reached": True},
        }
        for way, found in taken.items()
    }


def run_peers(
    ways: Sequence[GgnWay], problem: Problem, exact: Values, budget: float
) -> dict[str, dict[str, Any]]:
    """Measure the other ways, or say why not."""
    found: dict[str, dict[str, Any]] = {}
    averages: dict[str, dict[str, Any]] = {}
    changes: dict[str, dict[str, Any]] = {}
    for way, (changed, context) in product(ways, CONTEXTS.items()):
        if "seconds" in found.get(way.name, {}) or way.name in averages:
            continue
        # The libraries draw from torch's global generator: it is seeded, and put back.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs
            torch.manual_seed(1)
            try:
                with context():
                    if isinstance(way, Average):
                        averages[way.name] = compare.sample(way, problem, exact, budget)
                    elif isinstance(way, Stepwise):
                        found[way.name] = run_stepwise(way, problem, exact, budget)
                    else:
                        found[way.name] = run_per_sample(way, problem, exact, budget)
            except (AssertionError, RuntimeError, TypeError, ValueError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                found.setdefault(way.name, {"note": reason[:160]})
                continue
        if changed:
            changes[way.name] = {"changed": changed}
    found |= by_square_root_law(averages, len(exact))
    return {way: value | changes.get(way, {}) for way, value in found.items()}


def measure(
    network: Network, ways: Sequence[GgnWay], budget: float, device: torch.device
) -> dict[str, Any]:
    """Measure all there is about a network: its part of the record."""
    problem = network.problem().to(device)
    exact, own_error, how = reference(problem)
    calls = run_ours(problem, exact, budget)
    actions: dict[str, Callable[[], object]] = {"step": ours.training_step(problem)}
    for key, entry in calls.items():
        if entry["seconds"] < budget / 4:  # else three rounds would take too long
            actions[key] = partial(call, problem, 1, tolerance=entry["tolerance"])
    least = interleave(actions, budget / 2)
    for key, entry in calls.items():
        calls[key] = {**entry, "seconds": least.get(key, entry["seconds"])}
    values: dict[str, Any] = {
        "title": network.title,
        "batch": len(problem.inputs),
        "data": problem.dataset.name,
        "parameters": sum(p.numel() for p in problem.model.parameters()),
        "layers": len(exact),
        "step_ms": least["step"] * 1e3,
        "reference": how,
        "reference_error": own_error,
        "ours": calls,
        "peers": run_peers(ways, problem, exact, budget),
    }
    for entry in (*calls.values(), *values["peers"].values()):
        if "seconds" in entry:
            entry["steps"] = entry.pop("seconds") / least["step"]
    values["best"] = {"ggn": best(calls["ggn"], values["peers"])} if calls["ggn"]["reached"] else {}
    return values


def best(mine: dict[str, Any], others: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Compare our cheapest call with the cheapest other way, which may be one that was stopped."""
    costs = {way: value["steps"] for way, value in others.items() if "steps" in value}
    reached = {way: cost for way, cost in costs.items() if others[way]["reached"]}
    found = {"ours": "ggn", "steps": mine["steps"]}
    if reached:
        way = min(reached, key=lambda way: reached[way])
        found |= {"peer": way, "ratio": reached[way] / mine["steps"]}
        found["at_least"] = min(costs.values()) / mine["steps"]
    return found


def show(values: dict[str, Any]) -> None:
    """Print a network's figures."""
    print(f"\n{values['title']}, B = {values['batch']}: step {values['step_ms']:.1f} ms", end="; ")
    print(f"{values['layers']} layers; reference: {values['reference']}", end="")
    print(f", within {values['reference_error']:.1%}")
    for way, entry in (values["ours"] | values["peers"]).items():
        if "steps" not in entry:
            print(f"  {way:24}{entry['note']}")
            continue
        sign = " " if entry.get("reached", True) else ">"
        print(f"  {way:24}{sign}{entry['steps']:10.1f} steps, ", end="")
        print(f"error {entry['error']:.1%}, worst layer {entry['worst']:.1%}")
    for found in values["best"].values():
        if "peer" in found:
            print(f"  {found['peer']} / ours = {found['ratio']:.2g}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.modern")
    parser.add_argument("--names", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--budget", type=float, default=12.0, help="seconds for each way")
    add_recording(parser)
    chosen = parser.parse_args(arguments)
    budget = 0.1 if chosen.quick else chosen.budget
    ways, libraries = peers.load_ggn_ways(), prepare(chosen.device)
    recording = Recording("modern", chosen)
    values: dict[str, Any] = {}
    for name in chosen.names:
        network = NETWORKS[name]
        if chosen.quick:
            network = replace(network, size=QUICK_SIZE)
        values[name] = measure(network, ways, budget, chosen.device)
        show(values[name])
    parameters = {
        **{"threads": THREADS, "accuracy": ACCURACY, "reference_tolerance": REFERENCE},
        **{"budget_s": budget, "kept_bytes": KEPT},
    }
    recording.write(values, parameters, load("cifar10", sample=True).info, libraries)


if __name__ == "__main__":
    main()
