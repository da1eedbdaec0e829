"""Training on a GPU: no wait in a step, checkpoints of its own, and skip-gram that stays there."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hessinit_book.errors import DataError
from hessinit_book.randomness import generator
from hessinit_book.records.records import DatasetInfo
from hessinit_book.training.images import CHECK, Images, Progress, Recipe, evaluate, train
from hessinit_book.word2vec import by_torch
from hessinit_book.word2vec.corpora import Corpus
from hessinit_book.word2vec.held_out import HeldOutPairs
from hessinit_book.word2vec.initial_vectors import Start
from hessinit_book.word2vec.recipe import Recipe as SkipGram
from hessinit_book.word2vec.vocabulary import Vocabulary


def images(device: str, size: int = 40) -> Images:
    drawn = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (size, 3, 32, 32), generator=drawn).to(torch.uint8)
    return Images(pixels, torch.randint(10, (size,), generator=drawn), device)


def linear(device: str) -> nn.Module:
    layer = nn.Linear(3 * 32 * 32, 10)
    with torch.no_grad():
        layer.weight.normal_(0, 0.01, generator=torch.Generator().manual_seed(2))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer).to(device)


def trained(steps: int, batches: str = "cuda", data: str = "cuda", **options: Any) -> Progress:
    stream = generator(0, "batches", batches)
    recipe = Recipe(steps, 8, 0.01, schedule="one_cycle")
    return train(linear(data), images(data), recipe, stream, **options)


def test_a_step_waits_for_nothing(gpu: Any) -> None:
    """The host looks at the losses each `CHECK` steps, and at nothing else."""
    progress = trained(3 * CHECK)
    assert progress.losses.device.type == "cuda"
    assert progress.losses.isfinite().all()
    if gpu is None:
        return
    gpu.clear()
    trained(CHECK)
    once = gpu.waits.total()
    gpu.clear()
    trained(3 * CHECK)
    assert gpu.waits.total() - once == 2


def test_evaluation_waits_for_its_results_only(gpu: Any) -> None:
    found = evaluate(linear("cuda"), images("cuda"), batch_size=8)
    assert found == pytest.approx(evaluate(linear("cpu"), images("cpu"), batch_size=8), rel=1e-5)
    if gpu is not None:
        gpu.clear()
        evaluate(linear("cuda"), images("cuda"), batch_size=8)
        assert gpu.waits.total() == 2


@pytest.mark.parametrize("batches", ["cpu", "cuda"])
def test_training_on_a_gpu_goes_on_there(batches: str, tmp_path: Path) -> None:
    path, looks = tmp_path / "checkpoint.pt", iter(range(9))

    def observe() -> dict[str, Any]:
        if next(looks) == 2:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        trained(8, batches, observe=observe, every=3, checkpoint=path)
    whole = trained(8, batches)
    again = trained(8, batches, every=3, checkpoint=path)
    assert 0 < torch.load(path, weights_only=True, map_location="cpu")["progress"]["done"] < 8
    torch.testing.assert_close(again.losses, whole.losses, rtol=1e-4, atol=0)
    for place in (
        {"data": "cpu", "batches": "cpu"},
        {"batches": {"cpu": "cuda", "cuda": "cpu"}[batches]},
    ):
        with pytest.raises(
            DataError, match=r"a checkpoint of cuda.*, expected one of c.*; delete it"
        ):
            trained(8, **place, checkpoint=path)


# Word2Vec


def text() -> tuple[Corpus, Vocabulary]:
    drawn = (np.random.default_rng(0).zipf(1.4, 4000) % 40).astype(np.int32)
    digest = hashlib.sha256(drawn.tobytes()).hexdigest()
    info = DatasetInfo(name="drawn", kind="sample", train_size=3800, test_size=200, sha256=digest)
    corpus = Corpus([f"w{i}" for i in range(40)], drawn[:-200], drawn[-200:], info)
    return corpus, Vocabulary.of(corpus, 1)


def skip_gram(device: str, batch: int = 500, pieces: int = 2) -> list[float]:
    """Train, and give the held-out loss before the first piece and after each."""
    corpus, vocabulary = text()
    judge = HeldOutPairs(
        corpus, vocabulary, pairs=100, window=3, sample=1e-3, negatives=3, device=device
    )
    recipe = SkipGram(4, 3, 3, 1e-3, 0.05, 2, pieces)
    losses: list[float] = []

    def look(done: int, inputs: Tensor, outputs: Tensor) -> None:
        assert inputs.device.type == outputs.device.type == device
        losses.append(judge.loss(inputs, outputs))

    start, place = Start("normal", 0.3, 0.3), torch.device(device)
    options: dict[str, Any] = {"batch_size": batch, "device": place, "most": 32}
    by_torch.train(corpus, vocabulary, recipe, start, 0, look, **options)
    return losses


def test_skip_gram_learns_on_a_gpu_what_it_learns_on_the_cpu() -> None:
    ours, expected = skip_gram("cuda"), skip_gram("cpu")
    assert ours[0] == pytest.approx(expected[0], rel=1e-5)
    assert expected[-1] < expected[0] - 0.1
    # A GPU draws other pairs.
    assert ours[-1] == pytest.approx(expected[-1], abs=0.1 * (expected[0] - expected[-1]))


def test_a_step_of_skip_gram_waits_for_nothing(gpu: Any) -> None:
    """The host waits a few times a piece, when its pairs are drawn, however many steps it has."""
    waits, launches = [], []
    for batch in (4000, 500):
        skip_gram("cuda", batch)
        if gpu is None:
            return
        gpu.clear()
        skip_gram("cuda", batch)
        waits.append(gpu.waits.total())
        launches.append(gpu.launches.total())
    assert waits[0] == waits[1] <= 2 * 4 + 3  # the pieces, the looks
    assert launches[1] > 2 * launches[0]
