r"""How far the linearization is from the Hessian in networks as they are trained today.

$\|G_k\|_F / \|H_k\|_F$ and $\|R_k\|_F / \|H_k\|_F$ for every layer of two small GPTs, an LSTM, a
vision transformer and an EfficientNet, at the start and after some hundred steps of training.
All norms are estimates with a standard error, from `hessinit_lib.layer_hessians`.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from tqdm.auto import tqdm

from hessinit_book.chapters.modern_linearization.checks import checks
from hessinit_book.chapters.modern_linearization.networks import (
    Name,
    fit_statistics,
    make_network,
)
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import Blocks, CorpusName, Count, Several, Units
from hessinit_book.randomness import generator
from hessinit_book.records.records import DatasetInfo, Record
from hessinit_book.records.runs import Parts, clear_parts, run_seeds
from hessinit_book.statistics.rounding import all_rounded, rounded
from hessinit_book.training.image_data import load_images
from hessinit_book.word2vec.corpora import Corpus, load_corpus
from hessinit_lib.hessians.layers import layer_hessians

MOMENTS = ("start", "trained")
CLOSE = 1.25  # norms that differ by no larger factor are called close
RATES = {"lstm": 3e-3, "efficientnet": 3e-3}  # of AdamW; 1e-3 for the transformers
TOLERANCE = 0.1  # relative standard error of a norm
LAST = 20  # steps over which the loss after training is averaged
READERS = ("gpt", "gpt_tied", "lstm")  # networks of letters; the others are of images
WORDS = 300_000  # of the text that are read

Batch = tuple[Tensor, Tensor]


class ModernLinearizationParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    Attributes:
        networks: which to measure.
        corpus: the text, see `hessinit_book.word2vec.corpora.load_corpus`.
        width: of the networks.
        depth: blocks of the transformers.
        context: letters of a text.
        batch_sizes: texts or images of the batches that norms are measured on.
        steps: of training.
        batch_size: texts or images of a training step.
    """

    EXPERIMENT: ClassVar[str] = "modern_linearization"
    IMAGES: ClassVar[tuple[str, ...]] = ("cifar10",)
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {
            "seeds": (0,),
            "networks": ("gpt", "lstm"),
            "width": 16,
            "depth": 1,
            "context": 8,
            "batch_sizes": (2, 4),
            "steps": 3,
        },
        "quick": {"seeds": (0,), "depth": 1, "batch_sizes": (8,), "steps": 60},
        "paper": {"seeds": (0, 1, 2), "corpus": "file:wiki8"},
    }

    networks: Annotated[tuple[Name, ...], Field(min_length=1)] = get_args(Name)
    corpus: CorpusName = "sample"
    width: Annotated[Units, Field(multiple_of=16)] = 64
    depth: Blocks = 2
    context: Annotated[int, Field(ge=2, le=1000)] = 32
    batch_sizes: Annotated[tuple[Several, ...], Field(min_length=1)] = (8, 64)
    steps: Count = 400
    batch_size: Several = 32


def run(parameters: ModernLinearizationParameters) -> list[Record]:
    """Measure every network for every seed and give the records.

    A network that is done is kept, see `Parts`: an interrupted run goes on with the next one.

    Raises:
        DataError: a data set cannot be had.
        ParameterError: a batch larger than the training set, or no corpus of that name.
        RecordError: a record that is in the way is damaged.
    """
    images = load_images(parameters, "cifar10", "batch_size", "batch_sizes")
    corpus = load_corpus(parameters.corpus, held_out=0.01, data_dir=parameters.data_dir)
    text, info = letters(corpus), _together(images.info, corpus.info)

    def run_one(seed: int, device: torch.device, bar: tqdm) -> dict[str, Any]:
        pixels, labels = images.tensors("train", device)
        deviation, mean = torch.std_mean(pixels, (0, 2, 3), keepdim=True)
        pixels = (pixels - mean) / deviation
        parts, found, done = Parts(parameters, info, seed, device), {}, bar.n
        for number, name in enumerate(parameters.networks, start=1):

            def draw(size: int, stream: torch.Generator, name: str = name) -> Batch:
                if name in READERS:
                    return texts(text.to(device), size, parameters.context, stream)
                chosen = torch.randperm(len(pixels), generator=stream)[:size].to(device)
                return pixels[chosen], labels[chosen]

            def follow(name: Name = name, draw: Draw = draw) -> dict[str, Any]:
                return follow_network(parameters, name, seed, device, draw, bar)

            found[name] = parts.get(name, follow)
            bar.update(done + number * parameters.steps - bar.n)  # where it was read
        sizes = [f"b{size}" for size in parameters.batch_sizes]
        return {
            "checks": checks(seed, pixels[:2].cpu()),
            "overview": {
                moment: {size: overview(found.values(), moment, size) for size in sizes}
                for moment in MOMENTS
            },
            "networks": found,
        }

    ticks = len(parameters.networks) * parameters.steps
    records = run_seeds(parameters, info, run_one, ticks=ticks)
    clear_parts(parameters)
    return records


Draw = Callable[[int, torch.Generator], Batch]


def follow_network(
    parameters: ModernLinearizationParameters,
    name: Name,
    seed: int,
    device: torch.device,
    draw: Draw,
    bar: tqdm,
) -> dict[str, Any]:
    """Measure one network, train it, and measure it again.

    Batch normalization counts with its running statistics whenever norms are measured, so
    that samples do not mix.

    Args:
        parameters: of the experiment.
        name: of the network.
        seed: of weights and batches.
        device: where to compute.
        draw: gives a batch of some size.
        bar: updated once a step.
    """
    weights = generator(seed, f"{name} weights")
    model = make_network(name, parameters.width, parameters.depth, parameters.context, weights)
    model.to(device)
    fit_statistics(model, draw(max(parameters.batch_sizes), generator(seed, "statistics"))[0])
    batches = {
        f"b{size}": draw(size, generator(seed, f"batch of {size}"))
        for size in parameters.batch_sizes
    }
    found: dict[str, Any] = {
        "names": [key for key, weight in model.named_parameters() if weight.ndim > 1],
        "start": {size: measure(model, batch) for size, batch in batches.items()},
    }
    losses = train(model, parameters, RATES.get(name, 1e-3), draw, generator(seed, "steps"), bar)
    found["trained"] = {size: measure(model, batch) for size, batch in batches.items()}
    found["loss"] = {
        "first": rounded(losses[0], 4),
        "last": rounded(statistics.fmean(losses[-LAST:]), 4),
    }
    return found


def train(
    model: nn.Module,
    parameters: ModernLinearizationParameters,
    rate: float,
    draw: Draw,
    stream: torch.Generator,
    bar: tqdm,
) -> list[float]:
    """Train by AdamW; give the loss before each step."""
    model.train()
    descent = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    for _ in range(parameters.steps):
        inputs, targets = draw(parameters.batch_size, stream)
        loss = mean_loss(model(inputs), targets)
        descent.zero_grad()
        loss.backward()
        descent.step()
        losses.append(loss.item())
        bar.update()
    return losses


def measure(model: nn.Module, batch: Batch) -> dict[str, Any]:
    r"""Estimate what is kept and what is left out, in every layer.

    Returns:
        linearization: $\|G_k\|_F / \|H_k\|_F$, a list in the model's order.
        residual: $\|R_k\|_F / \|H_k\|_F$.
        stderr: relative standard error of $\|H_k\|_F$.
        median, smallest, close: of the linearization's ratios in all layers but the head, where
            it is 1: the last is the share of layers with a ratio of `CLOSE` or less, either way.
        residual_median: of the residual's ratios in the same layers.
    """
    report = layer_hessians(
        model.eval(),
        mean_loss,
        *batch,
        norms=("frobenius",),
        method="estimate",
        tolerance=TOLERANCE,
        budget=None,
    )
    layers = list(report.values())
    kept = [layer.linearization.frobenius / layer.frobenius for layer in layers]
    left_out = [layer.residual_ratio for layer in layers]
    curved = [i for i, layer in enumerate(layers) if layer.name != "head.weight"]
    return {
        "linearization": all_rounded(kept, 4),
        "residual": all_rounded(left_out, 4),
        "stderr": all_rounded((layer.stderr / layer.frobenius for layer in layers), 2),
        "residual_median": rounded(statistics.median(left_out[i] for i in curved), 4),
        **summed_up([kept[i] for i in curved]),
    }


def summed_up(ratios: Sequence[float]) -> dict[str, float]:
    """Give the median, the smallest, and the share of those that are close to 1.

    Example:
        >>> summed_up([0.5, 0.9, 1.1])
        {'median': 0.9, 'smallest': 0.5, 'close': 0.666667}
    """
    close = np.abs(np.log(ratios)) <= np.log(CLOSE)
    return {
        "median": rounded(statistics.median(ratios), 4),
        "smallest": rounded(min(ratios), 4),
        "close": rounded(float(close.mean())),
    }


def overview(networks: Any, moment: str, size: str) -> dict[str, float]:
    """Sum up the layers of all networks but their heads."""
    ratios = [
        ratio
        for found in networks
        for name, ratio in zip(found["names"], found[moment][size]["linearization"], strict=True)
        if name != "head.weight"
    ]
    return {"layers": len(ratios), **summed_up(ratios)}


def mean_loss(logits: Float[Tensor, "*b c"], targets: Int64[Tensor, "*b"]) -> Float[Tensor, ""]:
    """Average the cross-entropy over samples and positions."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def letters(corpus: Corpus) -> Int64[Tensor, " n"]:
    """Write the first words of a text in letters: 0 for a space, 1 for a; others are left out."""
    text = " ".join(corpus.words[i] for i in corpus.train[:WORDS]).encode("ascii", "ignore")
    codes = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    found = torch.where(codes == ord(" "), 0, codes - ord("a") + 1)
    return found[(found >= 0) & (found <= ord("z") - ord("a") + 1)]


def texts(text: Int64[Tensor, " n"], size: int, context: int, stream: torch.Generator) -> Batch:
    """Cut texts from random places: letters, and the letter that follows each."""
    places = torch.randint(len(text) - context, (size, 1), generator=stream)
    chosen = text[(places + torch.arange(context + 1)).to(text.device)]
    return chosen[:, :-1], chosen[:, 1:]


def _together(*parts: DatasetInfo) -> DatasetInfo:
    return DatasetInfo(
        name=", ".join(part.name for part in parts),
        kind="full" if all(part.kind == "full" for part in parts) else "sample",
        train_size=sum(part.train_size for part in parts),
        test_size=sum(part.test_size for part in parts),
        sha256=hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest(),
    )
