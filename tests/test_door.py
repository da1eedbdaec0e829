"""Whatever is given to an entry works, or ends in one line that says what was expected."""

from __future__ import annotations

import collections
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_book.rivals.metainit import metainit_
from hessinit_lib import (
    HessianTracker,
    cross_layer,
    diagnose,
    init,
    layer_hessians,
    model_hessian,
    spectrum,
)

ENTRIES: dict[str, Callable[..., Any]] = {
    "layer_hessians": layer_hessians,
    "estimate": functools.partial(layer_hessians, method="estimate"),
    "model_hessian": model_hessian,
    "spectrum": spectrum,
    "cross_layer": cross_layer,
    "diagnose": functools.partial(diagnose, curvature="none"),
    "hessian_": functools.partial(init.hessian_, tolerance=0.5),
    "tracker": lambda *case: HessianTracker(*case).step(),
}
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 3
LOSS = nn.CrossEntropyLoss()
CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 0.5])


@pytest.fixture(autouse=True)
def _no_checks_of_types() -> Iterator[None]:
    """Users have none of those that tests have: the door itself is asked."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def network(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs))


class Wrapped(nn.Module):
    """A model whose outputs, or inputs, are made into something else."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.inner, self.function = network(), function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.inner, *args, **kwargs)


class Holding(nn.Module):
    """A loss that holds the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) + self.model[0].weight.square().sum()


def penalized(how: str) -> tuple[Any, ...]:
    model = network()
    added = {
        "decay": lambda: sum(p.square().sum() for p in model.parameters()),
        "second call": lambda: model(X).square().mean(),
    }
    if how == "held":
        return model, Holding(model), X, Y
    return model, lambda outputs, y: F.cross_entropy(outputs, y) + added[how](), X, Y


Logits = collections.namedtuple("Logits", "logits")


def bad(function: Callable[..., Any]) -> tuple[Any, ...]:
    return Wrapped(function), LOSS, X, Y


def regression(loss_fn: Callable[..., Tensor]) -> tuple[Any, ...]:
    return network(1), loss_fn, X, X.sum(1).exp()


REFUSED: dict[str, tuple[Callable[[], tuple[Any, ...]], str]] = {
    "no module": (lambda: (torch.tanh, LOSS, X, Y), "expected a torch.nn.Module"),
    "frozen": (lambda: (network().requires_grad_(False), LOSS, X, Y), "requires a gradient"),
    "biases": (lambda: (nn.LayerNorm(4), LOSS, X, Y), "requires a gradient"),
    "lazy": (lambda: (nn.LazyLinear(3), LOSS, X, Y), "no shape yet"),
    "meta": (lambda: (network().to("meta"), LOSS, X, Y), "meta"),
    "complex": (lambda: (nn.Linear(4, 3, dtype=torch.complex64), LOSS, X, Y), "complex"),
    "device": (lambda: (network(), LOSS, X.to("meta"), Y), "expected one device"),
    "counts": (lambda: (network(), LOSS, X, Y[:4]), r"(6 inputs and 4 targets|batch_size \(6\))"),
    "no targets": (lambda: (network(), LOSS, X, None), "targets: got NoneType"),
    "two targets": (lambda: (network(), LOSS, X, (Y, Y)), "targets: got tuple"),
    "no inputs": (lambda: (network(), LOSS, None, Y), "inputs: got NoneType"),
    "dict": (lambda: bad(lambda m, x: {"logits": m(x)}), "gave a dict"),
    "named tuple": (lambda: bad(lambda m, x: Logits(m(x))), "gave a Logits"),
    "detached": (lambda: bad(lambda m, x: m(x).detach()), "do not depend on any"),
    "no graph": (lambda: bad(lambda m, x: torch.no_grad()(m)(x)), "do not depend on any"),
    "model fails": (lambda: bad(lambda m, x: m(x[:, :3])), r"refused inputs of shape \(6, 4\)"),
    "sparse": (lambda: (network(), LOSS, X.to_sparse(), Y), "got a sparse or nested tensor"),
    "nested": (
        lambda: (
            network(),
            LOSS,
            torch.nested.nested_tensor([X[:2], X[:3]], layout=torch.jagged),
            Y[:2],
        ),
        "got a sparse or nested tensor",
    ),
    "column of classes": (lambda: (network(), LOSS, X, Y[:, None]), r"\(6, 1\)"),
    "one-hot": (lambda: (network(), LOSS, X, F.one_hot(Y, 3)), r"\(6, 3\)"),
    "float classes": (lambda: (network(), LOSS, X, Y.float()), r"\(6,\)"),
    "class 3": (lambda: (network(), LOSS, X, Y + 1), "3"),
    "loss fails": (lambda: (network(), lambda z, y: {}["key"], X, Y), "loss <lambda> refused"),
    "mse": (lambda: regression(nn.MSELoss()), r"\(6,\).*\(6, 1\)|\(6, 1\).*\(6,\)"),
    "huber": (lambda: regression(nn.HuberLoss()), "broadcasting"),
    "poisson": (lambda: regression(nn.PoissonNLLLoss()), "broadcasting"),
    "by hand": (lambda: regression(lambda z, y: (z - y).square().mean()), "broadcasting"),
    "squeezed": (
        lambda: (network(1), lambda z, y: (z[:, 0] - y).abs().mean(), X, X[:, :1]),
        "broadcasting",
    ),
    "decay": (lambda: penalized("decay"), "past the outputs"),
    "second call": (lambda: penalized("second call"), "past the outputs"),
    "held": (lambda: penalized("held"), "past the outputs"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_cannot_work_is_refused_in_one_line(entry: str, case: str) -> None:
    make, said = REFUSED[case]
    given = make()
    with pytest.raises((ValueError, NotImplementedError), match=said) as caught:
        ENTRIES[entry](*given)
    assert "\n" not in str(caught.value)


def pairs_on_purpose(z: Tensor, y: Tensor) -> Tensor:
    s = z[:, 0]
    return F.softplus(-(s[:, None] - s) * (y[:, None] - y).sign()).mean()


ACCEPTED: dict[str, Callable[[], tuple[Any, ...]]] = {
    "int32": lambda: (network(), LOSS, X, Y.int()),
    "int8, by hand": lambda: (network(), lambda z, y: F.cross_entropy(z, y), X, Y.to(torch.int8)),
    "double": lambda: (network(), LOSS, X, F.one_hot(Y, 3).double()),
    "ranking": lambda: (network(1), pairs_on_purpose, X, X.sum(1)),
    "parallel": lambda: (nn.DataParallel(network()), LOSS, X, Y),
    "keywords": lambda: (
        Wrapped(lambda m, x, mask=None: m(x)),
        LOSS,
        collections.UserDict(x=X, mask=None),
        Y,
    ),
    "one axis": lambda: (
        nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)),
        nn.MSELoss(),
        X,
        X.sum(1),
    ),
    "in place": lambda: (Wrapped(lambda m, x: m(x.sub_(0.1))), LOSS, X, Y),
    "sparse": lambda: (
        nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3)),
        LOSS,
        torch.arange(12).view(6, 2) % 5,
        Y,
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_torch_trains_works(entry: str, case: str) -> None:
    model, loss_fn, inputs, targets = ACCEPTED[case]()
    kept = X.clone()
    ENTRIES[entry](model, loss_fn, inputs, targets)
    assert torch.equal(kept, X)


@pytest.mark.parametrize(
    "make",
    [
        lambda weight: nn.CrossEntropyLoss(weight=weight),
        lambda weight: functools.partial(F.cross_entropy, weight=weight),
        lambda weight: lambda z, y: F.cross_entropy(z, y, weight),
    ],
)
@pytest.mark.parametrize("entry", ENTRIES)
def test_class_weights_have_the_type_of_the_model(entry: str, make: Callable[..., Any]) -> None:
    """A bfloat16 model is computed in float32: so is its loss."""
    model = network().bfloat16()
    found = ENTRIES[entry](model, make(CLASS_WEIGHTS.bfloat16()), X.bfloat16(), Y)
    if entry == "layer_hessians":
        same = copy.deepcopy(model).float()
        expected = layer_hessians(same, make(CLASS_WEIGHTS), X.bfloat16().float(), Y)
        for name, layer in expected.items():
            assert found[name].frobenius == pytest.approx(layer.frobenius, rel=1e-5)


NOT_FINITE: dict[str, tuple[Callable[[], tuple[Any, ...]], str]] = {
    "inputs": (lambda: (network(), LOSS, X / 0, Y), "not all inputs are finite"),
    "targets": (lambda: (network(), nn.MSELoss(), X, X[:, :3] / 0), "not all targets are finite"),
    "ignored": (lambda: (network(), LOSS, X, torch.full((6,), -100)), "ignore_index, -100"),
    "loss": (
        lambda: (network(), lambda z, y: F.cross_entropy(z, y) + torch.inf, X, Y),
        "the loss is inf",
    ),
}


@pytest.mark.parametrize("case", NOT_FINITE)
def test_what_is_not_finite_is_said(case: str) -> None:
    make, said = NOT_FINITE[case]
    for method in ("auto", "estimate"):
        report = layer_hessians(*make(), method=method)
        assert said in repr(report)
        assert all(layer.frobenius != layer.frobenius for layer in report.values())
    for entry in (model_hessian, spectrum, cross_layer):
        with pytest.raises(ValueError, match=said):
            entry(*make())
    with pytest.raises(ValueError, match="expected"):
        init.hessian_(*make())


def test_the_probe_of_a_tracker_is_a_copy() -> None:
    x = X.clone()
    tracker = HessianTracker(network(), LOSS, {"input": x}, Y, every=1)
    first = tracker.step()
    x.zero_()
    second = tracker.step()
    assert first is not None
    assert second is not None
    assert first["0.weight"].frobenius == second["0.weight"].frobenius


@pytest.mark.parametrize("case", NOT_FINITE)
def test_a_diagnosis_says_what_is_not_finite(case: str) -> None:
    make, said = NOT_FINITE[case]
    assert said in str(diagnose(*make(), curvature="none"))


def test_descents_take_what_the_others_take() -> None:
    for case, (make, said) in REFUSED.items():
        if case in ("meta", "device", "counts", "biases"):
            continue
        model, loss_fn, inputs, targets = make()
        with pytest.raises((ValueError, NotImplementedError), match=said) as caught:
            metainit_(model, loss_fn, [(inputs, targets)])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entry", ENTRIES)
def test_inference_mode_does_not_matter(entry: str) -> None:
    """Neither around the call nor where model and batch were made."""
    model = network()
    with torch.inference_mode():
        found = [ENTRIES[entry](model, LOSS, X, Y)]
        if entry == "hessian_":
            return
        model, x, y = network(), X.clone(), Y.clone()
        found.append(ENTRIES[entry](model, LOSS, x, y))
    found.append(ENTRIES[entry](model, LOSS, x, y))
    assert len({str(each) for each in found}) == 1
