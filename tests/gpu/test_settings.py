"""On a GPU nothing is rounded but what a tolerance allows, and no setting of the user's changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_entries import CE, convolutions, data
from torch import nn

from hessinit_lib import layer_hessians, model_hessian
from hessinit_lib.hessians.graph import conditions
from hessinit_lib.hessians.numerics.precision import rounded_passes

LIBRARIES: Any = torch.backends
BACKENDS = [
    *(LIBRARIES.cuda.matmul, LIBRARIES.cudnn.conv, LIBRARIES.cudnn.rnn),
    *(LIBRARIES.mkldnn.matmul, LIBRARIES.mkldnn.conv),
]
OFF = {"": (), "TF32 allowed": ("tf32",) * 3, "TF32 refused": ("ieee",) * 3}


def settings() -> list[Any]:
    cudnn = torch.backends.cudnn
    return [b.fp32_precision for b in BACKENDS] + [
        *(cudnn.enabled, cudnn.deterministic, cudnn.benchmark, torch.get_num_threads()),
        *(torch.get_rng_state().tolist(), torch.cuda.get_rng_state().tolist()),
    ]


@pytest.fixture(params=OFF)
def chosen(request: pytest.FixtureRequest) -> Any:
    before = [backend.fp32_precision for backend in BACKENDS]
    for backend, value in zip(BACKENDS, OFF[request.param], strict=False):
        backend.fp32_precision = value
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = False
    for backend, value in zip(BACKENDS, before, strict=True):
        backend.fp32_precision = value


@pytest.mark.usefixtures("chosen")
def test_exact_norms_are_not_rounded(gpu: Any) -> None:
    """Convolutions are, on a GPU, unless that is turned off: norms were off by 6e-3."""
    model, (x, y) = convolutions(False), data(8, 3, 8, 8)
    expected = layer_hessians(copy.deepcopy(model).double(), CE, x.double(), y)
    if gpu is not None:
        gpu.tf32 = True
    before = settings()
    found = layer_hessians(model.cuda(), CE, x.cuda(), y.cuda(), tolerance=1e-3)
    assert settings() == before
    for name, layer in expected.items():
        for norm in ("frobenius", "spectral", "trace"):
            assert getattr(found[name], norm) == pytest.approx(getattr(layer, norm), rel=2e-5)


@pytest.mark.usefixtures("chosen")
def test_settings_are_put_back_when_a_call_fails() -> None:
    def fails(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    model, (x, y) = nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 4)), data(8, 6)
    before = settings()
    for call in (layer_hessians, model_hessian):
        with pytest.raises(KeyboardInterrupt):
            call(model.cuda(), fails, x.cuda(), y.cuda())
        assert settings() == before


def test_passes_are_rounded_where_a_tolerance_allows_it() -> None:
    names = ("cuda.matmul", "cudnn.conv")
    inside: dict[float, list[str]] = {}
    for tolerance in (0.01, 0.05):
        with rounded_passes(tolerance):
            inside[tolerance] = [b.fp32_precision for b in BACKENDS[: len(names)]]
    assert inside[0.05] == ["tf32", "tf32"]
    assert inside[0.01] == [b.fp32_precision for b in BACKENDS[: len(names)]]


def test_batch_normalization_is_known_to_keep_samples_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def tried(*_: object) -> None:
        raise AssertionError("its node is not known: each call tries it out by a backward pass")

    monkeypatch.setattr(conditions, "_check_by_gradient", tried)
    model, (x, y) = convolutions().eval().cuda(), data(8, 3, 8, 8)
    assert model(x.cuda()).grad_fn is not None
    layer_hessians(model, CE, x.cuda(), y.cuda(), method="exact")
