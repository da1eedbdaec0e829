"""Training: the batches are what they should be, and what is interrupted goes on the same."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hessinit_book.errors import DataError
from hessinit_book.networks import NETWORKS, build
from hessinit_book.training.images import PAD, Images, Order, Recipe, evaluate, train


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(size: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.randint(256, (size, 3, 32, 32), generator=seeded()).to(torch.uint8)
    return pixels, torch.randint(10, (size,), generator=seeded(1))


def linear() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with torch.no_grad():
        model[1].weight.normal_(0, 0.01, generator=seeded(2))
        model[1].bias.zero_()
    return model


def test_batch_without_stream_is_the_images() -> None:
    pixels, labels = images()
    chosen = torch.tensor([3, 0, 17])
    batch = Images(pixels, labels).batch(chosen)
    assert torch.equal(batch, (pixels[chosen].float() - 127.5) / 127.5)
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_augmented_batch_is_shifted_and_mirrored_images() -> None:
    pixels, labels = images()
    chosen = torch.arange(40)
    batch = Images(pixels, labels).batch(chosen, seeded(5))
    padded = F.pad(pixels, (PAD,) * 4)
    seen = set()
    for image, found in zip(padded, batch, strict=True):
        views = {
            (dy, dx, mirrored): view.flip(-1) if mirrored else view
            for dy in range(2 * PAD + 1)
            for dx in range(2 * PAD + 1)
            for view in [image[:, dy : dy + 32, dx : dx + 32]]
            for mirrored in (False, True)
        }
        matching = [k for k, v in views.items() if torch.equal((v.float() - 127.5) / 127.5, found)]
        assert len(matching) == 1
        seen.add(matching[0])
    assert len(seen) > 20
    assert {mirrored for *_, mirrored in seen} == {False, True}


def test_an_epoch_has_no_image_twice() -> None:
    order = Order(50, 8, seeded())
    epoch = torch.cat([order.next() for _ in range(6)])
    assert len(set(epoch.tolist())) == 48


def test_training_is_plain_sgd() -> None:
    pixels, labels = images()
    data, model = Images(pixels, labels), linear()
    recipe = Recipe(6, 8, 0.1, momentum=0.9, augment=False)
    found = train(model, data, recipe, seeded(3)).losses

    other, order = linear(), Order(40, 8, seeded(3))
    optimizer = torch.optim.SGD(other.parameters(), 0.1, 0.9, nesterov=True)
    for loss in found:
        chosen = order.next()
        inputs = (pixels[chosen].float() - 127.5) / 127.5
        expected = F.cross_entropy(other(inputs), labels[chosen])
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_one_cycle(decay: str) -> None:
    recipe = Recipe(20, 8, 0.1, schedule="one_cycle", warm_up=0.25, decay=decay)  # pyright: ignore
    rates = [recipe.rate(step) for step in range(20)]
    assert rates[:6] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])
    assert all(a > b > 0 for a, b in pairwise(rates[5:]))
    half = {"linear": 1 - 7 / 15, "cosine": (1 + math.cos(math.pi * 7 / 15)) / 2}[decay]
    assert rates[12] == pytest.approx(0.1 * half)
    assert {Recipe(20, 8, 0.1).rate(step) for step in range(20)} == {0.1}
    whole = Recipe(3, 8, 0.3, schedule="one_cycle", warm_up=1.0)
    assert [whole.rate(step) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_each_step_takes_its_own_rate() -> None:
    pixels, labels = images()
    recipe = Recipe(5, 8, 0.1, momentum=0.0, augment=False, schedule="one_cycle", warm_up=0.4)
    model, other, order = linear(), linear(), Order(40, 8, seeded(3))
    train(model, Images(pixels, labels), recipe, seeded(3))
    for step in range(5):
        chosen = order.next()
        loss = F.cross_entropy(other((pixels[chosen].float() - 127.5) / 127.5), labels[chosen])
        with torch.no_grad():
            for weight, slope in zip(
                other.parameters(), torch.autograd.grad(loss, [*other.parameters()]), strict=True
            ):
                weight -= recipe.rate(step) * slope
    for ours, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
def test_interrupted_training_goes_on_as_if_it_had_not_been(schedule, tmp_path: Path) -> None:
    data = Images(*images())
    recipe, looks = Recipe(9, 8, 0.01, schedule=schedule), iter(range(100))

    def run(model: nn.Module, stop_at: int | None = None, checkpoint: Path | None = None):
        def observe() -> dict[str, int]:
            if stop_at is not None and next(looks) == stop_at:
                raise KeyboardInterrupt
            return {"seen": 1}

        return train(
            model, data, recipe, seeded(3), observe=observe, every=3, checkpoint=checkpoint
        )

    whole_model, model = linear(), linear()
    whole = run(whole_model)
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        run(model, stop_at=2, checkpoint=path)
    again = run(linear(), checkpoint=path)
    assert torch.equal(again.losses, whole.losses)
    assert again.observations == whole.observations
    assert list(again.observations) == [0, 3, 6, 9]
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_of_another_device_is_refused(tmp_path: Path) -> None:
    path, data, recipe = tmp_path / "checkpoint.pt", Images(*images()), Recipe(4, 8, 0.01)
    train(linear(), data, recipe, seeded(), every=2, checkpoint=path)
    state = torch.load(path, weights_only=True)
    assert state["device"] == "cpu"
    torch.save({**state, "device": "cuda"}, path)
    with pytest.raises(DataError, match=r"a checkpoint of cuda, expected one of cpu"):
        train(linear(), data, recipe, seeded(), checkpoint=path)


def test_divergence_is_an_outcome() -> None:
    data = Images(*images())
    progress = train(linear(), data, Recipe(30, 8, 1e38, augment=False), seeded(3))
    assert progress.diverged
    assert progress.done < 30
    assert math.isnan(progress.losses[-1].item())


def test_too_large_a_batch() -> None:
    with pytest.raises(ValueError, match="batch_size=64: expected at most 40"):
        train(linear(), Images(*images()), Recipe(1, 64), seeded())


def test_training_leaves_the_global_stream_alone() -> None:
    before = torch.get_rng_state()
    model = build(NETWORKS["cnn4"], "he", seeded())
    train(model, Images(*images()), Recipe(2, 8), seeded())
    assert torch.equal(before, torch.get_rng_state())


def test_bfloat16_stays_near_float32() -> None:
    data = Images(*images())
    losses = [
        train(build(NETWORKS["cnn4"], "he", seeded()), data, recipe, seeded()).losses
        for recipe in (Recipe(3, 8, 0.01), Recipe(3, 8, 0.01, precision="bfloat16"))
    ]
    assert not torch.equal(*losses)
    torch.testing.assert_close(*losses, rtol=0.02, atol=0)


def test_evaluation() -> None:
    pixels, labels = images()
    model = linear().train()
    loss, accuracy = evaluate(model, Images(pixels, labels), batch_size=16)
    logits = model((pixels.float() - 127.5) / 127.5)
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == (logits.argmax(1) == labels).double().mean().item()
    assert model.training
