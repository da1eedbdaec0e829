"""Planted faults are named, sound networks are not blamed, and nothing of a model changes."""

from __future__ import annotations

import copy
import io
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from diagnosis_networks import DEVELOPMENT, HELD_OUT, Planted, batch, gpt, loss, mlp, scaled
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchvision.ops import StochasticDepth

from hessinit_lib.diagnosis import Diagnosis, diagnose
from hessinit_lib.diagnosis.curvature import layer_curvatures, model_curvature
from hessinit_lib.diagnosis.noise import biased_noise
from hessinit_lib.diagnosis.signals import observe
from hessinit_lib.errors import UserError
from hessinit_lib.hessians.case import Case
from hessinit_lib.init import apply, looks_linear_
from tests.networks import OwnSigmoid, chain, seeded

NETWORKS = {**DEVELOPMENT, **HELD_OUT}
X, Y = batch("vectors")


def stir(model: nn.Module) -> nn.Module:
    """Move all parameters off their start, biases too."""
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream))
    return model


# Verdicts


def test_there_are_as_many_networks_as_promised() -> None:
    kinds = [planted.kind for planted in NETWORKS.values()]
    assert len(kinds) == 30
    assert kinds.count("") == 10
    assert {"scale", "dead", "saturated", "residual", "noise"} < set(kinds)


@pytest.mark.parametrize("planted", NETWORKS.values(), ids=NETWORKS)
def test_faults_are_named_and_sound_networks_are_not(planted: Planted) -> None:
    found = diagnose(planted.make().train(), loss, *batch(planted.batch), curvature="none")
    named = [(fault.kind, fault.where) for fault in found.faults]
    if not planted.kind:
        assert named == []
        assert found.verdict == "balanced"
        assert found.scheme == ""
        return
    assert named[0] == (planted.kind, planted.where)
    # A whole network of saturated layers has as many faults; else the planted one is all.
    assert {kind for kind, _ in named} == {planted.kind}
    assert len(named) == 1 or planted.kind == "saturated"
    if planted.kind in ("scale", "dead"):
        assert found[planted.where].verdict == found.verdict != "balanced"
    covered = not any(isinstance(m, nn.MultiheadAttention) for m in planted.make().modules())
    assert (found.scheme != "") == (covered and planted.kind != "noise")
    assert found.faults[0].tried == (planted.kind != "noise")


@pytest.mark.parametrize(
    ("gain", "verdict"), [(1 / math.sqrt(3), "vanishing"), (2.2, "exploding"), (1.4, "balanced")]
)
def test_depth_is_blamed_where_no_layer_is(gain: float, verdict: str) -> None:
    found = diagnose(mlp(30, gain=gain), loss, X, Y, curvature="none")
    assert found.verdict == verdict
    assert [fault.kind for fault in found.faults] == ["depth"] * (verdict != "balanced")


def test_overflow_is_a_verdict() -> None:
    found = diagnose(scaled(mlp(4), "2.weight", 1e38), loss, X, Y)
    assert found.verdict == "exploding"
    assert math.isnan(found["0.weight"].hessian_norm)
    str(found)
    assert Diagnosis.from_json(found.to_json()).to_json() == found.to_json()


# Numbers


def dense(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Give gradient and Hessian in all weights of two axes, by autograd, as one matrix."""
    names = [name for name, value in model.named_parameters() if value.ndim > 1]
    sizes = [model.get_parameter(name).numel() for name in names]
    start = torch.cat([model.get_parameter(name).detach().flatten() for name in names])

    def of(flat: Tensor) -> Tensor:
        parts = {
            name: part.view_as(model.get_parameter(name))
            for name, part in zip(names, flat.split(sizes), strict=True)
        }
        return loss(torch.func.functional_call(model, parts, (x,)), y)

    return torch.func.grad(of)(start), torch.func.hessian(of)(start)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_numbers_are_those_of_dense_matrices(activation: Callable[[], nn.Module]) -> None:
    model = stir(nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 3))).double()
    x = torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y = torch.arange(12) % 3
    found = diagnose(model, loss, x, y, tolerance=1e-3)
    gradient, hessian = dense(model, x, y)
    at = 0
    for layer in found.layers:
        part = slice(at, at := at + math.prod(layer.shape))
        g, h = gradient[part], hessian[part, part]
        assert layer.gradient_norm == pytest.approx(g.norm().item(), rel=1e-9)
        assert layer.gradient_std == pytest.approx(g.std(correction=0).item(), rel=1e-9)
        assert layer.hessian_norm == pytest.approx(h.norm().item(), rel=1e-9)
        assert layer.hessian_gain == pytest.approx((g @ g / 2 * (g @ g) / (g @ h @ g)).item())
    hidden = model[0](x)
    assert found["0.weight"].output_rms == pytest.approx(hidden.square().mean().sqrt().item())
    fed = model[1](hidden)
    assert found["2.weight"].input_mean == pytest.approx(fed.mean().item())
    assert found["2.weight"].input_std == pytest.approx(fed.std(correction=0).item())
    assert found["2.weight"].input_zeros == pytest.approx((fed == 0).double().mean().item())
    largest = torch.linalg.eigvalsh(hessian).abs().max().item()
    assert found.largest_eigenvalue == pytest.approx(largest, rel=1e-3)
    assert found.largest_stable_rate == pytest.approx(2 / largest, rel=1e-3)
    best = (gradient @ gradient / (gradient @ hessian @ gradient)).item()
    best = best if best > 0 else math.inf
    assert found.suggested_rate == pytest.approx(min(best, 1 / largest), rel=1e-3)


def test_both_ways_to_the_curvature_along_gradients_agree() -> None:
    conv = nn.Conv2d(1, 3, 3, stride=2, groups=1)
    model = stir(nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(27, 4))).double()
    x = torch.randn(6, 1, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    y = torch.arange(6) % 4
    case = Case(model, loss, x, y)
    gradients = observe(case).gradients
    exact = layer_curvatures(case, gradients)
    for name, gradient in gradients.items():
        alone = model_curvature(case, {name: gradient})
        assert exact[name] == pytest.approx(alone, rel=1e-9)


# Models of any kind


class Two(nn.Module):
    """Takes two inputs, one of them by its place or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Embedding(5, 8)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x) + self.second(token)))


class Joined(nn.Module):
    """The same of one input."""

    def __init__(self, two: nn.Module) -> None:
        super().__init__()
        self.two = two

    def forward(self, x: Tensor) -> Tensor:
        return self.two(x[:, :3], x[:, 3].long())


@pytest.mark.parametrize("by_keyword", [False, True])
def test_several_inputs(by_keyword: bool) -> None:
    stream = torch.Generator().manual_seed(0)
    x, token = torch.randn(20, 3, generator=stream), torch.randint(5, (20,), generator=stream)
    y = torch.randint(4, (20,), generator=stream)
    model = stir(Two())
    inputs: Any = {"token": token, "x": x} if by_keyword else (x, token)
    found = diagnose(model, loss, inputs, y, tolerance=0.01)
    expected = diagnose(Joined(model), loss, torch.cat([x, token[:, None]], 1), y, tolerance=0.01)
    assert [layer.name for layer in found.layers] == [
        "first.weight",
        "second.weight",
        "last.weight",
    ]
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        assert ours.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-5)
        assert ours.hessian_norm == pytest.approx(theirs.hessian_norm, rel=0.05)
        assert ours.verdict == theirs.verdict


def test_bfloat16_is_computed_in_float32() -> None:
    model = mlp(5).bfloat16()
    wide = copy.deepcopy(model).float()
    x = X.bfloat16()
    found, expected = diagnose(model, loss, x, Y), diagnose(wide, loss, x.float(), Y)
    assert found == expected


def test_frozen_weights_have_signals_and_no_gradients() -> None:
    model = scaled(mlp(5), "0.weight", 100)
    model[0].requires_grad_(False)
    found = diagnose(model, loss, X, Y)
    assert math.isnan(found["0.weight"].gradient_norm)
    assert math.isnan(found["0.weight"].hessian_norm)
    assert found["0.weight"].output_gradient > 0
    assert [fault.where for fault in found.faults] == ["0.weight"]


def everything(model: nn.Module) -> list[Any]:
    """List all that a diagnosis must leave as it is."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    return [state, modes, flags, gradients, hooks, torch.get_rng_state()]


@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_model_changes(training: bool) -> None:
    model = nn.Sequential(
        nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 10)
    ).train(training)
    model[4].bias.requires_grad_(False)
    model[0].weight.grad = torch.ones(16, 64)
    model[2].training = False
    before = everything(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = diagnose(model, loss, X, Y)
    for ours, theirs in zip(everything(model), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    said = "frozen at this batch's" if training else "call model.train() first"
    assert said in "".join(found.notes)


class MaskByName(nn.Module):
    """Dropout that is called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(input=self.first(x).relu()))


def test_only_random_streams_that_are_put_back_are_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    def seed_every_device(seed: int) -> None:
        raise AssertionError("the streams of all GPUs would change, and stay so")

    monkeypatch.setattr(torch, "manual_seed", seed_every_device)
    assert diagnose(MaskByName().train(), loss, X, Y, curvature="none").faults == ()


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "planted", [NETWORKS[name] for name in ("CNN, layer 3 x 100", "MLP, dead ReLUs")]
)
def test_faults_are_named_on_a_gpu(planted: Planted, kind: torch.dtype) -> None:
    x, y = batch(planted.batch)
    model = planted.make().to("cuda", kind).train()
    here = copy.deepcopy(model).float().cpu()
    before = [*everything(model), torch.cuda.get_rng_state()]
    found = diagnose(model, loss, x.to("cuda", kind), y.cuda())
    for ours, theirs in zip([*everything(model), torch.cuda.get_rng_state()], before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert [(fault.kind, fault.where) for fault in found.faults] == [(planted.kind, planted.where)]
    expected = diagnose(here, loss, x.to(kind).float(), y)
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        assert ours.gradient_norm == pytest.approx(theirs.gradient_norm, rel=0.02, abs=1e-12)
        # Estimates: as far apart as two of the tolerance 0.1.
        assert ours.hessian_norm == pytest.approx(theirs.hessian_norm, rel=0.5, abs=1e-12)


@needs_gpu
def test_several_inputs_on_a_gpu() -> None:
    model = stir(Two()).cuda()
    inputs = {"x": torch.randn(20, 3).cuda(), "token": torch.arange(20).cuda() % 5}
    found = diagnose(model, loss, inputs, torch.arange(20).cuda() % 4)
    assert all(layer.hessian_norm > 0 for layer in found.layers)


def test_numbers_do_not_depend_on_the_random_state() -> None:
    model = gpt(1)
    torch.manual_seed(1)
    first = diagnose(model, loss, *batch("tokens"))
    torch.manual_seed(2)
    assert diagnose(model, loss, *batch("tokens")).to_json() == first.to_json()


def test_a_function_without_a_second_derivative_is_noted() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return 2 * gradient * ctx.saved_tensors[0]

    class Squares(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return Square.apply(super().forward(x))

    model = nn.Sequential(nn.Linear(64, 8), Squares(8, 10))
    without = diagnose(model, loss, X, Y)  # the Gauss-Newton blocks need none
    assert without.curvature == "ggn"
    assert without["0.weight"].hessian_norm > 0
    found = diagnose(model, loss, X, Y, curvature="all")
    assert math.isnan(found.largest_stable_rate)
    assert found.notes[0].startswith("no curvature: ")
    assert "second derivative" in found.notes[0]
    assert found["0.weight"].gradient_norm > 0


def test_a_network_without_an_exact_route_is_seen_by_its_gauss_newton_blocks() -> None:
    model = nn.Sequential(nn.Linear(64, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 10))
    found, whole = diagnose(model, loss, X, Y), diagnose(model, loss, X, Y, curvature="all")
    assert (found.curvature, whole.curvature) == ("ggn", "hessian")
    assert any("Gauss-Newton" in note for note in found.notes)
    assert "GGN" in str(found)
    assert "GGN" not in str(whole)
    assert [layer.verdict for layer in found.layers] == [layer.verdict for layer in whole.layers]
    # Of the last layer both are the same matrix.
    last, exact = found["3.weight"], whole["3.weight"]
    assert abs(last.hessian_norm - exact.hessian_norm) < 3.5 * (
        last.hessian_error + exact.hessian_error
    )
    assert last.hessian_gain == pytest.approx(exact.hessian_gain, rel=0.7)
    assert type(found).from_json(found.to_json()).to_json() == found.to_json()
    assert found.plot().axes[3].get_title() != whole.plot().axes[3].get_title()


# Wrong input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": nn.BatchNorm1d(64)}, "model: no weight of two or more axes"),
        ({"inputs": X[:3]}, "3 inputs and 32 targets"),
        ({"curvature": "some"}, "curvature='some': expected one of auto, all, layers, ggn, none"),
        ({"inputs": (X, X[:2])}, r"inputs: got \[32, 2\] samples, expected as many"),
        ({"inputs": (X, torch.tensor(3))}, r"inputs: got tensor\(3\) among them"),
        ({"loss_fn": lambda z, y: z}, r"gave shape \(32, 10\), expected one number"),
        ({"tolerance": 0.0}, "tolerance=0.0: expected a positive number"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, Any], message: str) -> None:
    given = {"model": mlp(3), "loss_fn": loss, "inputs": X, "targets": Y, **change}
    with pytest.raises(ValueError, match=message):
        diagnose(**given)


# What comes back


@pytest.fixture(scope="module")
def broken() -> Diagnosis:
    return diagnose(scaled(mlp(4), "2.weight", 100), loss, X, Y)


def test_the_table_says_the_words(broken: Diagnosis) -> None:
    shown = str(broken)
    assert "Fault: 2.weight: exploding: its weights multiply a signal by " in shown
    assert "Scheme that fits: 'he'" in shown
    assert f"(2/λ): {broken.largest_stable_rate:.2g}; suggested: " in shown
    sound = diagnose(mlp(4), loss, X, Y)
    assert "Verdict: balanced" in str(sound)
    assert "flat: share of its values that are saturated" in " ".join(str(sound).split())
    assert "exploding" not in str(sound)


def test_html_shows_every_layer_and_escapes(broken: Diagnosis) -> None:
    page = broken._repr_html_()
    for layer in broken.layers:
        assert f"<th scope='row'>{layer.name}</th>" in page
    odd = replace(broken, notes=("a < b",))
    assert "a &lt; b" in odd._repr_html_()


def test_json_comes_back_the_same(broken: Diagnosis) -> None:
    assert Diagnosis.from_json(broken.to_json()) == broken
    unknown = replace(broken, loss=math.inf, suggested_rate=math.nan)
    assert (json.loads(unknown.to_json())["loss"], unknown.to_json()[-2:]) == ("Infinity", "}\n")
    assert Diagnosis.from_json(unknown.to_json()).loss == math.inf
    assert math.isnan(Diagnosis.from_json(unknown.to_json()).suggested_rate)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.clear(), "layers: Field required"),
        (lambda d: d.update(extra=1), "extra: unknown field"),
        (lambda d: d.update(loss="big"), "loss: got 'big', expected float"),
        (lambda d: d.update(loss=None), "loss: got None, expected float"),
        (lambda d: d.update(samples=True), "samples: got True, expected int"),
        (lambda d: d.update(scheme=3), "scheme: got 3, expected str"),
        (lambda d: d.update(notes="one"), "notes: got 'one', expected tuple[str, ...]"),
        (lambda d: d["notes"].append(2), "notes.0: got 2, expected str"),
        (lambda d: d["layers"].append(2), "layers.4: got 2, expected LayerDiagnosis"),
        (lambda d: d["layers"][1].pop("gain"), "layers.1.gain: Field required"),
        (
            lambda d: d["layers"][1].update(order="1"),
            "layers.1.order: got '1', expected int |",
        ),
        (lambda d: d["layers"][1].update(shape=[1.5]), "layers.1.shape.0: got 1.5, expected int"),
        (
            lambda d: d["faults"][0].update(kind="x"),
            "faults.0.kind: got 'x', expected Literal['",
        ),
    ],
)
def test_json_of_another_kind_is_refused_in_one_line(
    broken: Diagnosis, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    found = json.loads(broken.to_json())
    change(found)
    with pytest.raises(UserError) as error:
        Diagnosis.from_json(json.dumps(found))
    assert str(error.value).startswith(f"not the JSON of a diagnosis: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", '{"layers": [', "1" * 30])
def test_text_that_is_no_diagnosis_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^not the JSON of a diagnosis: [^\n]*$"):
        Diagnosis.from_json(text)


def test_layers_by_name(broken: Diagnosis) -> None:
    assert broken["4.weight"].name == "4.weight"
    with pytest.raises(KeyError, match=r"'5.weight': expected one of 0.weight"):
        broken["5.weight"]


@pytest.mark.parametrize("name", ["CNN, layer 3 x 100", "MLP, dead ReLUs"])
def test_plot_shows_the_numbers(name: str) -> None:
    planted = DEVELOPMENT[name]
    found = diagnose(planted.make(), loss, *batch(planted.batch), curvature="layers")
    figure = found.plot()
    figure.savefig(io.BytesIO(), format="svg")
    gains = figure.axes[0].lines[0].get_xdata()
    assert sorted(gains) == sorted(layer.gain for layer in found.layers)
    assert plt.get_fignums() == []


def test_a_scheme_is_named_after_it_was_tried() -> None:
    model, (x, y) = chain(16, 12, nn.Sigmoid), (torch.randn(24, 12), torch.arange(24) % 3)
    before = [weight.clone() for weight in model.parameters()]
    found = diagnose(model, loss, x, y, curvature="none")
    assert ([fault.kind for fault in found.faults], found.scheme) == (["depth"], "looks_linear_")
    assert found.faults[0].remedy == "initialize the network by hessinit_lib.init.looks_linear_"
    assert all(map(torch.equal, before, model.parameters()))
    looks_linear_(model, x)
    assert diagnose(model, loss, x, y, curvature="none").verdict == "balanced"
    # The usual scheme would have been no remedy.
    apply(model, "lecun", generator=seeded(0))
    assert diagnose(model, loss, x, y, curvature="none").verdict == "vanishing"


def test_no_scheme_is_named_where_none_mends() -> None:
    x, y = torch.randn(24, 12), torch.arange(24) % 3
    found = diagnose(chain(16, 12, OwnSigmoid), loss, x, y, curvature="none")
    assert [fault.kind for fault in found.faults] == ["depth"]
    assert found.scheme == ""
    assert found.faults[0].remedy.startswith("no start that was tried mends it")


def test_a_branch_that_is_seldom_dropped_is_no_biased_noise() -> None:
    """One of eight samples is large, and its branch may be kept in all of the first draws."""
    x = torch.ones(8, 4)
    x[0] = 1000
    model = nn.Sequential(*(StochasticDepth(0.06, "row") for _ in range(40)))
    assert biased_noise(model.eval(), x) == {}
