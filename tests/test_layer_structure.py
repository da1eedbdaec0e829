"""Statements 1 to 4 against dense references, and the experiment that shows them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ACTIVATIONS, Case, cases, make_case
from torch import Tensor, nn

from hessinit_book.chapters.layer_structure import figures
from hessinit_book.chapters.layer_structure import run as layer_structure
from hessinit_book.chapters.layer_structure.run import LayerStructureParameters, layer_parts
from hessinit_book.drawing.style import data_label
from hessinit_book.errors import ParameterError
from hessinit_book.networks.dense import critical_network, draw_network
from hessinit_book.networks.dense_hessians import (
    DenseBlock,
    dense_block,
    dense_curvatures,
    kronecker_mean,
)
from hessinit_book.records.records import Record


def run(folder: Path, **given: Any) -> list[Record]:
    tiny = {"profile": "smoke", "batch_size": 3, "hidden": [4, 3], "device": "cpu"}
    parameters = LayerStructureParameters.check(**{**tiny, "results_dir": str(folder), **given})
    return layer_structure.run(parameters)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Records of two seeds."""
    return run(tmp_path_factory.mktemp("found"), seeds=[0, 1], activations=["tanh", "gelu"])


def close(found: Tensor, expected: Tensor, scale: float = 0.0) -> bool:
    return bool((found - expected).norm() <= 1e-11 * max(float(expected.norm()), scale, 1e-200))


def rounding_scale(z: Tensor) -> float:
    """What is small against this is lost: a saturated softmax has p (1 - p) with p near 1."""
    return float(z.square().sum(1).mean())


def linears(model: nn.Sequential) -> list[int]:
    return [i for i, module in enumerate(model) if isinstance(module, nn.Linear)]


def curvatures(case: Case, i: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs z, A and its linearization of the Linear layer at place i."""
    with torch.no_grad():
        z = case.model[:i](case.inputs)
        a = case.model[i](z)
    above = case.model[i + 1 :] if i + 1 < len(case.model) else nn.Identity()
    return z, *dense_curvatures(above, case.loss_fn, a, case.targets)


# The statements


@settings(max_examples=15)
@given(cases(), st.integers(0, 2**31))
def test_statement_01_both_parts_add_up(case: Case, seed: int) -> None:
    """For all weights at once, one sample and one direction."""
    x, y = case.inputs[:1], case.targets[:1]
    shapes = {name: p.shape for name, p in case.model.named_parameters()}
    w = torch.cat([p.detach().flatten() for p in case.model.parameters()])

    def logits(w: Tensor) -> Tensor:
        pieces = w.split([shape.numel() for shape in shapes.values()])
        named = {n: p.view(s) for (n, s), p in zip(shapes.items(), pieces, strict=True)}
        return torch.func.functional_call(case.model, named, (x,))[0]

    def loss(z: Tensor) -> Tensor:
        return case.loss_fn(z[None], y)

    h = torch.randn(len(w), generator=torch.Generator().manual_seed(seed), dtype=w.dtype)
    first = torch.func.jacrev(logits)(w) @ h
    _, second = torch.func.jvp(lambda v: torch.func.jvp(logits, (v,), (h,))[1], (w,), (h,))
    z = logits(w)
    form = first @ torch.func.hessian(loss)(z) @ first + torch.func.grad(loss)(z) @ second
    _, expected = torch.func.jvp(
        lambda v: torch.func.jvp(lambda u: loss(logits(u)), (v,), (h,))[1], (w,), (h,)
    )
    scale = float(first.square().sum() + second.abs().sum())
    assert abs(float(form - expected)) <= 1e-11 * max(scale, 1e-200)


@settings(max_examples=15)
@given(cases())
def test_statement_02_mean_of_kronecker_products(case: Case) -> None:
    for i in linears(case.model):
        z, whole, _ = curvatures(case, i)
        expected = case.dense_hessian(f"{i}.weight")
        assert close(kronecker_mean(whole, z), expected, rounding_scale(z))


@settings(max_examples=15)
@given(cases())
def test_statement_02_norm_is_a_sum_over_pairs(case: Case) -> None:
    for i in linears(case.model):
        z, whole, _ = curvatures(case, i)
        dense = case.dense_hessian(f"{i}.weight")
        pairs = [
            (z[b] @ z[c]) ** 2 * (whole[b] * whole[c]).sum()
            for b in range(len(z))
            for c in range(len(z))
        ]
        total = torch.stack(pairs)
        error = abs(float(total.sum() / len(z) ** 2 - dense.square().sum()))
        assert error <= 1e-11 * float(total.abs().sum() + rounding_scale(z) * dense.norm())


def test_statement_02_rank() -> None:
    case = make_case([8, 7, 3], ["tanh"], "cross_entropy", 2, 1.0, seed=0)
    _, whole, _ = curvatures(case, 0)
    dense = case.dense_hessian("0.weight")
    bound = sum(int(torch.linalg.matrix_rank(a)) for a in whole)
    assert int(torch.linalg.matrix_rank(dense, rtol=1e-10)) == bound == 14 < len(dense)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "gelu", "silu"])
@pytest.mark.parametrize("seed", [0, 1])
def test_statement_03_recursion(activation: str, seed: int) -> None:
    module = ACTIVATIONS[activation]()
    weights = torch.Generator().manual_seed(seed)
    widths, stds = [6, 5, 4, 10], [0.6, 0.7, 0.8]
    model = draw_network(widths, stds, module, weights, torch.float64)
    x = torch.randn(3, 6, generator=weights, dtype=torch.float64)
    y = torch.tensor([0, 9, 4])
    for layer in layer_parts(model, x, y):
        assert close(layer.recursive, layer.curvatures)
        assert layer.errors()["statement_03"] < 1e-12


@settings(max_examples=15)
@given(cases())
def test_statement_04_rule_gives_the_gauss_newton_block(case: Case) -> None:
    for i in linears(case.model):
        z, _, linearized = curvatures(case, i)
        expected = case.dense_gauss_newton(f"{i}.weight")
        assert close(kronecker_mean(linearized, z), expected, rounding_scale(z))
        eigenvalues = torch.linalg.eigvalsh(expected)
        assert eigenvalues[0] >= -1e-12 * max(float(eigenvalues[-1]), rounding_scale(z))


def test_statement_04_rank_is_below_the_number_of_classes() -> None:
    case = make_case([5, 8, 8, 3], ["tanh", "tanh"], "cross_entropy", 4, 1.0, seed=1)
    _, whole, linearized = curvatures(case, 0)
    assert [int(r) for r in torch.linalg.matrix_rank(linearized, rtol=1e-10)] == [2] * 4
    assert [int(r) for r in torch.linalg.matrix_rank(whole, rtol=1e-10)] == [8] * 4


# Dense references and draws


@given(cases())
@settings(max_examples=10)
def test_dense_block_is_the_references(case: Case) -> None:
    for i in linears(case.model):
        block = dense_block(case.model, case.loss_fn, case.inputs, case.targets, f"{i}.weight")
        linearization = case.dense_gauss_newton(f"{i}.weight")
        hessian = case.dense_hessian(f"{i}.weight")
        scale = float(linearization.norm() + hessian.norm())
        assert close(block.hessian, hessian, scale)
        assert close(block.linearization, linearization)
        assert close(block.residual, hessian - linearization, scale)


def test_draws_share_directions_and_leave_the_global_stream() -> None:
    before = torch.get_rng_state()
    small, large = (
        draw_network([4, 8, 2], [s, 1.0], "tanh", torch.Generator().manual_seed(1), dtype)
        for s, dtype in ((0.5, torch.float64), (2.0, torch.float32))
    )
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(4 * small[0].weight.float(), large[0].weight)
    torch.testing.assert_close(small[2].weight.float(), large[2].weight)
    assert not small[0].bias.any()
    with pytest.raises(ValueError, match="1 stds: expected 2, one for each layer"):
        draw_network([4, 8, 2], [1.0], "tanh", torch.Generator())
    with pytest.raises(ValueError, match="expected a name or a module"):
        draw_network([4, 2], [1.0], torch.tanh, torch.Generator())


@pytest.mark.parametrize(
    ("activation", "gain"), [("relu", 2), ("tanh", 1), ("gelu", 4), ("softplus", 4), ("selu", 1)]
)
def test_critical_network(activation: str, gain: float) -> None:
    network = critical_network(activation, [400, 400], torch.Generator().manual_seed(0), 3.0)
    variance = network[0].weight.square().mean().item() * 400
    assert variance == pytest.approx(9 * gain, rel=0.02)


# The experiment


def test_checks_hold(found: list[Record]) -> None:
    for record in found:
        checks = record.values["checks"]
        assert list(checks) == list(layer_structure.WHAT)
        assert all(0 <= c["value"] <= c["allowed"] == 1e-12 for c in checks.values())


def test_a_wrong_rule_is_seen() -> None:
    """Each error is of order one if the pieces are those of other labels."""
    model = layer_structure.make_network("tanh", (4, 3), torch.Generator().manual_seed(0))
    x = torch.rand(3, 49, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    right = layer_parts(model, x, torch.tensor([0, 1, 2]))[0]
    other = layer_parts(model, x, torch.tensor([3, 4, 5]))[0]
    assert max(right.errors().values()) < 1e-12
    assert replace(right, curvatures=other.curvatures).errors()["statement_02"] > 0.01
    assert replace(right, recursive=other.recursive).errors()["statement_03"] > 0.01
    whole = replace(right, recursive_linearized=right.recursive)
    assert whole.errors()["statement_04"] > 0.01
    swapped = replace(right, block=DenseBlock(right.block.hessian, right.block.residual))
    assert swapped.errors()["statement_04_sign"] > 0.01


def test_record(found: list[Record]) -> None:
    for record in found:
        assert list(record.values) == ["checks", "tanh", "gelu"]
        first, second, last = record.values["tanh"]["layers"].values()
        assert [layer["shape"] for layer in (first, second, last)] == [[4, 49], [3, 4], [10, 3]]
        assert first["rank"]["hessian"] <= first["rank_bound"]["hessian"] == 3 * 4
        assert last["residual_ratio"] < 1e-12
        assert last["spectrum"]["residual"] == [0.0] * 30
        shown = {k: np.array(v) for k, v in record.values["tanh"]["shown"].items()}
        hessian = shown["linearization"] + shown["residual"]
        eigenvalues = np.linalg.eigvalsh(hessian)
        np.testing.assert_allclose(
            eigenvalues, second["spectrum"]["hessian"], atol=5e-3 * eigenvalues[-1]
        )
    assert found[0].values != found[1].values


def test_same_parameters_give_the_same_values(found: list[Record], tmp_path: Path) -> None:
    torch.manual_seed(99)  # must not matter
    before = torch.get_rng_state()
    again = run(tmp_path, seeds=[1], activations=["tanh", "gelu"])
    assert torch.equal(torch.get_rng_state(), before)
    assert again[0].values == found[1].values


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 2001}, "batch_size: got 2001, expected at most 2000"),
        ({"activations": ["tanhh"]}, r"activations\[0\]: got 'tanhh', expected 'relu', "),
        ({"hidden": [4]}, "hidden: got .4,., expected at least"),
    ],
)
def test_bad_parameters(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=message):
        run(tmp_path, **given)


@pytest.mark.parametrize("draw", [figures.spectra, figures.blocks])
def test_figures(draw: Any, found: list[Record]) -> None:
    """Any warning is an error, too."""
    figure = draw(found)
    figure.savefig(io.BytesIO(), format="svg")
    assert data_label(found[:1]) in [text.get_text() for text in figure.texts]
    assert plt.get_fignums() == []


def test_summary(found: list[Record]) -> None:
    table = figures.summary(found)
    assert len(table) == 6
    ratios = [r.values["gelu"]["layers"]["layer_2"]["residual_ratio"] for r in found]
    assert table.loc[("gelu", "2"), "‖R‖/‖H‖"] == pytest.approx(np.median(ratios), abs=1e-3)
