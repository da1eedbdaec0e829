"""Small networks of the kinds that are trained today; the last layer of each is `head`."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hessinit_book.networks.gpt import Gpt

Name = Literal["gpt", "gpt_tied", "lstm", "vit", "efficientnet"]

LETTERS = 27  # space, a to z
CLASSES = 10
_HEADS = 4
_PATCH, _SIDE = 8, 32  # pixels
_STD = 0.02  # of the weights of the vision transformer


class Lstm(nn.Module):
    """Two LSTM layers that read letters and predict the next one.

    Args:
        width: of embedding and states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(LETTERS, width)
        self.lstm = nn.LSTM(width, width, 2, batch_first=True)
        self.head = nn.Linear(width, LETTERS)

    def forward(self, letters: Int64[Tensor, "b t"]) -> Float[Tensor, "b t v"]:
        """Give the logits of the letter that follows each position."""
        return self.head(self.lstm(self.tokens(letters))[0])


class Vit(nn.Module):
    """A vision transformer: patches, pre-normalized blocks with GELU, mean over positions.

    Args:
        width: of the residual stream.
        depth: number of blocks.

    Source: Dosovitskiy and others, "An image is worth 16x16 words" (2021).
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, _PATCH, _PATCH)
        self.positions = nn.Parameter(torch.empty(1, (_SIDE // _PATCH) ** 2, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, _HEADS, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.trunc_normal_(weight, std=_STD)

    def forward(self, images: Float[Tensor, "b 3 32 32"]) -> Float[Tensor, "b c"]:
        """Give the logits of the classes."""
        z = self.patches(images).flatten(2).mT + self.positions
        for block in self.blocks:
            z = block(z)
        return self.head(self.norm(z).mean(1))


def _convolution(before: int, after: int, size: int, **options: int) -> nn.Sequential:
    """Chain a convolution, batch normalization and SiLU."""
    convolution = nn.Conv2d(
        before,
        after,
        size,
        padding=size // 2,
        bias=False,
        **options,  # pyright: ignore[reportArgumentType]
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.SiLU())


class Gate(nn.Module):
    """Squeeze-and-excitation: maps times a gate of their means.

    Args:
        channels: of the maps.
        inner: units between.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, inner, 1)
        self.excite = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Scale each map."""
        means = x.mean((2, 3), keepdim=True)
        return x * self.excite(nn.functional.silu(self.squeeze(means))).sigmoid()


class Bottleneck(nn.Module):
    """EfficientNet's block: expand, depthwise convolution, gate, project; a skip if it fits.

    Args:
        before: channels that come in.
        after: channels that go out.
        stride: of the depthwise convolution.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        inner = 4 * before
        self.skip = before == after and stride == 1
        self.expand = _convolution(before, inner, 1)
        self.depthwise = _convolution(inner, inner, 3, stride=stride, groups=inner)
        self.gate = Gate(inner, before // 4)
        self.project = nn.Sequential(nn.Conv2d(inner, after, 1, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Pass the maps through the block."""
        z = self.project(self.gate(self.depthwise(self.expand(x))))
        return x + z if self.skip else z


class EfficientNet(nn.Module):
    """A stem, three blocks and a head of EfficientNet, for images of 32 x 32.

    Args:
        width: channels before the head; a quarter and three eighths of it in the blocks.

    Source: Tan and Le, "EfficientNet" (2019), made small.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        few, more = width // 4, 3 * width // 8
        self.stem = _convolution(3, few, 3, stride=2)
        self.blocks = nn.Sequential(
            Bottleneck(few, few, 1), Bottleneck(few, more, 2), Bottleneck(more, more, 1)
        )
        self.top = _convolution(more, width, 1)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Float[Tensor, "b 3 32 32"]) -> Float[Tensor, "b c"]:
        """Give the logits of the classes."""
        return self.head(self.top(self.blocks(self.stem(images))).mean((2, 3)))


def make_network(
    name: Name, width: int, depth: int, context: int, weights: torch.Generator
) -> nn.Module:
    """Make a network as its kind is usually started.

    Args:
        name: "gpt" starts as GPT-2 does, and "gpt_tied" has its embedding as the head, too;
            "vit" has weights of deviation 0.02; the other two start as PyTorch starts them.
        width: see the networks; a multiple of 16.
        depth: blocks of the transformers.
        context: most letters that a GPT reads.
        weights: source of the weights.

    Example:
        >>> model = make_network("vit", 16, 1, 8, torch.Generator().manual_seed(0))
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    if name in ("gpt", "gpt_tied"):
        gpt = Gpt(LETTERS, context, width, _HEADS, depth, weights)
        if name == "gpt_tied":
            gpt.head.weight = gpt.tokens.weight
        return gpt
    with torch.random.fork_rng(devices=[]):  # modules draw from the global stream
        torch.manual_seed(weights.initial_seed())
        if name == "lstm":
            return Lstm(width)
        return Vit(width, depth) if name == "vit" else EfficientNet(width)


@torch.no_grad()
def fit_statistics(model: nn.Module, inputs: Tensor) -> None:
    """Set the running statistics of batch normalizations to those of a batch, as training would.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm2d(1))
        >>> fit_statistics(model, torch.full((2, 1, 2, 2), 3.0))
        >>> model[0].running_mean.item(), model[0].momentum
        (3.0, 0.1)
    """
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta, mode = [layer.momentum for layer in norms], model.training
    for layer in norms:
        layer.momentum = 1.0
    model.train()(inputs)
    model.train(mode)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
