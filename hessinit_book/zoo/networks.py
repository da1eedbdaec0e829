"""Sound public architectures, as their authors initialize them, and the batches they see.

Every network is looked at in training mode at two sizes of input times two sizes of batch.
These and those of `first_held_out.py` and `second_held_out.py` are known to whoever writes the
rules of `hessinit_lib.diagnose`; others are held out, in `held_out.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models as vision

from hessinit_book.data import load
from hessinit_book.randomness import generator

CLASSES, TOKENS, FRAMES = 10, 101, 28
MEAN, DEVIATION = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)

Kind = Literal["images", "tokens", "sound", "vectors", "rows"]


@dataclass(frozen=True)
class Network:
    """A maker of a network, which takes the size of its inputs, and what that network reads.

    Attributes:
        make: from the size of its inputs to the network.
        reads: the kind of its inputs.
        sizes: the two sizes of input: pixels, tokens, samples of sound, steps.
        batches: the two sizes of batch.
    """

    make: Callable[[int], nn.Module]
    reads: Kind
    sizes: tuple[int, int]
    batches: tuple[int, int] = (8, 16)

    @property
    def settings(self) -> list[tuple[int, int]]:
        """Give all pairs of a size of input and a size of batch."""
        return [(size, batch) for size in self.sizes for batch in self.batches]


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Make a network whose random weights are the same at each call, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().train()


def batch_for(network: Network, size: int, batch: int) -> tuple[Tensor, Tensor]:
    """Give inputs and class labels: real images where the network reads any."""
    stream = generator(size, f"zoo {network.reads} {batch}")
    labels = torch.randint(CLASSES, (batch,), generator=stream)
    if network.reads == "tokens":
        # As in text, a few tokens are frequent and most are rare.
        weights = 1 / torch.arange(1, TOKENS - 3, dtype=torch.float64)
        tokens = torch.multinomial(weights, batch * size, replacement=True, generator=stream)
        return tokens.view(batch, size) + 4, labels
    if network.reads == "sound":
        time = torch.arange(size) / 100
        tones = torch.rand(batch, 1, generator=stream) * 5 + 1
        waves = (tones * time).sin() + 0.5 * torch.randn(batch, size, generator=stream)
        return (waves - waves.mean(1, keepdim=True)) / waves.std(1, keepdim=True), labels
    images, labels = _images()
    images, labels = images[:batch], labels[:batch]
    if network.reads == "images":
        if size != images.shape[-1]:
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return images, labels
    gray = images.mean(1)
    if network.reads == "vectors":
        gray = F.interpolate(gray[:, None], (size, size), mode="area").flatten(1)
        return gray, labels
    return F.interpolate(gray[:, None], (size, FRAMES), mode="area")[:, 0], labels


@cache
def _images() -> tuple[Tensor, Tensor]:
    images, labels = load("cifar10", sample=True).tensors("train")
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, DEVIATION))
    return (images[:512].float() - shift) / scale, labels[:512].long()


class Head(nn.Module):
    """The mean of a body's outputs over time, then a linear layer."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.out = body, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Give logits, shape (B, classes)."""
        z: Any = self.body(x)
        if isinstance(z, tuple):
            z = z[0]
        return self.out(getattr(z, "last_hidden_state", z).mean(1))


def mlp(size: int, width: int = 128, depth: int = 3, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Stack linear layers with PyTorch's own initialization."""
    sizes = [size * size] + [width] * (depth - 1)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), act())]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


class Recurrent(nn.Module):
    """A recurrent network of torch whose last output is read."""

    def __init__(self, kind: Callable[..., nn.Module], width: int = 64, layers: int = 1) -> None:
        super().__init__()
        self.body = kind(FRAMES, width, layers, batch_first=True)
        self.out = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Give logits, shape (B, classes)."""
        return self.out(self.body(x)[0][:, -1])


def encoder(norm_first: bool = False, depth: int = 2, dropout: float = 0.1) -> nn.Module:
    """Make an encoder of torch on tokens."""
    layer = nn.TransformerEncoderLayer(
        64, 4, 128, dropout=dropout, batch_first=True, norm_first=norm_first
    )
    body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
    return Head(nn.Sequential(nn.Embedding(TOKENS, 64), body), 64)


def convolutional() -> nn.Module:
    """Make a small network of three convolutions with batch normalization."""
    layers: list[nn.Module] = []
    for a, b in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def _vision(name: str, sizes: tuple[int, int] = (64, 96), **options: Any) -> Network:
    make = getattr(vision, name)
    return Network(lambda size: make(weights=None, num_classes=CLASSES, **options), "images", sizes)


def _timm(name: str, sizes: tuple[int, int] = (64, 96), sized: bool = False, **o: Any) -> Network:
    def make(size: int) -> nn.Module:
        import timm

        options = {**o, "img_size": size} if sized else o
        return timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)

    return Network(make, "images", sizes)


# A pooler that nothing reads would be a weight without a gradient: a fault.
_POOLED = ("Bert", "Roberta", "Ernie", "Data2VecText")


def _hugging_face(name: str, **options: Any) -> Network:
    """Give a text model of two layers of width 64 from a configuration."""

    def make(size: int) -> nn.Module:
        import transformers

        base = {"vocab_size": TOKENS, "hidden_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "intermediate_size": 128, "pad_token_id": 0,
                "max_position_embeddings": 130}  # fmt: skip
        config = getattr(transformers, f"{name}Config")(**{**base, **options})
        kind = "T5EncoderModel" if name == "T5" else f"{name}Model"
        without = {"add_pooling_layer": False} if name in _POOLED else {}
        return Head(getattr(transformers, kind)(config, **without), 64)

    return Network(make, "tokens", (16, 48))


def _picture_transformer(name: str) -> Network:
    def make(size: int) -> nn.Module:
        import transformers

        config = getattr(transformers, f"{name}Config")(
            image_size=size, patch_size=8, hidden_size=64, num_hidden_layers=3,
            num_attention_heads=4, intermediate_size=128,
        )  # fmt: skip
        body = getattr(transformers, f"{name}Model")(config, add_pooling_layer=False)
        return Head(body, 64)

    return Network(make, "images", (32, 64))


def _speech(name: str, **options: Any) -> Network:
    def make(size: int) -> nn.Module:
        import transformers

        config = getattr(transformers, f"{name}Config")(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
            conv_dim=(32, 32, 32), conv_kernel=(10, 3, 2), conv_stride=(5, 2, 2),
            num_feat_extract_layers=3, num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4, apply_spec_augment=False, layerdrop=0.0, **options,
        )  # fmt: skip
        return Head(getattr(transformers, f"{name}Model")(config), 64)

    return Network(make, "sound", (800, 1600), (4, 8))


CLASSIC: dict[str, Network] = {
    "mlp": Network(mlp, "vectors", (16, 28)),
    "tanh mlp": Network(lambda size: mlp(size, act=nn.Tanh), "vectors", (16, 28)),
    "gelu mlp": Network(lambda size: mlp(size, act=nn.GELU, depth=4), "vectors", (16, 28)),
    "cnn": Network(lambda size: convolutional(), "images", (32, 48)),
    "lstm": Network(lambda size: Recurrent(nn.LSTM), "rows", (16, 28)),
    "gru": Network(lambda size: Recurrent(nn.GRU, layers=2), "rows", (16, 28)),
    "encoder": Network(lambda size: encoder(), "tokens", (16, 48)),
    "encoder, norm first": Network(lambda size: encoder(True), "tokens", (16, 48)),
}

TORCHVISION: dict[str, Network] = {
    name: _vision(name)
    for name in (
        "resnet18", "resnet50", "resnext50_32x4d", "vgg11_bn", "vgg11", "alexnet",
        "squeezenet1_1", "densenet121", "mobilenet_v2", "mobilenet_v3_small",
        "shufflenet_v2_x1_0", "regnet_y_400mf", "efficientnet_b0", "convnext_tiny", "swin_t",
        "mnasnet1_0",
    )
}  # fmt: skip
TORCHVISION["vit"] = Network(
    lambda size: vision.VisionTransformer(size, 8, 3, 4, 64, 128, num_classes=CLASSES),
    "images",
    (32, 64),
)

TIMM: dict[str, Network] = {
    "nfnet": _timm("dm_nfnet_f0"),
    "mixer": _timm("mixer_s32_224", sized=True),
    "resmlp": _timm("resmlp_12_224", sized=True),
    "convmixer": _timm("convmixer_768_32", (28, 56)),
    "deit": _timm("deit_tiny_patch16_224", sized=True),
    "cait": _timm("cait_xxs24_224", sized=True),
    "pvt": _timm("pvt_v2_b0"),
    "poolformer": _timm("poolformer_s12"),
    "edgenext": _timm("edgenext_xx_small"),
    "ghostnet": _timm("ghostnet_100"),
    "tinynet": _timm("tinynet_e"),
    "repvgg": _timm("repvgg_a0"),
    "levit": _timm("levit_128s", (224, 224 - 32), sized=True),
    "xcit": _timm("xcit_nano_12_p16_224", sized=True),
    "coat": _timm("coat_lite_tiny", sized=True),
}

HUGGING_FACE: dict[str, Network] = {
    "bert": _hugging_face("Bert"),
    "roberta": _hugging_face("Roberta"),
    "distilbert": _hugging_face("DistilBert", dim=64, n_layers=2, n_heads=4, hidden_dim=128),
    "gpt2": _hugging_face("GPT2", n_embd=64, n_layer=2, n_head=4, n_positions=130),
    "gpt neox": _hugging_face("GPTNeoX"),
    "llama": _hugging_face("Llama", num_key_value_heads=4),
    "mistral": _hugging_face("Mistral", num_key_value_heads=2),
    "opt": _hugging_face("OPT", ffn_dim=128, word_embed_proj_dim=64),
    "t5": _hugging_face("T5", d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4),
    "vit hf": _picture_transformer("ViT"),
    "wav2vec2": _speech("Wav2Vec2"),
}

NETWORKS: dict[str, Network] = {**CLASSIC, **TORCHVISION, **TIMM, **HUGGING_FACE}
