"""`looks_linear_` on weights that no layer of a known kind owns: found by their place."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from hessinit_lib import layer_hessians
from hessinit_lib.init import hessian_, looks_linear_
from hessinit_lib.init.forward_graph import forward_graph, last_layers, residual_branches
from hessinit_lib.init.looks_linear import OUTPUT_RMS
from tests.networks import seeded

CE = F.cross_entropy


class Packed(nn.Module):
    """A class token, learned positions, two encoder blocks with packed attention, a head."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(6, 8), nn.Parameter(torch.zeros(1, 6, 8))
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.ModuleList(copy.deepcopy(block) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.cat((self.token.expand(len(x), -1, -1), self.embed(x)), 1) + self.place
        for block in self.blocks:
            z = block(z)
        return self.head(self.norm(z)[:, 0])


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: int) -> None:
        super().__init__()
        self.body, self.head = kind(6, 8, batch_first=True, **options), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        assert state is not None
        return self.head(state[0])


class Turned(nn.Module):
    """As the library transformers has it: the weight has inputs first."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(fan_in, fan_out))
        self.bias = nn.Parameter(torch.ones(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.addmm(self.bias, x.flatten(0, -2), self.weight)
        return out.view(*x.shape[:-1], -1)


class Bare(nn.Module):
    """Matrices on either side, of several heads, a kernel, gains, a bias, a table by index."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gain = nn.Parameter(torch.zeros(6, 8)), nn.Parameter(torch.ones(1, 1, 8))
        self.kernel, self.shift = nn.Parameter(torch.zeros(8, 4, 3)), nn.Parameter(torch.ones(8, 1))
        self.heads, self.table = nn.Parameter(torch.zeros(2, 8, 4)), nn.Parameter(torch.zeros(9, 8))
        self.mix, self.norm = nn.Parameter(torch.zeros(5, 5)), nn.LayerNorm((5, 8))
        self.last = nn.Parameter(torch.zeros(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(x @ self.first) * self.gain
        z = F.conv1d(z.mT, self.kernel, padding=1, groups=2) + self.shift
        z = z.mT + self.table[torch.arange(x.shape[1])]
        z = torch.einsum("btd,hdk->bthk", z, self.heads).flatten(2)
        z = z + self.norm(self.mix @ z)
        return F.linear(z.mean(1), self.last)


def turned() -> nn.Module:
    return nn.Sequential(
        *(Turned(6, 16), nn.ReLU(), Turned(16, 16), nn.ReLU()),
        *(nn.AvgPool2d((5, 1)), nn.Flatten(), nn.Linear(16, 3)),
    )


def normalized() -> nn.Module:
    linear = parametrizations.weight_norm(nn.Linear(30, 16))
    return nn.Sequential(nn.Flatten(), linear, nn.ReLU(), nn.Linear(16, 3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "attention": Packed,
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU, num_layers=2),
    "rnn": lambda: Recurrent(nn.RNN),
    "cells": Cells,
    "turned": turned,
    "bare": Bare,
    "weight norm": normalized,
}


def batch(count: int = 24) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 5, 6, generator=seeded(5))
    return x, (x[:, -1, 0] > 0).long() + (x[:, -2:, 1].sum(1) > 0).long()  # to be learned


def made(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return NETWORKS[name]()


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_have_their_size_and_signals_neither_fade_nor_explode(name: str) -> None:
    model, x = made(name), batch()[0]
    kept = {n: p.clone() for n, p in model.named_parameters() if "gain" in n or "norm" in n}
    state = torch.get_rng_state()
    scales = looks_linear_(model, x, generator=seeded(0))
    assert torch.equal(state, torch.get_rng_state())
    assert model(x).square().mean().sqrt().item() == pytest.approx(OUTPUT_RMS, rel=0.03)
    assert all(1 / 8 < scale < 8 for scale in scales.values())
    graph = forward_graph(model, x)
    assert {layer.name for layer in graph.layers} == set(scales)
    for n, value in kept.items():
        assert torch.equal(value, model.get_parameter(n))
    for layer in graph.layers:  # the gains and losses of signals at each layer's inputs
        for node in graph.nodes[layer.name]:
            reads = [getattr(node, s) for s in dir(node) if s in ("_saved_mat1", "_saved_self")]
            for z in reads:
                assert z.norm() == 0 or 1 / 8 < z.square().mean().sqrt() < 8, layer.name


@pytest.mark.parametrize("name", ["rnn", "turned", "weight norm"])
def test_norms_are_met(name: str) -> None:
    model, (x, y) = made(name).double(), batch(6)
    x = x.double()
    names = list(looks_linear_(model, x, generator=seeded(0)))
    found = layer_hessians(model, CE, x, y, layers=names, norms=("frobenius",), parts=False)
    target = {n: 0.8 * found[n].frobenius for n in names}
    report = hessian_(model, CE, x, y, target=target, directions="keep")
    found = layer_hessians(model, CE, x, y, layers=names, norms=("frobenius",), parts=False)
    for n in names:
        assert found[n].frobenius == pytest.approx(target[n], rel=0.08)
        assert report.after[n] == pytest.approx(target[n], rel=0.05)


@pytest.mark.parametrize("name", sorted({*NETWORKS} - {"bare"}))
def test_training_goes_on_from_there(name: str) -> None:
    x, y = batch(64)
    losses = []
    for ours in (True, False):
        model = made(name)
        if ours:
            looks_linear_(model, x, generator=seeded(0))
        elif name == "turned":  # torch has no default for it: as for its Linear
            with torch.no_grad():
                for p in model.parameters():
                    if p.ndim > 1 and not p.any():
                        p.uniform_(-(p.shape[-1] ** -0.5), p.shape[-1] ** -0.5, generator=seeded(0))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(30):
            optimizer.zero_grad()
            CE(model(x), y).backward()
            optimizer.step()
        losses.append(CE(model(x), y).item())
    assert losses[0] < min(losses[1] * 1.05, 0.9)


def test_each_matrix_of_a_stack_is_drawn_by_itself() -> None:
    eye = torch.eye(8)
    model, x = Recurrent(nn.LSTM), batch()[0]
    looks_linear_(model, x, generator=seeded(0))
    for block in model.body.weight_hh_l0.detach().chunk(4):
        torch.testing.assert_close(block @ block.T, eye, atol=1e-5, rtol=0)
    for name, bias in model.named_parameters():
        assert not name.rpartition(".")[2].startswith("bias") or not bias.any()
    model = Packed()
    scales = looks_linear_(model, x, generator=seeded(0))
    for k in (0, 1):
        packed = model.blocks[k].self_attn.in_proj_weight.detach()
        for block in packed.chunk(3):
            torch.testing.assert_close(block @ block.T, eye, atol=1e-5, rtol=0)
        assert scales[f"blocks.{k}.self_attn.out_proj.weight"] == pytest.approx(0.5)
    assert 0.7 < model.place.std() < 1.3
    assert "place" not in scales


def test_queries_that_meet_other_inputs_than_keys() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Parameter(torch.zeros(1, 2, 6))
            self.mix = nn.MultiheadAttention(6, 2, batch_first=True)
            self.head = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            query = self.query.expand(len(x), -1, -1)
            return self.head(self.mix(query, x, x, need_weights=False)[0].flatten(1))

    model, x = Crossed(), batch()[0]
    scales = looks_linear_(model, x, generator=seeded(0))
    assert list(scales) == ["mix.in_proj_weight", "mix.out_proj.weight", "head.weight"]
    for block in model.mix.in_proj_weight.detach().chunk(3):
        torch.testing.assert_close(block @ block.T, torch.eye(6), atol=1e-5, rtol=0)
    assert model.query.std() > 0.5


def test_weights_that_are_scaled_resized_or_read_by_a_transposed_kernel() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.place = nn.Conv1d(6, 8, 1), nn.Parameter(torch.zeros(1, 8, 3))
            self.kernel, self.scaled = (
                nn.Parameter(torch.zeros(8, 4, 3)),
                nn.Parameter(torch.eye(4)),
            )
            self.body, self.head = nn.LSTM(4, 8, bidirectional=True, proj_size=2), nn.Linear(4, 3)
            parametrizations.weight_norm(self.body, "weight_hh_l0")

        def forward(self, x: Tensor) -> Tensor:
            z = self.first(x.mT) + F.interpolate(self.place, size=5, mode="linear")
            z = F.conv_transpose1d(z.tanh(), self.kernel)
            z = F.linear(z.permute(2, 0, 1), self.scaled * -0.25)
            return self.head(self.body(z)[0][-1])

    model, x = Scaled(), batch()[0]
    looks_linear_(model, x, output_rms=0.2, generator=seeded(0))
    torch.testing.assert_close(model.scaled @ model.scaled.T, 16 * torch.eye(4))
    torch.testing.assert_close(model.kernel.square().sum((0, 2)), torch.ones(4))
    assert 0.5 < model.place.std() < 1.5
    for block in model.body.weight_hh_l0.detach().chunk(4):
        torch.testing.assert_close(block.mT @ block, 4 * torch.eye(2))


def test_turned_weights_are_mirrored_around_relus() -> None:
    model, x = turned(), batch()[0]
    looks_linear_(model, x, generator=seeded(0))
    torch.testing.assert_close(model(x), -model(-x), atol=1e-5, rtol=1e-4)


def test_branches_and_last_layers() -> None:
    x, _ = batch()
    graph = forward_graph(Packed(1), x)
    attention, linear = "blocks.0.self_attn.", "blocks.0.linear"
    assert residual_branches(graph) == [
        [f"{attention}in_proj_weight", f"{attention}out_proj.weight"],
        [f"{linear}1.weight", f"{linear}2.weight"],
    ]
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        graph = forward_graph(Recurrent(kind), x)
        assert (residual_branches(graph), last_layers(graph)) == ([], {"head.weight"})


class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.a = nn.Parameter(torch.randn(3, 30)), nn.Parameter(torch.randn(2, 30))
        self.b = nn.Parameter(torch.zeros(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.w + self.b @ self.a)


class Standardized(LowRank):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.w - self.w.mean())


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Bilinear(30, 30, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x.flatten(1), x.flatten(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (LowRank, r"^a: a function of it multiplies, not it itself; expected .* leaves a par"),
        (Standardized, "^w: a function of it multiplies, not it itself"),
        (Pairs, r"pair\.weight: it is used by Trilinear; expected"),
        (
            lambda: nn.Sequential(
                *(nn.Flatten(), nn.Linear(30, 8), nn.ReLU()),
                parametrizations.spectral_norm(nn.Linear(8, 3)),
            ),
            r"3\.parametrizations\.weight\.original: its parametrization does not take any value",
        ),
    ],
)
def test_weights_without_a_place_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    model, x = make(), batch()[0]
    kept = copy.deepcopy(model.state_dict())
    with pytest.raises(NotImplementedError, match=message):
        looks_linear_(model, x, generator=seeded(0))
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())
