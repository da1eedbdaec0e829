"""Random vectors behind Gauss-Newton norms: no bias, and intervals that hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ggn_networks import NAMES, dense, jacobians, make
from torch import Tensor, nn

from hessinit_lib import layer_hessians
from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.ggn.gradients import SampleGradients
from hessinit_lib.hessians.ggn.outputs import OutputHessian
from hessinit_lib.hessians.ggn.vectors import BasisDraw, Subset, balanced_signs
from hessinit_lib.hessians.numerics.estimates import sketch_of


@pytest.mark.parametrize("name", NAMES)
def test_random_vectors_have_the_hessian_in_the_outputs_as_covariance(name: str) -> None:
    case = make(name)
    z, hessian, _ = jacobians(case)
    draw = OutputHessian(case, case.loss_fn, z).draw
    generator = torch.Generator().manual_seed(1)
    drawn = [draw(generator) for _ in range(4000)]
    assert {len(pair) for pair in drawn} == {2 if name == "not convex" else 1}
    left, right = (torch.stack([pair[i] for pair in drawn]).flatten(1) for i in (0, -1))
    size = 1.0 if name == "not convex" else hessian.abs().max()
    assert (left.T @ right / len(left) - hessian).abs().max() < 0.15 * size


def test_estimates_are_unbiased_and_their_intervals_hold() -> None:
    """400 draws over all networks, three vectors each: dense Jacobians give the exact norms."""
    covered: list[Tensor] = []
    errors: list[Tensor] = []
    for name in NAMES:
        case = make(name)
        z, hessian, rows = jacobians(case)
        outputs = OutputHessian(case, case.loss_fn, z)
        for seed in range(40):
            generator = torch.Generator().manual_seed(seed)
            vectors = [outputs.draw(generator) for _ in range(3)]
            left, right = (torch.stack([v[i] for v in vectors]).view(3, 6, -1) for i in (0, -1))
            misses = []
            for j in rows.values():
                by_sample = j.view(6, -1, j.shape[1])
                ends = (torch.einsum("mbi,bip->mbp", e, by_sample) for e in (left, right))
                products = torch.einsum("mbp,ncp->mnbc", *ends)
                pairs = {(a, c): products[a, c] for a in range(3) for c in range(3)}
                found = sketch_of(pairs, [products[a, a].diagonal() for a in range(3)])
                kernel = j @ j.T
                exact = ((hessian @ kernel) * (hessian @ kernel).T).sum()
                misses.append((found.square.mean - exact) / exact)
                covered.append(misses[-1].abs() < 1.96 * found.square.error / exact)
            errors.append(torch.stack(misses).mean())
    mean, deviation = torch.stack(errors).mean(), torch.stack(errors).std() / len(errors) ** 0.5
    assert abs(mean) < 4 * deviation < 0.1
    assert 0.9 < torch.stack(covered).double().mean() < 0.99


BASES = [name for name in NAMES if name != "not convex"]


@pytest.mark.parametrize("complete", [[], [1, 4]])
def test_bases_give_unbiased_estimates_with_intervals_that_hold(complete: list[int]) -> None:
    """Two or three of the vectors of a random basis; for some samples all."""
    covered: list[Tensor] = []
    errors: list[Tensor] = []
    for name in BASES:
        case = make(name)
        z, hessian, rows = jacobians(case)
        outputs = OutputHessian(case, case.loss_fn, z)
        if outputs.rank < 4:
            continue
        kernels = []
        for j in rows.values():
            kernel = j @ j.T
            exact = ((hessian @ kernel) * (hessian @ kernel).T).sum(), (hessian * kernel).sum()
            kernels.append((kernel.view(6, len(j) // 6, 6, -1), *exact))
        for seed in range(60):
            generator = torch.Generator().manual_seed(seed)
            draw = BasisDraw.of(6, outputs.rank, 2 + seed % 2, generator, complete)
            vectors = [outputs.product(draw.vectors(a), draw.samples) for a in range(draw.count)]
            weights = {pair: draw.weights(pair, z) for pair in draw.pairs}
            misses = []
            flat = [v.flatten(1) for v in vectors]
            for kernel, exact, trace in kernels:
                rows = kernel[draw.samples][:, :, draw.samples]
                products = {
                    (a, c): torch.einsum("bi,bidj,dj->bd", flat[a], rows, flat[c])
                    for a in range(draw.count)
                    for c in range(a, draw.count)
                }
                own = [products[a, a].diagonal() for a in range(draw.count)]
                found, _ = draw.sketch(products, own, weights.__getitem__)
                misses.append((found.square.mean - exact) / exact)
                covered.append(misses[-1].abs() < 1.96 * found.square.error / exact)
                covered.append(abs(found.trace.mean - trace) < 1.96 * found.trace.error)
            errors.append(torch.stack(misses).mean())
    mean, deviation = torch.stack(errors).mean(), torch.stack(errors).std() / len(errors) ** 0.5
    assert abs(mean) < 4 * deviation < 0.1
    assert 0.9 < torch.stack(covered).double().mean() < 0.995


@pytest.mark.parametrize("name", BASES)
def test_all_vectors_of_a_basis_give_the_exact_norms(name: str) -> None:
    case = make(name)
    report = layer_hessians(*case[:4], layers="*", curvature="ggn", tolerance=1e-9, budget=None)
    for weight, block in dense(case).items():
        layer, spectral = report[weight], torch.linalg.eigvalsh(block)[-1].item()
        assert layer.exact
        assert layer.frobenius == pytest.approx(block.norm().item(), rel=1e-9)
        assert layer.trace == pytest.approx(block.trace().item(), rel=1e-9)
        assert layer.spectral == pytest.approx(spectral, rel=1e-9)


def test_samples_that_rule_the_norm_are_given_all_vectors() -> None:
    """One image of 32 has nearly all of the norm: exact there, sampled elsewhere."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8))
    x, y = torch.randn(32, 3, 4), torch.arange(32) % 8
    x[7] *= 10
    case = Case.checked(model.double(), nn.CrossEntropyLoss(), x.double(), y)
    report = layer_hessians(*case[:4], curvature="ggn", norms=("frobenius",), tolerance=0.05)
    for name, block in dense(case).items():
        assert abs(report[name].frobenius - block.norm()) < 3.5 * report[name].stderr
        assert 0 < report[name].stderr < 0.05 * block.norm()
        assert not report[name].exact


@pytest.mark.parametrize(("rows", "columns"), [(8, 5), (20, 8), (6, 2000), (3, 1)])
def test_balanced_signs_are_signs_of_mean_zero(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([balanced_signs(rows, columns, generator).double() for _ in range(400)])
    assert drawn.abs().eq(1).all()
    assert drawn.mean(0).abs().max() < 0.3
    if columns > 1:
        assert (drawn[:, :, 0] * drawn[:, :, -1]).mean(0).abs().max() < 0.3


def test_spectral_bounds_enclose_the_norm() -> None:
    case = make("images")
    exact = {name: torch.linalg.eigvalsh(g)[-1].item() for name, g in dense(case).items()}
    report = layer_hessians(*case[:4], curvature="ggn", tolerance=0.05)
    for name, layer in report.items():
        assert layer.spectral - 3 * layer.spectral_stderr < exact[name] * (1 + 1e-6)
        assert layer.spectral + layer.spectral_gap > 0.9 * exact[name]
        assert layer.spectral > 0.5 * exact[name]


@pytest.mark.parametrize("heavy", [False, True])
def test_a_part_of_many_samples_tells_the_norm_and_its_error(heavy: bool) -> None:
    """Products of 300 samples, of which some are taken; a few may have long gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    x, y = torch.randn(300, 6).double(), torch.randint(4, (300,))
    if heavy:
        x[::60] *= 6
    exact = dense(Case.checked(model, nn.CrossEntropyLoss(), x, y))
    misses: dict[str, list[float]] = {name: [] for name in exact}
    covered, of_traces, taken = [], [], []
    of = Subset.of

    def counted(*args: Any, **options: Any) -> Subset | None:
        taken.append(of(*args, **options))
        return taken[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Subset, "of", counted)
        patch.setattr(SampleGradients, "_by_positions", lambda *_: True)
        for seed in range(100):
            report = layer_hessians(
                *(model, nn.CrossEntropyLoss(), x, y),
                **{"curvature": "ggn", "norms": ("frobenius",), "tolerance": 0.3},
                generator=torch.Generator().manual_seed(seed),
            )
            for name, block in exact.items():
                found, norm = report[name], block.norm().item()
                misses[name].append((found.frobenius / norm) ** 2 - 1)
                covered.append(abs(found.frobenius - norm) < 1.96 * found.stderr)
                of_traces.append(
                    abs(found.trace - block.trace().item()) < 1.96 * found.trace_stderr
                )
    assert all(subset is not None and 64 <= len(subset.rows) < 150 for subset in taken)
    for found in (torch.tensor(each) for each in misses.values()):
        assert abs(found.mean()) < 4 * found.std() / 10
    for each in (covered, of_traces):
        assert 0.9 < sum(each) / len(each) < 0.995


@pytest.mark.parametrize("tolerance", [0.3, 1e-200])
def test_one_sample_with_many_outputs(tolerance: float) -> None:
    """There is no part of one sample to take, and no smallest tolerance."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 20)).double()
    case = Case.checked(
        model, nn.CrossEntropyLoss(), torch.randn(1, 6).double(), torch.ones(1).long()
    )
    report = layer_hessians(*case[:4], curvature="ggn", norms=("frobenius",), tolerance=tolerance)
    for name, block in dense(case).items():
        layer, norm = report[name], block.norm().item()
        assert abs(layer.frobenius - norm) <= 4 * layer.stderr + 1e-9 * norm
