"""The stages: which runs the half hour is spent on.

None of this has been timed on a GPU: limits are guesses, and the stage `cifar` takes as many epochs
as a first look at its pace allows. Of a run that was stopped the records and parts that were
finished are kept, and the next call goes on from there.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from leasing.carried import CIFAR, MNIST, ROOT, TEXT
from leasing.runs import Place, Run

CIFAR_NETWORKS = ("cnn8", "googlenet", "resnet20", "resnet20_norm", "efficientnet")
CIFAR_BATCH = 512
EPOCHS = (30, 20, 15, 10, 6, 4, 2, 1)
TOY_WORDS = 4000


@dataclass(frozen=True)
class Stage:
    """What one call does.

    Attributes:
        limit: seconds for all of it.
        runs: in order.
        jobs: how many runs at a time: one where they are timed; small kernels of several
            processes fill a GPU better than those of one.
        first: a run before all others, alone.
    """

    limit: float
    runs: tuple[Run, ...]
    jobs: int = 1
    first: Run | None = None


def benchmark(
    module: str, name: str, limit: float, *words: str, toy: tuple[str, ...] | None
) -> Run:
    """Make a run of a benchmark's command, with its words at toy size; None: it has none."""

    def action(place: Place) -> None:
        main = importlib.import_module(f"benchmarks{module and '.'}{module or '.__main__'}").main
        where = ["--device", place.device]
        if module != "dense_first_layer":
            where += ["--results", str(place.records)]
        main([*((toy or ()) if place.toy else words), *where])

    return Run(name, limit, action, small=toy is not None)


def experiment(
    name: str,
    seed: int,
    limit: float,
    needs: tuple[str, ...],
    options: Callable[[Place], dict[str, Any]] = lambda _: {},
) -> Run:
    """Make a run of one seed of a chapter's experiment."""

    def action(place: Place) -> None:
        from hessinit_book.chapters import parameters_of

        parameters = parameters_of(name).check(
            profile="smoke" if place.toy else "paper",
            seeds=[seed],
            device=place.device,
            data_dir=place.data,
            results_dir=place.records,
            **options(place),
        )
        importlib.import_module(f"hessinit_book.chapters.{name}.run").run(parameters)

    return Run(f"{name}-{seed}", limit, action, needs)


def run_tests(place: Place) -> None:
    """Run the tests of a GPU; where there is none, there are none."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    if place.toy:
        words += ["--collect-only"]
    # A process of its own, which finds what was carried.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*words, "tests/gpu"], cwd=ROOT, env=environment, check=False)
    if done.returncode not in (0, 5):  # 5: no tests
        raise SystemExit(done.returncode)


def look_at_pace(place: Place) -> None:
    """Time a few training steps of each network on CIFAR-10, and write them down [s]."""
    import torch

    from benchmarks.timing import seconds
    from hessinit_book.networks import NETWORKS, build
    from hessinit_book.randomness import generator
    from hessinit_book.records.machine import choose_device
    from hessinit_book.training.images import Images, Recipe, train

    device = choose_device(place.device)
    steps, size = (1, 2) if place.toy else (10, CIFAR_BATCH)
    pixels = torch.randint(256, (2 * size, 3, 32, 32), generator=generator(0, "pixels"))
    data = Images(pixels.byte(), torch.arange(2 * size) % 10, device)
    pace = {}
    for name in CIFAR_NETWORKS[:1] if place.toy else CIFAR_NETWORKS:
        model = build(NETWORKS[name], "he", generator(0, "weights")).to(device)

        def some(model: torch.nn.Module = model) -> None:
            recipe = Recipe(steps, size, 1e-6, precision="bfloat16")
            train(model, data, recipe, generator(0, "batches", device))

        some()
        pace[name] = seconds(some) / steps
        print(f"{name}: {1e3 * pace[name]:.2f} ms a step")
    (place.work / "pace.json").write_text(json.dumps(pace), encoding="utf-8")


def epochs(pace: dict[str, float], limit: float, jobs: int, seeds: int) -> int:
    """Choose how many epochs fit into a limit.

    Args:
        pace: seconds of a training step of each network, alone on the device.
        limit: seconds for all seeds.
        jobs: processes side by side; half of what they should gain is counted on.
        seeds: how many.

    Example:
        >>> epochs({"cnn8": 0.002}, 100.0, jobs=2, seeds=2)
        15
        >>> epochs({"cnn8": 0.02}, 100.0, jobs=2, seeds=2)
        1
    """
    from hessinit_book.chapters.cifar_networks.run import CifarNetworksParameters

    parameters = CifarNetworksParameters.check(profile="paper", **_cifar(1))
    per_step = sum(
        len(parameters.starts(name)) * len(parameters.rates(name)) * took
        for name, took in pace.items()
    )
    epoch = per_step * (50_000 // CIFAR_BATCH) * seeds / max(1.0, jobs / 2)
    return next((n for n in EPOCHS if n * epoch <= 0.7 * limit), EPOCHS[-1])


def _cifar(epochs: int) -> dict[str, Any]:
    steps = epochs * (50_000 // CIFAR_BATCH)
    return {
        **{"networks": CIFAR_NETWORKS, "learning_rates": (0.05,), "batch_size": CIFAR_BATCH},
        **{"steps": steps, "every": max(1, steps // 2), "test_size": 10_000},
        **{"schedule": "one_cycle", "augment": True},
    }


def cifar_options(place: Place) -> dict[str, Any]:
    """Choose the size of the stage `cifar` by its pace."""
    if place.toy:
        return {"networks": ("cnn4",)}
    pace = json.loads((place.work / "pace.json").read_text(encoding="utf-8"))
    stage = STAGES["cifar"]
    chosen = epochs(pace, stage.limit, stage.jobs, len(stage.runs))
    print(f"{chosen} epochs")
    return _cifar(chosen)


def word2vec_options(place: Place) -> dict[str, Any]:
    """Let torch train; at toy size on words that are drawn."""
    if not place.toy:
        return {"trainer": "torch"}
    drawn = random.Random(0)
    words = (f"w{min(int(drawn.paretovariate(1.0)), 200)}" for _ in range(TOY_WORDS))
    path = place.work / "drawn words"
    path.write_text(" ".join(words), encoding="utf-8")
    return {"trainer": "torch", "corpus": f"file:{path}", "batch_pairs": 256}


def contest_options(place: Place) -> dict[str, Any]:
    """Hold a small contest at toy size."""
    return {"schemes": ("he", "hessian")} if place.toy else {}


def depth_options(place: Place) -> dict[str, Any]:
    """Leave out most networks at toy size."""
    return {"depths": (2,), "activations": ("relu",)} if place.toy else {}


def _rows() -> tuple[Run, ...]:
    from benchmarks.rows import ROWS

    toy = ("--rows", "mlp30_b32", "--quick")
    return tuple(
        benchmark("", f"row-{row}", 40, "--rows", row, "--budget", "3", toy=toy) for row in ROWS
    )


_MODERN = ("mlp", "lstm", "vit", "resnet18", "efficientnet")

STAGES = {
    "keep": Stage(60, ()),  # nothing but what was carried
    "probe": Stage(
        270,
        (
            benchmark("device", "device", 60, toy=("--quick",)),
            Run("tests", 200, run_tests),
        ),
    ),
    "bench": Stage(
        300,
        (
            *_rows(),
            benchmark("training", "training", 60, toy=("--quick",)),
            benchmark("dense_first_layer", "dense_first_layer", 30, toy=None),
            benchmark(
                *("architectures", "architectures", 90),
                toy=("--quick", "--names", "gru"),
            ),
            benchmark(
                *("modern", "modern", 120, "--budget", "3", "--names", *_MODERN),
                toy=("--quick", "--names", "mlp"),
            ),
        ),
    ),
    "mnist": Stage(
        240,
        (
            *(experiment("mnist_tracking", seed, 120, MNIST) for seed in range(10)),
            *(experiment("mnist_depth", seed, 200, MNIST, depth_options) for seed in range(5)),
        ),
        jobs=5,
    ),
    "cifar": Stage(
        540,
        tuple(experiment("cifar_networks", seed, 480, CIFAR, cifar_options) for seed in range(5)),
        jobs=5,
        first=Run("pace", 60, look_at_pace),
    ),
    "word2vec": Stage(
        300,
        tuple(experiment("word2vec", seed, 290, TEXT, word2vec_options) for seed in range(3)),
        jobs=3,
    ),
    "contest": Stage(
        240,
        tuple(
            experiment("contest", seed, 230, (*MNIST, *CIFAR, TEXT[0]), contest_options)
            for seed in range(5)
        ),
        jobs=5,
    ),
}


def toy(stage: Stage) -> Stage:
    """Keep the first run of each kind, of those that can be small."""
    kinds = {run.name.split("-")[0]: run for run in reversed(stage.runs) if run.small}
    runs = tuple(run for run in stage.runs if run in kinds.values())
    return Stage(stage.limit, runs, 1, stage.first)


def prepare() -> None:
    """Import what runs have in common, once for all of their processes."""
    for module in ("torch", "hessinit_lib", "benchmarks.modern", "hessinit_book.records.runs"):
        with contextlib.suppress(ImportError):  # the run that needs it will say so
            importlib.import_module(module)
