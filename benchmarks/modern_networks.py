"""The networks people train, each with a batch: the rows of `benchmarks.modern`.

Networks are torchvision's, this project's, or built of torch's own layers, with their default
initialization. Images, words: samples that come with the packages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from benchmarks.rows import Problem, mlp
from hessinit_book.data import load
from hessinit_book.networks.gpt import Gpt
from hessinit_book.randomness import generator
from hessinit_book.records.records import DatasetInfo
from hessinit_book.word2vec.corpora import load_corpus

PIXELS, VOCABULARY, CONTEXT = 64, 1000, 64


@dataclass(frozen=True)
class Network:
    """One row: a network, and its batch.

    Attributes:
        title: as readers see it.
        make: makes it, from the global random stream.
        batch: gives inputs, labels, and where they are from.
        size: number of samples.
        smooth: whether its Hessian is more than Gauss-Newton.
        loss: softmax cross-entropy, mean.
    """

    title: str
    make: Callable[[], nn.Module]
    batch: Callable[[int], tuple[Tensor, Tensor, DatasetInfo]]
    size: int
    smooth: bool = True
    loss: Callable[[], nn.Module] = nn.CrossEntropyLoss

    def problem(self) -> Problem:
        """Draw the weights and take the batch."""
        inputs, labels, dataset = self.batch(self.size)
        with torch.random.fork_rng(devices=[]):  # initializations draw from the global stream
            torch.manual_seed(0)
            model = self.make()
        calibrate(model, inputs)
        return Problem(model, self.loss(), inputs, labels, self.smooth, dataset)


class Rows(nn.Module):
    """An LSTM that reads an image row by row, and a layer on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(28, 256, 2, batch_first=True), nn.Linear(256, 10)

    def forward(self, rows: Tensor) -> Tensor:
        """Map (B, 28, 28) to logits (B, 10)."""
        return self.head(self.cells(rows)[0][:, -1])


class TokenLoss(nn.CrossEntropyLoss):
    """Cross-entropy of logits (B, T, V) and tokens (B, T), mean over all tokens."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Flatten and average."""
        return super().forward(logits.flatten(0, -2), targets.flatten())


def calibrate(model: nn.Module, inputs: Tensor) -> None:
    """Set running statistics to the batch's and use them: each sample is then on its own.

    As they start, EfficientNet's outputs vanish in evaluation mode. Without batch
    normalization nothing changes.
    """
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    usual = [module.momentum for module in norms]
    for module in norms:
        module.momentum = None
        module.reset_running_stats()
        module.train()
    with torch.no_grad():
        model(inputs)
    model.train(not norms)  # in evaluation mode, attention has kernels without derivatives
    for module, momentum in zip(norms, usual, strict=True):
        module.momentum = momentum


def vision_transformer() -> nn.Module:
    """Make ViT-tiny: 12 layers of width 192, patches of 8 x 8."""
    model = torchvision.models.VisionTransformer(PIXELS, 8, 12, 3, 192, 768, num_classes=10)
    # torchvision starts with a head of zeros: nothing below it would have any curvature.
    nn.init.normal_(model.heads[0].weight, std=192**-0.5)  # pyright: ignore[reportArgumentType]
    return model


def pictures(size: int) -> tuple[Tensor, Tensor, DatasetInfo]:
    """Take images of the CIFAR-10 sample, enlarged."""
    data = load("cifar10", sample=True)
    images, labels = (tensor[:size] for tensor in data.tensors("train"))
    return F.interpolate(images, (PIXELS, PIXELS), mode="bilinear"), labels, data.info


def digits(size: int, start: int = 1) -> tuple[Tensor, Tensor, DatasetInfo]:
    """Take images of the MNIST sample, without channels, flattened from an axis on."""
    data = load("mnist", sample=True)
    images, labels = (tensor[:size] for tensor in data.tensors("train"))
    return images[:, 0].flatten(start), labels, data.info


def text(size: int) -> tuple[Tensor, Tensor, DatasetInfo]:
    """Take words of Wikipedia; the rarer ones share a token."""
    corpus = load_corpus("sample", held_out=0.01, tokens=50_000)
    common = [word for word, _ in Counter(corpus.train.tolist()).most_common(VOCABULARY - 1)]
    token = torch.full((len(corpus.words),), VOCABULARY - 1)
    token[torch.tensor(common)] = torch.arange(VOCABULARY - 1)
    taken = token[torch.from_numpy(corpus.train[: size * (CONTEXT + 1)]).long()]
    rows = taken.view(size, CONTEXT + 1)
    return rows[:, :-1], rows[:, 1:], corpus.info


def gpt() -> nn.Module:
    """Make four blocks of width 128."""
    return Gpt(VOCABULARY, CONTEXT, 128, 4, 4, generator(0, "weights"))


NETWORKS = {
    "mlp": Network(
        *("784-512-512-10", partial(mlp, 784, 512, 512, 10), digits, 1024), smooth=False
    ),
    "gpt": Network("GPT, 4 layers of width 128", gpt, text, 16, loss=TokenLoss),
    "lstm": Network("LSTM, 2 layers of width 256", Rows, partial(digits, start=2), 32),
    "vit": Network("ViT-tiny", vision_transformer, pictures, 32),
    "resnet18": Network(
        *("ResNet-18", partial(torchvision.models.resnet18, num_classes=10), pictures, 32),
        smooth=False,
    ),
    "efficientnet": Network(
        *("EfficientNet-B0", partial(torchvision.models.efficientnet_b0, num_classes=10)),
        *(pictures, 32),
    ),
}
