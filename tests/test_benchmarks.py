"""The benchmark's harness, at sizes that take no time."""

from __future__ import annotations

import doctest
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from test_book_ext import EXT, Project
from test_records import make_record
from torch import nn

from benchmarks import __main__ as program
from benchmarks import chart, compare, floor, ours, peers, timing
from benchmarks.rows import ROWS, Problem, Row, mlp, resnet
from benchmarks.ways import AllAtOnce, Average, Stepwise
from hessinit_book.records import records

sys.path.insert(0, str(EXT))
import benchmark_table

TINY = Row("8-6-3", lambda: mlp(8, 6, 3), "mnist", 12, flat=True)


def tiny(activation: type[nn.Module] = nn.ReLU) -> Problem:
    stream = torch.Generator().manual_seed(0)
    model = mlp(8, 6, 3, activation=activation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=stream)
    inputs = torch.randn(12, 8, generator=stream)
    labels = torch.randint(3, (12,), generator=stream)
    return Problem(
        model, nn.CrossEntropyLoss(), inputs, labels, activation is nn.Tanh, ROW_DATA.dataset
    )


ROW_DATA = ROWS["mlp30_b32"].problem()


def products(problem: Problem, layer: str):
    """Multiply with a block, by two backward passes."""
    weight = problem.layers[layer]
    loss = problem.loss_fn(problem.model(problem.inputs), problem.labels)
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    return lambda v: torch.autograd.grad(gradient, weight, v, retain_graph=True)[0]


def hutchinson(problem: Problem, layer: str):
    multiply, shape = products(problem, layer), problem.layers[layer].shape

    def estimate(number: int) -> float:
        vs = [torch.randint(2, shape) * 2.0 - 1 for _ in range(number)]
        return sum(multiply(v).square().sum().item() for v in vs) / number

    return estimate


def power(problem: Problem, layer: str):
    multiply, shape = products(problem, layer), problem.layers[layer].shape

    def estimate(iterations: int) -> float:
        v = torch.randn(shape)
        for _ in range(iterations):
            v = multiply(v / v.norm())
        return v.norm().item()

    return estimate


def test_stepwise_and_averages_are_measured_and_scaled_to_one_percent() -> None:
    problem = tiny()
    exact = ours.reference(problem)
    ways = [
        Stepwise("power", "spectral", power, (2, 20, 200)),
        Stepwise("never", "spectral", lambda *_: lambda effort: 1e9, (1, 2)),
        Average("average", hutchinson),
        AllAtOnce("exact", lambda _: exact, lambda _: None),
        AllAtOnce("refused", lambda _: exact, lambda _: "not today"),
    ]
    state = torch.get_rng_state()
    found = compare.compare(ways, problem, exact, step=1e-3, budget=5.0)
    assert torch.equal(state, torch.get_rng_state())

    assert found["power"]["reached"]
    assert found["power"]["error"] <= 0.01
    assert found["power"]["layers"] == 2
    assert not found["never"]["reached"]
    assert found["exact"]["error"] == 0
    assert found["refused"] == {"note": "not today"}
    # Hutchinson's error of one product: Var = 2 (||H^2||_F^2 - sum_i (H^2)_ii^2).
    name = next(iter(exact))
    size = problem.layers[name].numel()
    multiply = products(problem, name)
    columns = [multiply(v.reshape(problem.layers[name].shape)).flatten() for v in torch.eye(size)]
    square = torch.stack(columns).double() @ torch.stack(columns).double()
    variance = 2 * float(square.square().sum() - square.diagonal().square().sum())
    expected = variance / (4 * exact[name][0] ** 4) / 0.01**2
    estimate = hutchinson(problem, name)
    samples = [(1, (estimate(1) / exact[name][0] ** 2 - 1) / 2) for _ in range(400)]
    law = compare.by_square_root_law({"average": {name: (1e-3, samples)}}, layers=1)
    assert law["average"]["products"][0] == pytest.approx(expected, rel=0.5)
    assert law["average"]["seconds"] == pytest.approx(1e-3 * law["average"]["products"][0], rel=0.1)


@pytest.mark.parametrize("module", peers.DISTRIBUTIONS)
@pytest.mark.filterwarnings("ignore")  # theirs
def test_each_library_comes_near_the_exact_norms(module: str) -> None:
    if peers.DISTRIBUTIONS[module] not in peers.installed():
        pytest.skip(f"{module} is not installed")
    ways = [way for way in peers.load_ways() if way.name.startswith(module)]
    assert ways
    problem = tiny(nn.ReLU if module == "vivit" else nn.Tanh)
    exact = ours.reference(problem)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for way in ways:
            if isinstance(way, AllAtOnce):
                assert way.refuses(problem) is None
                assert ours.largest_error([way.norms(problem)], exact) < 1e-4
                assert way.refuses(tiny(nn.Tanh)) is not None
                continue
            for name, (frobenius, spectral) in exact.items():
                if isinstance(way, Average):
                    value = math.sqrt(way.prepare(problem, name)(100))
                    assert value == pytest.approx(frobenius, rel=0.25)
                else:
                    value = way.prepare(problem, name)(12)
                    target = spectral if way.norm == "spectral" else frobenius
                    assert value == pytest.approx(target, rel=0.1)


def test_a_row_is_measured_recorded_and_shown(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(program, "ROWS", {"tiny": TINY})
    monkeypatch.setattr(program.peers, "load_ways", lambda: [Average("average", hutchinson)])
    monkeypatch.setattr(program.floor, "SIZE", 16)
    monkeypatch.setattr(program.torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(program.Row, "problem", lambda self: tiny())
    program.main(["--rows", "tiny", "--quick", "--results", str(tmp_path)])

    record = records.read(records.record_path(tmp_path, "quick", "benchmark_tiny", 0))
    values = record.values
    assert values["ours"]["exact"]["error"] < 1e-4
    assert values["peers"]["average"]["steps"] > 0
    ratio = values["best"]["frobenius"]["ratio"]
    call = values["ours"][values["best"]["frobenius"]["ours"]]
    assert ratio == pytest.approx(values["peers"]["average"]["steps"] / call["steps"])
    assert "8-6-3, B = 12" in capsys.readouterr().out


def test_operations_are_those_of_the_layers() -> None:
    shapes, classes = floor.shapes_of(ROWS["resnet8_b64"].problem())
    assert classes == 10
    assert [(s.m, s.n, s.positions) for s in shapes[:2]] == [(27, 16, 1024), (144, 16, 1024)]
    assert (shapes[-1].m, shapes[-1].n, shapes[-1].positions) == (64, 10, 1)
    one = floor.operations(shapes[:1], 64, 10, smooth=False)
    assert one == 2 * 9 * 64 * 1024 * 27 * 16 + 432**2 * 576


@pytest.mark.parametrize(
    ("name", "size"), [("lenet_b128", 62_006), ("cnn_b128", 1_122_758), ("resnet20_b64", 269_034)]
)
def test_networks_have_the_stated_sizes(name: str, size: int) -> None:
    assert sum(p.numel() for p in ROWS[name].network().parameters()) == size


def test_residual_networks_keep_their_scale() -> None:
    row = Row("ResNet-20", lambda: resnet(20), "cifar10", 8)
    problem = row.problem()
    assert 0.05 < problem.model(problem.inputs).std().item() < 5


@pytest.mark.parametrize("module", [compare, floor, timing, benchmark_table])
def test_examples_in_docstrings_hold(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.failed == 0
    assert found.attempted


# The page


def values(**changes: Any) -> dict[str, Any]:
    found = {
        "title": "8-6-3",
        "batch": 1024,
        "layers": 3,
        "step_ms": 12.34,
        "floor": {"steps": 0.5},
        "ours": {
            "exact": {"steps": 4.0, "error": 1e-7},
            "exact_frobenius": {"steps": 3.0, "error": 1e-7},
            "estimate_frobenius": {"note": "no estimate here"},
            "spectral": {"steps": 2.0, "error": 1e-3},
        },
        "peers": {
            "vivit": {
                **{"norms": ["frobenius", "spectral"], "steps": 1.5, "error": 1e-7},
                **{"layers": 3, "reached": True},
            },
            "curvlinops_xtrace": {
                **{"norms": ["frobenius"], "steps": 1234.0, "error": 0.02},
                **{"layers": 1, "reached": False, "note": "memory"},
            },
            "backpack_hutchinson": {
                **{"norms": ["frobenius"], "steps": 98765.0, "error": 0.01},
                **{"layers": 2, "reached": True},
            },
        },
    }
    return found | {"best": program.best(found)} | changes


def test_the_page_shows_the_records(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.configure(["myst_nb", "benchmark_table"])
    for name, title in {"a": "8-6-3", "b": "other"}.items():
        record = make_record(
            experiment=f"benchmark_{name}", profile="paper", seed=0, values=values(title=title)
        )
        path = records.record_path(tmp_path / "results", "paper", record.experiment, 0)
        records.write(record, path)
    text = "# Page\n\n"
    for kind in ("ours", "frobenius", "spectral", "machine"):
        text += f"```{{benchmark-table}} {kind}\n:name: t-{kind}\n\na\nb\n```\n\n"
    project.write("index.md", text)
    status, printed = project.build()
    assert status == 0, printed
    shown = project.text("index")
    assert "8-6-3, B = 1,024 12 4 3 0.5 – – 2" in shown
    assert "> 1,200" in shown
    assert "≈ 99,000" in shown
    assert "ViViT, exact leads on 8-6-3, B = 1,024." in shown
    assert "more memory than allowed" in shown
    assert "PyHessian, Hutchinson: not installed (8-6-3, B = 1,024; other" in shown

    project.write("index.md", "# Page\n\n```{benchmark-table} frobenius\nabsent\n```\n")
    status, printed = project.build()
    assert status != 0
    assert "no records in" in printed


def test_the_chart_has_a_dot_for_each_library_that_got_there() -> None:
    record = make_record(values=values())
    assert chart.cheapest(record, "hessinit", "frobenius") == 3.0
    assert chart.cheapest(record, "vivit", "spectral") == 1.5
    assert chart.cheapest(record, "curvlinops", "frobenius") is None
    assert len(chart.chart([record]).axes) == 2
