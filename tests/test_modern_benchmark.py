"""The benchmark of Gauss-Newton norms, at sizes that take no time."""

from __future__ import annotations

import inspect
import itertools
import math
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_benchmarks import tiny
from test_book_ext import EXT, Project
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from benchmarks import modern, modern_networks, peers, per_sample
from benchmarks.modern_networks import Network
from benchmarks.peers import with_torch_func
from benchmarks.rows import Problem, mlp
from benchmarks.ways import Average, PerSample, Stepwise, root_times
from hessinit_book.records import records

sys.path.insert(0, str(EXT))
import benchmark_table


def dense(problem: Problem) -> per_sample.Values:
    """Compute norms and traces from dense Gauss-Newton blocks, in float64."""
    model = {name: p.detach().double() for name, p in problem.model.named_parameters()}
    inputs = problem.inputs.double()
    jacobians = jacrev(lambda weights: functional_call(problem.model, weights, (inputs,)))(model)
    p = functional_call(problem.model, model, (inputs,)).softmax(-1)
    second = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    found = {}
    for name in problem.layers:
        jacobian = jacobians[name].flatten(2)  # type: ignore[index]
        block = torch.einsum("bci,bcd,bdj->ij", jacobian, second, jacobian) / len(inputs)
        found[name] = (block.norm().item(), block.trace().item())
    return found


def stub(problem: Problem, off: float = 0.02) -> Any:
    """Stand in for `layer_hessians`: the dense norms, with random errors."""
    exact = dense(problem)

    def layer_hessians(*_: object, generator: torch.Generator, **options: Any) -> Any:
        assert options["curvature"] == "ggn"
        scale = off * options["tolerance"] / modern.ACCURACY
        layers = {}
        for name, (frobenius, trace) in exact.items():
            one, other = (1 + scale * torch.randn(2, generator=generator)).tolist()
            values = {"frobenius": one * frobenius, "trace": other * trace}
            values |= {"stderr": scale * frobenius, "trace_stderr": scale * trace}
            layers[name] = SimpleNamespace(**values)
        return layers

    return layer_hessians


def test_the_root_is_one_of_the_output_hessian() -> None:
    logits = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
    signs = torch.tensor([*itertools.product((-1.0, 1.0), repeat=3)], dtype=torch.float64)
    columns = root_times(logits.expand(8, 3), signs)
    p = logits.softmax(0)
    assert torch.allclose(columns.mT @ columns / 8, torch.diag(p) - p.outer(p))


@pytest.mark.filterwarnings("ignore")  # theirs
def test_gauss_newton_ways_come_near_the_dense_norms() -> None:
    problem = tiny(nn.Tanh)
    exact = dense(problem)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for way in peers.load_ggn_ways():
            if isinstance(way, PerSample):
                pull = way.prepare(problem, list(exact))
                signs = (torch.randint(2, (12, 3)) * 2.0 - 1 for _ in range(200))
                found = per_sample.from_gradients(map(pull, signs), 12, most=200)
                units = torch.eye(3)[:, None].expand(3, 12, 3)
                whole = per_sample.from_gradients(map(pull, units), 12)
                for name, norms in exact.items():
                    assert found[name] == pytest.approx(norms, rel=0.1), way.name
                    assert whole[name] == pytest.approx(norms, rel=1e-5), way.name
                continue
            for name, (frobenius, _) in exact.items():
                if way.name.startswith("pyhessian"):
                    with pytest.raises(NotImplementedError, match="another matrix"):
                        way.prepare(problem, name)
                elif isinstance(way, Average):
                    value = math.sqrt(way.prepare(problem, name)(100))
                    assert value == pytest.approx(frobenius, rel=0.25), way.name
                else:
                    assert way.prepare(problem, name)(12) == pytest.approx(frobenius, rel=0.1)


def test_the_pairs_that_fit_into_memory_are_taken() -> None:
    pulled = [{"a": torch.full((1, 1), value)} for value in (1.0, 2.0, 3.0)]
    # (1 * 2)^2, (1 * 3)^2 and (2 * 3)^2 over three pairs; one kept: the second is left out.
    assert per_sample.from_gradients(pulled, 1, most=9)["a"][0] == pytest.approx(math.sqrt(49 / 3))
    found = per_sample.from_gradients(pulled, 2, most=0)["a"]
    assert found == pytest.approx((math.sqrt(20) / 2, 14 / 6))
    assert per_sample.from_gradients(pulled, 1)["a"] == pytest.approx((14, 14))


def test_efforts_rise_until_the_median_layer_is_within_five_percent() -> None:
    exact = {"a": (1.0, 1.0), "b": (2.0, 1.0), "c": (4.0, 1.0)}
    problem = tiny()

    def prepare(_: Problem, name: str, worst: float = 1.0) -> Any:
        return lambda n: exact[name][0] * (1 + (worst if name == "a" else 0.3) / n)

    found = modern.run_stepwise(
        Stepwise("s", "frobenius", prepare, (2, 4, 8, 16), draws=2), problem, exact, 60
    )
    assert (found["reached"], found["effort"]) == (True, 8)
    assert (found["error"], found["worst"]) == pytest.approx((0.0375, 0.125))
    found = modern.run_stepwise(Stepwise("s", "frobenius", prepare, (2,)), problem, exact, 60)
    assert (found["reached"], found["note"]) == (False, "effort")

    taken = {"w": {"a": (0.5, [(4, 0.1), (4, -0.1)]), "b": (1.5, [(1, 0.1)])}}
    law = modern.by_square_root_law(taken, layers=5)["w"]
    assert law["products"] == round((0.15 / 0.05) ** 2)  # errors of one: 0.2 and 0.1
    assert law["seconds"] == pytest.approx(1.0 * 5 * 9)
    assert law["worst"] == pytest.approx(0.2 / 3)


def test_running_statistics_become_those_of_the_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5))
    inputs = 5 * torch.randn(4, 1, 6, 6)
    modern_networks.calibrate(model, inputs)
    normalized = model(inputs).detach()
    assert not any(module.training for module in model.modules())
    assert model[1].momentum == 0.1
    assert normalized.mean((0, 2, 3)).abs().max() < 1e-3
    assert normalized.std().item() == pytest.approx(1.0, abs=0.02)


def test_words_become_tokens_and_each_is_followed_by_the_next() -> None:
    problem = modern_networks.NETWORKS["gpt"].problem()
    assert problem.inputs.shape == problem.labels.shape == (16, 64)
    assert torch.equal(problem.inputs[:, 1:], problem.labels[:, :-1])
    assert 100 < len(problem.inputs.unique()) <= 1000
    assert len(problem.layers) == 19


def test_a_network_is_measured_recorded_and_shown(tmp_path, monkeypatch, capsys) -> None:
    def batch(_: int) -> tuple[Tensor, Tensor, Any]:
        problem = tiny()
        return problem.inputs, problem.labels, problem.dataset

    network = Network("8-6-3", partial(mlp, 8, 6, 3), batch, 12)
    ways = [*with_torch_func.GGN_WAYS, Average("curvlinops_hutchinson", _refuses)]
    monkeypatch.setattr(modern, "NETWORKS", {"tiny": network})
    monkeypatch.setattr(modern.peers, "load_ggn_ways", lambda: ways)
    monkeypatch.setattr(modern.torch, "set_num_threads", lambda _: None)
    if "curvature" not in inspect.signature(modern.layer_hessians).parameters:
        monkeypatch.setattr(modern, "layer_hessians", stub(network.problem()))
    modern.main(["--names", "tiny", "--budget", "1", "--results", str(tmp_path / "results")])

    record = records.read(records.record_path(tmp_path / "results", "paper", "benchmark_modern", 0))
    values = record.values["tiny"]
    assert values["layers"] == 2
    assert values["ours"]["ggn"]["reached"]
    assert values["ours"]["ggn_asked"]["tolerance"] == modern.ACCURACY
    assert values["peers"]["curvlinops_hutchinson"]["note"] == "not today"
    if values["peers"]["torch_func"]["reached"]:
        ratio = values["best"]["ggn"]["ratio"]
        mine, theirs = values["ours"]["ggn"], values["peers"]["torch_func"]
        assert ratio == pytest.approx(theirs["steps"] / mine["steps"])
    assert "8-6-3, B = 12" in capsys.readouterr().out

    project = Project(tmp_path)
    project.configure(["myst_nb", "benchmark_table"])
    project.write("index.md", "# Page\n\n```{benchmark-table} ggn\nmodern\n```\n")
    status, printed = project.build()
    assert status == 0, printed
    shown = project.text("index")
    assert benchmark_table.cost(values, "ggn") in shown
    assert "curvlinops, Hutchinson: not today (8-6-3, B = 12)." in shown


def _refuses(_problem: Problem, _layer: str) -> Any:
    raise NotImplementedError("not today")
