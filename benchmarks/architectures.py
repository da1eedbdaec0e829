"""One call for each of the architectures that people train, and what it costs.

All see the same images of the CIFAR-10 sample: convolutional networks and the vision
transformer as they are, the recurrent network row by row, the language model as tokens of
gray levels. Networks are torchvision's, or built of torch's own layers, with their default
initialization. Batch normalization counts with the batch's statistics, dropout is off.

usage: python -m benchmarks.architectures [--tolerance T] [--names NAME ...] [--device cuda]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from benchmarks.recording import Recording, add_recording
from benchmarks.timing import seconds, timed, warm_up
from hessinit_book.data import load
from hessinit_lib import layer_hessians
from hessinit_lib.hessians.noise import without_noise

THREADS, BATCH, LEVELS = 2, 8, 16
QUICK_BUDGET = 3  # training steps


class Rows(nn.Module):
    """Two layers of gated recurrent units that read an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.GRU(96, 64, 2, batch_first=True), nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, 32, 32) to logits (B, 10)."""
        rows = images.transpose(1, 2).flatten(2)
        return self.head(self.cells(rows)[0][:, -1])


class Language(nn.Module):
    """A small GPT: tied embedding, four causal transformer layers."""

    def __init__(self, tokens: int = LEVELS, context: int = 63, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.position = nn.Parameter(0.02 * torch.randn(context, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, T) to logits (B, T, tokens)."""
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], tokens.device)
        hidden = self.embedding(tokens) + self.position
        return self.head(self.norm(self.layers(hidden, mask, is_causal=True)))


def vision_transformer() -> nn.Module:
    """Make ViT-tiny for 32 x 32 pixels: 12 layers of width 192, patches of 4 x 4."""
    model = torchvision.models.VisionTransformer(32, 4, 12, 3, 192, 768, num_classes=10)
    # torchvision starts with a head of zeros: nothing below it would have any curvature.
    nn.init.normal_(model.heads[0].weight, std=192**-0.5)  # pyright: ignore[reportArgumentType]
    return model


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Average the cross-entropy over all tokens."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


ARCHITECTURES: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "resnet18": ("ResNet-18, batch norm", lambda: torchvision.models.resnet18(num_classes=10)),
    "gru": ("2-layer GRU", Rows),
    "gpt": ("small GPT, 4 layers, tied embedding", Language),
    "vit": ("ViT-tiny, 12 layers", vision_transformer),
    "efficientnet": (
        "EfficientNet-B0",
        lambda: torchvision.models.efficientnet_b0(num_classes=10),
    ),
}


def measure(name: str, images: Tensor, labels: Tensor, **options: Any) -> dict[str, Any]:
    """Call `layer_hessians` once, and time it and a training step."""
    title, make = ARCHITECTURES[name]
    with torch.random.fork_rng(devices=[]):  # default initializations draw from the global stream
        torch.manual_seed(0)
        model = make().to(images.device)
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    if name == "gpt":
        levels = (F.avg_pool2d(images.mean(1), 4) * (LEVELS - 1)).round().long().flatten(1)
        images, labels, loss_fn = levels[:, :-1], levels[:, 1:], token_loss
    with without_noise(model, images):

        def step() -> None:
            loss_fn(model(images), labels).backward()

        step_seconds = min(seconds(step) for _ in range(4))
        call = partial(layer_hessians, model, loss_fn, images, labels, **options)
        warm_up(call)
        report, duration = timed(call)
    layers = list(report.values())
    first, last = layers[0], layers[-1]
    print(f"\n{title}: {duration:.1f} s, {duration / step_seconds:.0f} steps\n{report}", flush=True)
    return {
        "title": title,
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": len(layers),
        "step_ms": step_seconds * 1e3,
        "seconds": duration,
        "steps": duration / step_seconds,
        "exact": all(layer.exact for layer in layers),
        "why_estimated": report.why_estimated,
        "products": sum(layer.products for layer in layers),
        "largest_error": max(layer.stderr / layer.frobenius for layer in layers),
        **{
            place: {
                "name": layer.name,
                "frobenius": layer.frobenius,
                "stderr": layer.stderr,
                "spectral": layer.spectral,
                "residual_ratio": layer.residual_ratio,
            }
            for place, layer in (("first", first), ("last", last))
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures")
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--names", nargs="+", choices=ARCHITECTURES, default=[*ARCHITECTURES])
    add_recording(parser)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    data = load("cifar10", sample=True)
    images, labels = (tensor[:BATCH].to(chosen.device) for tensor in data.tensors("train"))
    recording = Recording("architectures", chosen)
    options = {"budget": QUICK_BUDGET} if chosen.quick else {"tolerance": chosen.tolerance}
    values = {name: measure(name, images, labels, **options) for name in chosen.names}
    parameters = {"batch": BATCH, "threads": THREADS, **options}
    recording.write(values, parameters, data.info)


if __name__ == "__main__":
    main()
