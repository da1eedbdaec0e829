"""No record says `cuda` for work that was done on the CPU: every experiment, at its smallest."""

from __future__ import annotations

import collections
import hashlib
import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hessinit_book import chapters
from hessinit_book.chapters import parameters_of
from hessinit_book.chapters.contest import data as contest_data
from hessinit_book.chapters.safe_step.networks import Shape
from hessinit_book.errors import ParameterError
from hessinit_book.records import records, runs
from hessinit_book.records.records import DatasetInfo
from hessinit_lib import diagnose

BOOK = Path(chapters.__file__).parents[1]
EXPERIMENTS = sorted(path.parent.name for path in (BOOK / "chapters").glob("*/run.py"))

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")
SMALL = 50_000  # multiplications, of all calls from one function, that count as none

SMALLEST: dict[str, dict[str, Any]] = {
    "cifar_networks": {
        **{"networks": ("cnn4",), "schemes": ("he",), "steps": 1, "every": 1, "batch_size": 4},
        **{"probe_size": 2, "test_size": 4},
    },
    "cifar_stability": {
        **{"steps": 1, "rate_steps": 1, "batch_size": 4, "probe_size": 2, "sharpness_size": 2},
    },
    "contest": {
        **{"networks": ("resnet", "gpt"), "schemes": ("metainit",), "rounds": 1},
        **{"blocks": 1, "steps": 10, "context": 4, "batch_size": 8},
    },
    "diagnose": {"networks": ("gpt",), "trained": (), "factors": (100.0,), "batch_size": 2},
    "fashion_depth": {"depths": (2,), "deviations": (0.1,), "steps": 1, "probe_size": 4},
    "init_targets": {
        **{"starts": ("equal_rows", "most_gain", "mirrored_sized", "layer_rates"), "steps": 10},
        **{"depths": (3,), "width": 8, "batch_size": 8, "probe_size": 4},
    },
    "layer_structure": {"hidden": (3, 2), "batch_size": 2},
    "linearization_error": {
        **{"activations": ("tanh",), "deviations": (1.0,), "widths": (8,), "depths": (2,)},
        **{"batch_sizes": (4,), "draws": 1, "width": 8, "depth": 2, "batch_size": 4},
        **{"steps": 1},
    },
    "mnist_depth": {
        **{"depths": (2,), "activations": ("relu",), "deviations": (0.1,), "steps": 2},
        **{"drop_percent": (20,), "drop_rates": (0.1,), "drop_steps": 2, "probe_size": 4},
    },
    "mnist_tracking": {"deviations": (0.01,), "steps": 2, "every": 2, "probe_size": 4},
    "modern_linearization": {
        **{"networks": ("gpt",), "corpus": "file:text", "context": 2, "batch_sizes": (2,)},
        **{"steps": 1, "batch_size": 2},
    },
    "norm_balance": {
        **{"widths": (8, 16), "depths": (2,), "batch_sizes": (1, 2, 4), "draws": 1},
    },
    "norm_propagation": {
        **{"widths": (32,), "depths": (2,), "batch_size": 2, "repeats": 1, "draws": 100},
    },
    "safe_step": {
        **{
            "networks": ("relu_3", "cnn"),
            "depths": (2, 3),
            "widths": (4, 6),
            "batch_sizes": (2, 4),
        },
        **{"train_size": 8, "steps": 2, "trial_steps": 1, "warmup": 1},
    },
    "step_gain": {
        **{"rates": (0.1,), "steps": 1, "every": 1, "full_rates": (0.1,), "full_steps": 1},
        **{"full_size": 8, "batch_size": 8},
    },
    "width_scaling": {
        **{"widths": (8, 16), "fit_from": 8, "train_widths": (8, 16), "steps": 1},
        **{"rates": (-4, -2, 0), "depths": (2,), "balanced_width": 8, "batch_size": 8},
    },
    "word2vec": {
        **{"trainer": "torch", "corpus": "file:text", "tokens": 600, "dimension": 4},
        **{"deviations": (0.1,), "held_out_pairs": 10, "batch_pairs": 4096},
    },
    "word_pair_saddle": {
        **{"words": 6, "topics": 2, "pairs": 200, "dimension": 2, "rates": (8.0,)},
        **{"scales": (1.0,), "steps": 4, "looks": 2},
    },
}


def diagnosed(*arguments: Any, **options: Any) -> Any:
    """Diagnose without curvature, which is what takes the time."""
    return diagnose(*arguments, **{**options, "curvature": "none"})


def drawn_letters(_: Any) -> tuple[Tensor, DatasetInfo]:
    """Give some letters at once."""
    sha256 = hashlib.sha256(b"letters").hexdigest()
    info = DatasetInfo(name="l", kind="sample", train_size=200, test_size=0, sha256=sha256)
    return torch.arange(200) % 27, info


def unmeasured(model: nn.Module, _: Any) -> dict[str, Any]:
    """Give what a network's measured layers have, without measuring."""
    return {"linearization": [1.0 for weight in model.parameters() if weight.ndim > 1]}


# What would take long even so, and goes the same way for each of many.
SHORTER: dict[str, dict[str, Any]] = {
    "cifar_stability": {"SCHEMES": {"he": None}, "MULTIPLES": (1.0,), "FACTORS": {"balanced": 1.0}},
    "contest": {"_warm_up": lambda device: None, "draw_text": drawn_letters},
    "diagnose": {"DEPTH": 2, "diagnose": diagnosed},
    "mnist_depth": {"NAMED": ("looks_linear",), "FACTORS": {"balanced": 1.0}, "REGIME_DEPTH": 2},
    # Checks of statements, in float64, are left on the CPU; and the library's estimates are
    # tested on a GPU by themselves.
    "modern_linearization": {"checks": lambda seed, images: {}, "measure": unmeasured},
    "safe_step": {
        **{"checks": lambda seed: {}, "LOOKS": 3, "TRAINED": ("relu_3",), "_blocks": lambda *_: {}},
        **{"_starts": lambda parameters: {"one": (Shape(2, 4), 2)}},
    },
    "step_gain": {"MULTIPLES": (1.0,)},
    "width_scaling": {"ITERATIONS": 1, "LEVELS": (1.0,)},
    "word2vec": {"CHECKPOINTS": (0, 5)},
}
SHORTER["fashion_depth"] = SHORTER["mnist_depth"]

# By experiment: functions whose products are computed on the CPU, and why.
ON_THE_CPU = {
    "norm_propagation": {
        "expectation_check": "a statement's check on tiny networks, in float64",
        "predicted": "theory, in float64, the same for all seeds",
    },
    "step_gain": {"identity_defect": "a statement's check by dense Hessians, in float64"},
}

REFUSING = {"word2vec_curvature": "device: got 'cuda', expected cpu, where gensim computes"}


class CpuProducts(TorchDispatchMode):
    """Counts the multiplications of products on the CPU, by the functions that they come from."""

    def __init__(self) -> None:
        super().__init__()
        self.count: collections.Counter[tuple[str, ...]] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").partition(".")[0]
        found = func(*args, **(kwargs or {}))
        if name in PRODUCTS:
            tensors = [t for t in tree_leaves(args) if isinstance(t, Tensor)]
            if not any(t.is_cuda for t in tensors):
                self.count[_callers()] += _multiplications(name, tensors, found)
        return found


def _multiplications(name: str, tensors: list[Tensor], found: Any) -> int:
    if name == "convolution_backward":
        return 2 * tensors[0].numel() * tensors[2][0].numel()
    if name == "convolution":
        return found.numel() * tensors[1][0].numel()
    return found.numel() * tensors[-1].shape[-2]


def _callers() -> tuple[str, ...]:
    """Name the book's functions that are running, the innermost first."""
    names, frame = [], sys._getframe(1)
    while frame is not None:
        if Path(frame.f_code.co_filename).is_relative_to(BOOK):
            names.append(frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(names)


def _hessian_in_reverse(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Do what `torch.func.hessian` does; a pretend GPU knows no forward differentiation."""
    return torch.func.jacrev(torch.func.jacrev(function))


def heavy_on_the_cpu(count: dict[tuple[str, ...], int], allowed: set[str]) -> dict[str, int]:
    """Sum up what was computed on the CPU and is not allowed, by the innermost function."""
    found: collections.Counter[str] = collections.Counter()
    for callers, multiplications in count.items():
        if not allowed & set(callers):
            found[callers[0] if callers else "elsewhere"] += multiplications
    return {name: number for name, number in found.items() if number > SMALL}


def test_every_experiment_is_looked_at() -> None:
    assert sorted({*SMALLEST, *REFUSING}) == EXPERIMENTS


@pytest.mark.parametrize("name", SMALLEST)
def test_the_work_is_done_where_the_record_says(
    name: str, tmp_path: Path, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"hessinit_book.chapters.{name}.run")
    for constant, value in SHORTER.get(name, {}).items():
        owner = {"draw_text": contest_data}.get(constant, sys.modules[module.run.__module__])
        monkeypatch.setattr(owner, constant, value)
    monkeypatch.setattr(torch.func, "hessian", _hessian_in_reverse)
    for name_of, value in {"code_stamp": "0" * 64, "current_commit": None}.items():  # seconds each
        monkeypatch.setattr(runs, name_of, lambda *_, value=value: value)
    (tmp_path / "text").write_text("a cat and a dog and a bird saw the end of a day " * 300)
    places = {"results_dir": tmp_path, "data_dir": tmp_path}
    given = {"profile": "smoke", "device": "cuda", **places, **SMALLEST[name]}
    parameters = parameters_of(name).check(**given)
    with CpuProducts() as seen:
        (record,) = module.run(parameters)
    assert records.kind_of(record) == "cuda"
    assert records.record_path(tmp_path, "smoke", name, 0, "cuda").is_file()
    allowed = set(ON_THE_CPU.get(name, {}))
    assert heavy_on_the_cpu(seen.count, allowed) == {}
    if gpu is not None:
        assert gpu.launches.total() > 100
        # What is allowed on the CPU is there, or it need not be named.
        assert allowed <= {function for callers in seen.count for function in callers}


@pytest.mark.parametrize("name", REFUSING)
def test_what_is_of_the_cpu_refuses_the_gpu(name: str) -> None:
    with pytest.raises(ParameterError, match=REFUSING[name]):
        parameters_of(name).check(profile="smoke", device="cuda")


def test_work_on_the_cpu_is_seen() -> None:
    a, b = torch.ones(100, 50), torch.ones(2, 50, 40)
    image, kernel = torch.ones(2, 3, 8, 8), torch.ones(5, 3, 3, 3, requires_grad=True)
    expected = [
        (lambda: a @ a.mT, 100 * 100 * 50),
        (lambda: torch.bmm(b.mT, b), 2 * 40 * 40 * 50),
        (lambda: torch.conv2d(image, kernel).detach(), 2 * 5 * 36 * 27),
        (lambda: torch.conv2d(image, kernel).sum().backward(), 3 * 2 * 5 * 36 * 27),
        (lambda: a.cuda() @ a.cuda().mT, 0),
    ]
    for compute, multiplications in expected:
        with CpuProducts() as seen:
            compute()
        assert seen.count.total() == multiplications
    assert heavy_on_the_cpu({("inner", "outer"): 10**6, ("other",): 10}, {"outer"}) == {}
    assert heavy_on_the_cpu({("inner", "outer"): 10**6}, {"else"}) == {"inner": 10**6}
    assert not math.isnan(SMALL)
