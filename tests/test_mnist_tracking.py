"""The experiment: repeatable, the same for all variants but in scale, and hard to crash."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hessinit_book.chapters.mnist_tracking import figures
from hessinit_book.chapters.mnist_tracking import run as mnist_tracking
from hessinit_book.chapters.mnist_tracking.landing import landing
from hessinit_book.chapters.mnist_tracking.landing import main as landing_main
from hessinit_book.chapters.mnist_tracking.run import (
    MnistTrackingParameters,
    make_network,
    variants,
)
from hessinit_book.data import load
from hessinit_book.drawing.style import band, data_label
from hessinit_book.errors import ParameterError
from hessinit_book.randomness import generator
from hessinit_book.records import records
from hessinit_book.records.records import Record
from hessinit_book.training.batches import batch_indices
from hessinit_lib import layer_hessians

NAMES = ["std_1e-5", "std_1e-2", "std_1e+0", "he", "glorot"]
STARTS = [1e-5, 1e-2, 1.0, "he", "glorot"]


def run(folder: Path, **given: Any) -> list[Record]:
    tiny = {"profile": "smoke", "steps": 12, "every": 5, "device": "cpu"}
    parameters = MnistTrackingParameters.check(**{**tiny, "results_dir": str(folder), **given})
    return mnist_tracking.run(parameters)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Records of two seeds."""
    return run(tmp_path_factory.mktemp("found"), seeds=[0, 1])


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Records of steps that are far too long."""
    return run(tmp_path_factory.mktemp("diverged"), seeds=[0, 1], learning_rate=1e6)


@pytest.fixture(scope="module")
def overflown(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Records of a start that is not finite before the first step."""
    return run(tmp_path_factory.mktemp("overflown"), seeds=[0, 1], deviations=[1e30])


# The run


def test_same_parameters_give_the_same_values(found: list[Record], tmp_path: Path) -> None:
    torch.manual_seed(99)  # must not matter
    torch.rand(5)
    again = run(tmp_path, seeds=[1, 0])
    assert [record.values for record in again] == [found[1].values, found[0].values]
    assert found[0].values != found[1].values


def test_global_random_state_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    run(tmp_path, steps=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_record_has_the_variants_and_all_curves(found: list[Record]) -> None:
    for record in found:
        assert list(record.values) == NAMES
        assert [values["start"] for values in record.values.values()] == STARTS
        for values in record.values.values():
            tracked = values["tracked"]
            assert tracked["steps"] == [0, 5, 10, 12]
            assert len(tracked["probe_loss"]) == 4
            for layer in tracked["layers"].values():
                assert {key: len(row) for key, row in layer.items()} == dict.fromkeys(
                    ("frobenius", "spectral", "residual_ratio", "gradient"), 4
                )
                assert layer["residual_ratio"] == [0.0] * 4  # ReLU
            assert values["loss_curve"]["step"] == [0, 10]
            assert values["diverged"] is False


def test_last_step_is_tracked_once(tmp_path: Path) -> None:
    (record,) = run(tmp_path, steps=10, every=5)
    assert record.values["he"]["tracked"]["steps"] == [0, 5, 10]
    assert len(record.values["he"]["tracked"]["probe_loss"]) == 3


@pytest.mark.parametrize(("name", "start"), list(zip(NAMES, STARTS, strict=True)))
def test_norms_before_the_first_step(name: str, start: Any, found: list[Record]) -> None:
    """Computed once more from the pieces, the gradient by autograd's backward."""
    data = load("mnist", sample=True)
    images, labels = data.tensors("train", torch.device("cpu"))
    chosen = torch.randperm(2000, generator=generator(1, "probe"))[:32]
    x, y = images.flatten(1)[chosen], labels[chosen]
    model = make_network(start, generator(1, "weights"))
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    report = layer_hessians(model, F.cross_entropy, x, y)
    tracked = found[1].values[name]["tracked"]
    assert tracked["probe_loss"][0] == pytest.approx(loss.item(), rel=1e-5)
    for index, layer in ((0, "layer_1"), (2, "layer_2"), (4, "layer_3")):
        weight = model[index].weight
        row = tracked["layers"][layer]
        assert row["gradient"][0] == pytest.approx(weight.grad.norm().item(), rel=1e-5)
        assert row["frobenius"][0] == pytest.approx(report[f"{index}.weight"].frobenius, rel=1e-5)
        assert row["spectral"][0] == pytest.approx(report[f"{index}.weight"].spectral, rel=1e-5)


def test_training_is_plain_sgd(found: list[Record]) -> None:
    """The loop written down once more, without tracking."""
    data = load("mnist", sample=True)
    images, labels = data.tensors("train", torch.device("cpu"))
    model = make_network("he", generator(0, "weights"))
    losses = []
    for batch in batch_indices(2000, 32, 12, generator(0, "batches")):
        loss = F.cross_entropy(model(images[batch].flatten(1)), labels[batch])
        losses.append(loss.item())
        for p, g in zip(
            model.parameters(), torch.autograd.grad(loss, [*model.parameters()]), strict=True
        ):
            p.data -= 0.01 * g
    test_images, test_labels = data.tensors("test", torch.device("cpu"))
    right = model(test_images.flatten(1)).argmax(1) == test_labels
    values = found[0].values["he"]
    assert values["first_loss"] == pytest.approx(losses[0], rel=1e-5)
    assert values["final_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert values["final_loss_spread"] == pytest.approx(np.std(losses), rel=1e-4)
    assert values["largest_loss"] == pytest.approx(max(losses), rel=1e-5)
    assert values["loss_curve"]["mean"] == pytest.approx(
        [np.mean(losses[:10]), np.mean(losses[10:])], rel=1e-5
    )
    assert values["loss_curve"]["min"][0] == pytest.approx(min(losses[:10]), rel=1e-5)
    assert values["test_accuracy"] == pytest.approx(right.double().mean().item(), abs=0.004)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [([3.0] * 12 + [1.0] * 20, 20), ([1.0] * 20, 10), ([3.0] * 20, math.inf), ([1.0] * 9, 10)],
)
def test_steps_to_level(curve: list[float], expected: float) -> None:
    """The first ten steps in a row with a mean below the level 1.5 end there."""
    if len(curve) < 10:
        expected = math.inf
    assert mnist_tracking._steps_to_level(np.array(curve), 1.5) == expected


@pytest.mark.parametrize("name", ["batch_size", "probe_size"])
def test_batch_larger_than_the_data_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=f"{name}: got 2001, expected at most 2000"):
        run(tmp_path, **{name: 2001})
    assert list(tmp_path.iterdir()) == []


# Variants


def test_variants_differ_in_scale_alone() -> None:
    networks = {start: make_network(start, generator(4, "weights")) for start in STARTS}
    he = networks["he"]
    for start, network in networks.items():
        for index, (fan_in, fan_out) in ((0, (784, 30)), (2, (30, 30)), (4, (30, 10))):
            std = math.sqrt(2 / (fan_in + fan_out) if start == "glorot" else 2 / fan_in)
            if index == 0 and isinstance(start, float):
                std = start
            factor = std / math.sqrt(2 / fan_in)
            torch.testing.assert_close(network[index].weight, factor * he[index].weight)
            assert not network[index].bias.any()
    assert he[0].weight.std().item() == pytest.approx(math.sqrt(2 / 784), rel=0.03)


def test_variants_share_batches_and_probe(tmp_path: Path) -> None:
    """A start like He's under another name: every number is He's."""
    (record,) = run(tmp_path, deviations=[math.sqrt(2 / 784)])
    as_he, he, _ = record.values.values()
    assert {**as_he, "start": "he"} == he


def test_names_of_variants_have_no_dots() -> None:
    parameters = MnistTrackingParameters.check(deviations=[0.015, 2, 1e-10])
    assert list(variants(parameters)) == ["std_1_5e-2", "std_2e+0", "std_1e-10", "he", "glorot"]


# Batches


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(0, 99))
def test_epochs_without_repeats(size: int, batch_size: int, steps: int, seed: int) -> None:
    shuffle = torch.Generator().manual_seed(seed)
    if batch_size > size:
        with pytest.raises(ValueError, match=f"batch_size {batch_size}: expected at most {size}"):
            batch_indices(size, batch_size, steps, shuffle)
        return
    batches = batch_indices(size, batch_size, steps, shuffle)
    assert batches.shape == (steps, batch_size)
    assert batches.min() >= 0
    assert batches.max() < size
    for epoch in batches.split(size // batch_size):
        assert len(epoch.unique()) == epoch.numel()


def test_epochs_are_shuffled_afresh() -> None:
    first, second = batch_indices(50, 10, 10, torch.Generator().manual_seed(0)).split(5)
    assert first.flatten().tolist() != second.flatten().tolist()
    assert first.flatten().sort().values.tolist() == list(range(50))


# Divergence


def test_divergence_is_an_outcome(diverged: list[Record]) -> None:
    values = diverged[0].values["he"]
    assert values["diverged"] is True
    assert math.isfinite(values["first_loss"])
    assert math.isnan(values["final_loss"])
    assert math.isnan(values["test_loss"])
    assert values["steps_to_level"] == math.inf
    for layer in values["tracked"]["layers"].values():
        assert math.isfinite(layer["frobenius"][0])
        assert math.isnan(layer["frobenius"][-1])
        assert math.isnan(layer["gradient"][-1])


def test_divergence_survives_the_file(diverged: list[Record], tmp_path: Path) -> None:
    path = records.write(diverged[0], tmp_path / "seed-0.json")
    again = records.read(path).values["he"]
    assert math.isnan(again["final_loss"])
    assert again["steps_to_level"] == math.inf
    assert repr(again) == repr(diverged[0].values["he"])


def test_overflow_before_the_first_step(overflown: list[Record]) -> None:
    values = overflown[0].values
    assert values["std_1e+30"]["diverged"] is True
    assert values["he"]["diverged"] is False


# Figures


@pytest.mark.parametrize("which", ["found", "diverged", "overflown"])
@pytest.mark.parametrize("draw", [figures.loss_and_norms, figures.norms_at_start, landing])
def test_figures(draw: Any, which: str, request: pytest.FixtureRequest) -> None:
    """Any warning is an error, too."""
    drawn: Sequence[Record] = request.getfixturevalue(which)
    figure = draw(drawn)
    figure.savefig(io.BytesIO(), format="svg")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"He", "He (diverged)"} & set(labels)  # no variant is passed over
    assert data_label(drawn) in [text.get_text() for text in figure.texts]
    assert plt.get_fignums() == []


def test_figures_show_the_numbers(found: list[Record]) -> None:
    figure = figures.loss_and_norms(found)
    layer_1 = figure.axes[1]
    shown = layer_1.lines[3].get_ydata()  # the median over two seeds, of He
    rows = [record.values["he"]["tracked"]["layers"]["layer_1"]["frobenius"] for record in found]
    assert layer_1.lines[3].get_xdata().tolist() == [0, 5, 10, 12]
    np.testing.assert_allclose(shown, np.mean(rows, 0))


def test_band_leaves_out_what_is_not_finite() -> None:
    figure, axes = plt.subplots()
    rows = np.array([[1.0, math.inf, math.nan], [3.0, 2.0, -math.inf]])
    band(axes, [0, 1, 2], rows, 0, "some")
    band(axes, [0, 1, 2], np.full((2, 3), math.nan), 1, "none")
    band(axes, [0, 1, 2], np.full((2, 3), math.nan), 2)
    some, none = axes.lines
    assert (some.get_xdata().tolist(), some.get_ydata().tolist()) == ([0, 1], [2.0, 2.0])
    assert (len(none.get_xdata()), none.get_label()) == (0, "none (diverged)")
    plt.close(figure)


def test_data_label(found: list[Record]) -> None:
    assert data_label(found).startswith("MNIST (SAMPLE, 2,000 training images) · 2 seeds · cpu: ")
    full = found[0].dataset.model_copy(update={"kind": "full", "train_size": 60000})
    record = found[0].model_copy(update={"dataset": full, "device": "cuda: NVIDIA X, 80 GB"})
    assert data_label([record]) == "MNIST (full, 60,000 training images) · 1 seed · cuda: NVIDIA X"


@pytest.mark.parametrize("which", ["found", "diverged", "overflown"])
def test_summary(which: str, request: pytest.FixtureRequest) -> None:
    shown: Sequence[Record] = request.getfixturevalue(which)
    table = figures.summary(shown)
    assert len(table) == len(shown[0].values)
    expected = np.median([record.values["he"]["final_loss"] for record in shown])
    np.testing.assert_allclose(table.loc["He", "final loss [nat]"], expected, atol=1e-3)
    table.to_html()


def test_landing_page_is_drawn_from_files(found: list[Record], tmp_path: Path) -> None:
    paths = [
        str(records.write(r, records.record_path(tmp_path, r.profile, r.experiment, r.seed)))
        for r in found
    ]
    out = [tmp_path / "new" / name for name in ("a.svg", "b.svg")]
    landing_main([str(out[0]), *paths])
    landing_main([str(out[1]), *reversed(paths)])
    assert b"<svg" in out[0].read_bytes()
    assert out[0].read_bytes() == out[1].read_bytes()
    with pytest.raises(SystemExit, match="no records of mnist_tracking"):
        landing_main([str(out[0])])
