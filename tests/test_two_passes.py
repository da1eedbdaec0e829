"""Gauss-Newton norms from two backward passes: means, variances and bounds of the theorem."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vjp, vmap

from hessinit_book.theory.two_passes import pair_moments
from hessinit_lib.hessians.ggn.vectors import BasisDraw, Subset


def signs(*shape: int, seed: int) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randint(0, 2, shape, generator=stream, dtype=torch.float64) - 1


def all_signs(count: int) -> Tensor:
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=count)), dtype=torch.float64)


def softmax_root(p: Tensor) -> Tensor:
    s = p.sqrt()
    return torch.diag_embed(s) - p[..., :, None] * s[..., None, :]


def random_factors(seed: int, sizes: tuple[int, ...], m: int = 4) -> list[Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return [torch.randn(m, r, generator=stream, dtype=torch.float64) for r in sizes]


def sketches(factors: list[Tensor], n: float) -> Tensor:
    """Form the sketch of G for every choice of all signs, each as likely as the others."""
    sizes = [m.shape[1] for m in factors]
    parts = all_signs(sum(sizes)).split(sizes, dim=1)
    gradients = torch.stack([e @ m.T for e, m in zip(parts, factors, strict=True)], 1)
    return torch.einsum("sbi,sbj->sij", gradients, gradients) / n


# All choices of the signs: means and variances up to rounding.


@pytest.mark.parametrize("sizes", [(2, 3), (3, 1, 2), (1, 1), (5,)])
def test_statement_12_means_and_variances_over_all_signs(sizes: tuple[int, ...]) -> None:
    factors, n = random_factors(0, sizes), 3.0
    moments, drawn = pair_moments(factors, n), sketches(factors, n)
    g = sum(m @ m.T for m in factors) / n
    torch.testing.assert_close(drawn.mean(0), g)
    pairs = torch.einsum("sij,tij->st", drawn, drawn)
    scale = moments.square
    assert moments.square == pytest.approx(float(g.square().sum()), rel=1e-12)
    assert float(pairs.mean()) == pytest.approx(moments.square, rel=1e-12)
    variance = float(pairs.var(correction=0))
    assert variance == pytest.approx(moments.variance(), rel=1e-11, abs=1e-12 * scale**2)
    traces = torch.einsum("sii->s", drawn)
    assert float(traces.mean()) == pytest.approx(moments.trace, rel=1e-12)
    assert float(traces.var(correction=0)) == pytest.approx(
        moments.trace_variance, rel=1e-11, abs=1e-12 * scale
    )
    if max(sizes) == 1:
        assert variance == pytest.approx(0, abs=1e-12 * scale**2)


def test_statement_12_all_pairs_of_three_passes() -> None:
    factors = random_factors(1, (2, 3))
    moments, drawn = pair_moments(factors, 2.0), sketches(factors, 2.0)
    pairs = torch.einsum("sij,tij->st", drawn, drawn)
    means = (pairs[:, :, None] + pairs[:, None] + pairs[None]) / 3
    assert float(means.mean()) == pytest.approx(moments.square, rel=1e-12)
    assert float(means.var(correction=0)) == pytest.approx(moments.variance(3), rel=1e-11)


def test_statement_12_lower_bound_of_the_spectral_norm() -> None:
    """Its mean is u^T G u; the largest eigenvalue of a sketch is too large in the mean."""
    factors = random_factors(2, (2, 3))
    drawn, g = sketches(factors, 2.0), sum(m @ m.T for m in factors) / 2
    largest = torch.linalg.eigvalsh(g)[-1]
    values, vectors = torch.linalg.eigh(drawn)
    u = vectors[:, :, -1]
    bounds = torch.einsum("si,tij,sj->st", u, drawn, u).mean(1)
    torch.testing.assert_close(bounds, torch.einsum("si,ij,sj->s", u, g, u))
    assert (bounds <= largest + 1e-12).all()
    assert values[:, -1].mean() > 1.01 * largest


@pytest.mark.parametrize("seed", range(20))
def test_statement_12_bounds_by_shares(seed: int) -> None:
    sizes = [(4, 4, 4), (1, 6), (8,), (2, 3, 4, 5)][seed % 4]
    factors = random_factors(seed, sizes, m=1 + seed % 5)
    moments = pair_moments([m * 3.0 ** (b * (seed % 3)) for b, m in enumerate(factors)], 1.0)
    assert float(moments.shares.sum()) == pytest.approx(1)
    assert moments.variance() <= 8 * float(moments.shares.square().sum()) * moments.square**2


def test_statement_12_extreme_cases() -> None:
    """The three rows of the table; the last comes near the bound of 8 at B = 1."""
    count, r = 4, 5
    eye = torch.eye(count * r, dtype=torch.float64)

    def relative(factors: list[Tensor]) -> float:
        moments = pair_moments(factors, count)
        return moments.variance() / moments.square**2

    rest = 1 - 1 / r
    assert relative(list(eye.split(r, 1))) == pytest.approx(2 * rest / count)
    assert relative([eye[:, :r]] * count) == pytest.approx(2 * rest / count**2)
    line = signs(3, 1, seed=0) @ signs(1, r, seed=1)
    expected = 4 * rest / count + 4 * rest**2 / count**2
    assert relative([line] * count) == pytest.approx(expected)
    assert relative([signs(1, 400, seed=2)]) == pytest.approx(8, rel=0.01)


def test_statement_12_against_products() -> None:
    """Hutchinson's estimator |G z|^2: its mean, and its variance over all signs."""
    factors = random_factors(3, (3, 2))
    g = sum(m @ m.T for m in factors) / 2
    found, square = (all_signs(4) @ g).square().sum(1), g @ g
    assert float(found.mean()) == pytest.approx(float(g.square().sum()), rel=1e-12)
    off = square - torch.diag(square.diagonal())
    assert float(found.var(correction=0)) == pytest.approx(2 * float(off.square().sum()))


def test_statement_12_without_a_square_root() -> None:
    """Left and right factors, also of a curvature with negative eigenvalues, over all signs."""
    jacobians = [j.T for j in random_factors(4, (3, 2))]
    curvatures = [
        0.5 * (a + a.T) for a in (random_factors(5, (3,), 3) + random_factors(6, (2,), 2))
    ]
    assert min(float(torch.linalg.eigvalsh(a)[0]) for a in curvatures) < -0.1
    signs = all_signs(5).split((3, 2), dim=1)
    parts = list(zip(signs, jacobians, curvatures, strict=True))
    left, right = (
        torch.stack(found, 1)
        for found in ([e @ j for e, j, _ in parts], [e @ a @ j for e, j, a in parts])
    )
    g = sum((j.T @ a @ j for _, j, a in parts), torch.zeros(4, 4, dtype=torch.float64)) / 2
    inner = torch.einsum("sbi,tci->stbc", left, right)
    pairs = (inner * inner.permute(1, 0, 3, 2)).sum((2, 3)) / 4
    assert float(pairs.mean()) == pytest.approx(float(g.square().sum()), rel=1e-12)
    traces = (left * right).sum((1, 2)) / 2
    assert float(traces.mean()) == pytest.approx(float(g.trace()), rel=1e-12)


def test_root_of_the_softmax_curvature() -> None:
    p = torch.rand(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = p / p.sum(1, keepdim=True)
    root, e = softmax_root(p), signs(5, 7, seed=1)
    expected = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    torch.testing.assert_close(root @ root.mT, expected)
    v = p.sqrt() * e - p * (p.sqrt() * e).sum(1, keepdim=True)
    torch.testing.assert_close((root @ e[:, :, None])[:, :, 0], v)
    drawn = p[:, None] - torch.eye(7, dtype=torch.float64)  # for each class that may be drawn
    torch.testing.assert_close(torch.einsum("by,byi,byj->bij", p, drawn, drawn), expected)


# Real passes, through a network that no recursion covers.


class Decoder(nn.Module):
    """Attention, a normalization and a gated branch; the embedding is also the head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(4, 3)
        self.qkv, self.up, self.down = nn.Linear(3, 9), nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        z = self.tokens(tokens)
        q, k, v = self.qkv(z).split(3, -1)
        future = torch.ones(len(z[0]), len(z[0]), dtype=torch.bool).triu(1)
        z = z + (q @ k.mT / math.sqrt(3)).masked_fill(future, -math.inf).softmax(-1) @ v
        z = z + self.down(F.silu(self.up(F.layer_norm(z, (3,)))))
        return z @ self.tokens.weight.T


@pytest.mark.parametrize("name", ["tokens.weight", "qkv.weight", "up.weight", "down.weight"])
def test_statement_12_passes_through_a_transformer(name: str) -> None:
    """3,000 pairs: means within four standard errors, variances as the theorem says."""
    torch.manual_seed(0)
    model = Decoder().double()
    tokens = torch.randint(0, 4, (3, 3))
    batch, length, classes, draws = 3, 3, 4, 3000
    n = batch * length
    values = {key: p.detach() for key, p in model.named_parameters()}

    def outputs(weight: Tensor, sample: Tensor) -> Tensor:
        return functional_call(model, {**values, name: weight}, (sample[None],))[0]

    weight = values[name]
    roots = softmax_root(torch.stack([outputs(weight, x).softmax(-1) for x in tokens]))
    factors = [
        jacrev(outputs)(weight, x).reshape(length * classes, -1).T @ torch.block_diag(*root)
        for x, root in zip(tokens, roots, strict=True)
    ]
    moments = pair_moments(factors, n)

    def one_pass(seed: int) -> Tensor:
        e = signs(draws, batch, length, classes, seed=seed)
        v = torch.einsum("btij,dbtj->dbti", roots, e)
        found = []
        for b, x in enumerate(tokens):
            _, backward = vjp(lambda w, x=x: outputs(w, x), weight)
            found.append(vmap(lambda v, back=backward: back(v)[0])(v[:, b]).flatten(1))
        return torch.stack(found, 1)

    first, second = one_pass(0), one_pass(1)
    pairs = torch.einsum("dbi,dci->dbc", first, second).square().sum((1, 2)) / n**2
    traces = first.square().sum((1, 2)) / n
    for drawn, mean, variance in (
        (pairs, moments.square, moments.variance()),
        (traces, moments.trace, moments.trace_variance),
    ):
        assert abs(float(drawn.mean()) - mean) <= 4 * math.sqrt(variance / draws)
        squares = (drawn - mean).square()
        assert abs(float(squares.mean()) - variance) <= 4 * float(squares.std()) / math.sqrt(draws)


def test_statement_12_passes_from_a_basis_over_all_choices() -> None:
    """The mean over all places, for any basis: the norm of G. All vectors give it at once."""
    (count, rank, passes), n = (2, 3, 2), 3.0
    factors = random_factors(4, (rank,) * count)
    kernel = torch.stack(factors).mT  # J S of each sample, its columns
    exact = float((sum(m @ m.T for m in factors)).square().sum()) / n**2
    trace = float(sum(m.square().sum() for m in factors)) / n
    basis = torch.linalg.qr(random_factors(5, (rank,), rank)[0])[0]
    none, groups = torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.int64)
    found = []
    for starts in itertools.permutations(range(rank), count):
        for shifts in itertools.permutations(range(rank), passes):
            places = (torch.tensor(starts)[:, None] + torch.tensor(shifts)) % rank
            draw = BasisDraw(rank, torch.arange(count), places, basis, none, groups)
            found.append(estimates(draw, kernel))
    norms, traces = torch.tensor(found, dtype=torch.float64).mean(0).tolist()
    assert norms / n**2 == pytest.approx(exact, rel=1e-12)
    assert traces / n == pytest.approx(trace, rel=1e-12)
    norm, all_of_it = estimates(BasisDraw.of(count, rank, rank, torch.Generator()), kernel)
    assert (norm / n**2, all_of_it / n) == pytest.approx((exact, trace), rel=1e-12)


@pytest.mark.parametrize(("long", "others", "number"), [(0, 5, 2), (2, 5, 3), (1, 4, 3)])
def test_statement_12_a_part_of_the_samples_over_all_choices(
    long: int, others: int, number: int
) -> None:
    terms = torch.randn(long + others, long + others, dtype=torch.float64)
    found = []
    for chosen in itertools.combinations(range(long, long + others), number):
        rows = torch.tensor([*range(long), *chosen])
        scale = torch.tensor([1.0] * long + [others / number] * number, dtype=torch.float64)
        found.append((Subset(rows, scale).factors() * terms[rows][:, rows]).sum())
    assert torch.stack(found).mean() == pytest.approx(terms.sum().item(), rel=1e-12)


def estimates(draw: BasisDraw, kernel: Tensor) -> tuple[float, float]:
    rows = kernel[draw.samples]
    g = [torch.einsum("br,brm->bm", draw.vectors(a), rows) for a in range(draw.count)]
    weights = {pair: draw.weights(pair, kernel) for pair in draw.pairs}
    products = {(a, c): g[a] @ g[c].T for a, c in draw.pairs}
    own = [each.square().sum(1) for each in g]
    sketch, _ = draw.sketch(products, own, weights.__getitem__)
    return sketch.square.mean, sketch.trace.mean
