"""Planted faults: a sound problem, what is broken in it, and what counts as naming that.

Faults are broken into networks of the zoo or small classic ones. The list was written before
the rules of `hessinit_lib.diagnose` were changed, and is known to whoever writes them, as are
those of `first_held_out.py` and `second_held_out.py`; others are held out, in `held_out.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hessinit_book.randomness import generator
from hessinit_book.zoo import networks
from hessinit_book.zoo.networks import CLASSES, FRAMES, NETWORKS, Head, Network, batch_for

Loss = Callable[[Tensor, Tensor], Tensor]

POOL: ContextVar[int] = ContextVar("POOL", default=0)
"""How many samples problems are to have: more for training than for a diagnosis."""


@dataclass(frozen=True)
class Problem:
    """A model, its loss and a batch."""

    model: nn.Module
    loss: Loss
    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Planted:
    """A fault.

    Attributes:
        make: the problem with the fault in it.
        named: a pattern: it is named where this is found in a fault's kind, place and reason,
            or in the message of a refusal.
        trainable: whether losses before and after advice can be compared.
        mended: what the advice says where that is in words only, done by hand.
    """

    make: Callable[[], Problem]
    named: str
    trainable: bool = True
    mended: Callable[[], Problem] | None = None

    def is_named(self, said: str) -> bool:
        """Tell whether words of `diagnose` name it."""
        return re.search(self.named, said, re.IGNORECASE) is not None


def problem(
    model: Callable[[], nn.Module] | Network | str,
    reads: str = "vectors",
    size: int = 16,
    batch: int = 32,
) -> Problem:
    """Give a sound problem: a network of the zoo, or a maker of one; `POOL` samples at least."""
    batch = max(batch, POOL.get())
    if isinstance(model, str | Network):
        network = NETWORKS[model] if isinstance(model, str) else model
        made = networks.seeded(lambda: network.make(size))
    else:
        network = Network(lambda _: nn.Identity(), reads, (size, size))  # type: ignore[arg-type]
        made = networks.seeded(model)
    return Problem(made, nn.CrossEntropyLoss(), *batch_for(network, size, batch))


def _in(
    base: Callable[[], Problem], change: Callable[[nn.Module], object]
) -> Callable[[], Problem]:
    def make() -> Problem:
        made = base()
        with torch.no_grad():
            change(made.model)
        return made

    return make


def _scaled(base: Callable[[], Problem], name: str, factor: float) -> Planted:
    make = _in(base, lambda model: model.get_parameter(name).mul_(factor))
    return Planted(make, _at(name))


def _filled(base: Callable[[], Problem], name: str, value: float, named: str = "") -> Planted:
    make = _in(base, lambda model: model.get_parameter(name).fill_(value))
    return Planted(make, named or _at(name))


def _at(name: str) -> str:
    """Give the pattern of a parameter's module: where a fault is said to be, or in an error."""
    return r"(^\w+ |error: |\bat )" + re.escape(name.rpartition(".")[0]) + r"\b"


def _batch(
    base: Callable[[], Problem], named: str, **change: Callable[[Tensor], Tensor]
) -> Planted:
    def make() -> Problem:
        made = base()
        return replace(made, **{key: turn(getattr(made, key)) for key, turn in change.items()})

    return Planted(make, named, "targets" not in change, None if "targets" in change else base)


def dense(depth: int = 5, act: type[nn.Module] = nn.ReLU, width: int = 64) -> nn.Module:
    """Stack linear layers, drawn for their activation, with zero biases."""
    model = networks.mlp(16, width, depth, act)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            gain = math.sqrt(2) if act is nn.ReLU else 1.0
            nn.init.normal_(layer.weight, 0, gain / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)
    return model


class Branch(nn.Module):
    """z + f(z), f of two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = nn.Sequential(
            nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )
        for layer in self.f[1::2]:
            assert isinstance(layer, nn.Linear)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, z: Tensor) -> Tensor:
        """Add the branch."""
        return z + self.f(z)


class Conv(nn.Sequential):
    """A plain convolutional network without normalization."""

    def __init__(self, depth: int = 6, std: float | None = None) -> None:
        layers: list[nn.Module] = []
        for index in range(depth):
            conv = nn.Conv2d(16 if index else 3, 16, 3, padding=1)
            if std is None:
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            else:
                nn.init.normal_(conv.weight, 0, std)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
            layers += [conv, nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, CLASSES))


class Cut(nn.Module):
    """Stops gradients."""

    def forward(self, z: Tensor) -> Tensor:
        """Give z without its history."""
        return z.detach()


class Without(nn.Module):
    """Computes its inner module without recording gradients."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor) -> Tensor:
        """Apply the inner module."""
        with torch.no_grad():
            return self.inner(z)


class Mask(nn.Module):
    """Dropout with a factor of one's own."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, z: Tensor) -> Tensor:
        """Drop half of the values while training."""
        return z * (torch.rand_like(z) < 0.5) * self.factor if self.training else z


class Unused(nn.Module):
    """A network with a layer that its forward pass leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.forgotten = dense(), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        """Give logits."""
        return self.body(x)


class Chaotic(nn.Module):
    """A tanh recurrent network with a recurrent matrix of a given gain."""

    def __init__(self, gain: float, width: int = 64) -> None:
        super().__init__()
        self.body = nn.RNN(FRAMES, width, batch_first=True)
        self.out = nn.Linear(width, CLASSES)
        recurrent = self.body.get_parameter("weight_hh_l0")
        nn.init.normal_(recurrent, 0, gain / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        """Give logits, shape (B, classes)."""
        return self.out(self.body(x)[0][:, -1])


class Positions(nn.Module):
    """Tokens plus positions, and an encoder of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(networks.TOKENS, 64)
        self.positions = nn.Embedding(64, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True, norm_first=True)
        self.body = Head(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), 64)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, 0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Give logits, shape (B, classes)."""
        return self.body(self.tokens(x) + self.positions(torch.arange(x.shape[1])))


def _sound(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def _inserted(place: int, module: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = dense()
        model.insert(place, module())  # type: ignore[operator]
        return model

    return make


def _all_scaled(model: nn.Module, factor: float) -> None:
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.mul_(factor)


def _ones_to_zero(model: nn.Module, kind: type[nn.Module]) -> None:
    for module in model.modules():
        if isinstance(module, kind):
            module.weight.zero_()  # type: ignore[operator]


def _equal(model: nn.Module, value: float = 0.05) -> None:
    for weight in model.parameters():
        weight.fill_(value if weight.dim() > 1 else 0)


def _sizes_of(model: nn.Module, std: float) -> None:
    stream = generator(0, "zoo truncated")
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.trunc_normal_(weight, 0, std, generator=stream)


def _logits_query(model: nn.Module) -> None:
    model.get_parameter("body.1.layers.0.self_attn.in_proj_weight")[:128].mul_(100)


def _dense() -> Problem:
    return problem(dense)


def _tanh() -> Problem:
    return problem(lambda: dense(5, nn.Tanh))


def _conv() -> Problem:
    return problem(Conv, "images", 16, 16)


def _zoo(name: str, size: int, batch: int = 16) -> Callable[[], Problem]:
    return lambda: problem(name, size=size, batch=batch)


def _dense_of(make: Callable[[], nn.Module]) -> Callable[[], Problem]:
    return lambda: problem(make)


def _mean_square(made: Problem) -> Problem:
    model = nn.Sequential(made.model, nn.Linear(CLASSES, 1))
    return Problem(model, nn.MSELoss(), made.inputs, made.targets.float())


def _one_bad(x: Tensor) -> Tensor:
    x = x.clone()
    x.view(-1)[7] = math.nan
    return x


SCALE, DEPTH = "scale|depth|explod|vanish", "depth|residual|vanish|explod"
INPUTS = r"^(inputs?\b|\w+ inputs?\b)|\bthe inputs\b"
OUTPUTS = r"loss|output|\bout\b|target"
_ANYWHERE = "scale|depth|satur|explod"

FAULTS: dict[str, Planted] = {
    "mlp: third layer x 100": _scaled(_dense, "4.weight", 100),
    "mlp: third layer / 100": _scaled(_dense, "4.weight", 0.01),
    "mlp: third layer zero": _filled(_dense, "4.weight", 0),
    "tanh mlp: second layer / 100": _scaled(_tanh, "2.weight", 0.01),
    "cnn: fourth layer x 100": _scaled(_conv, "6.weight", 100),
    "cnn: fourth layer / 100": _scaled(_conv, "6.weight", 0.01),
    "cnn: fourth layer zero": _filled(_conv, "6.weight", 0),
    "resnet18: a convolution x 100": _scaled(
        _zoo("resnet18", 64, 8), "layer2.0.conv1.weight", 100
    ),
    "mobilenet_v3_small: last layer x 100": _scaled(
        _zoo("mobilenet_v3_small", 64), "classifier.3.weight", 100
    ),
    "vit: a projection x 100": _scaled(
        _zoo("vit", 32), "encoder.layers.encoder_layer_1.mlp.0.weight", 100
    ),
    "squeezenet1_1: a squeeze x 100": _scaled(
        _zoo("squeezenet1_1", 64), "features.6.squeeze.weight", 100
    ),
    "mixer: a token layer x 100": _scaled(
        _zoo("mixer", 64, 8), "blocks.3.mlp_tokens.fc1.weight", 100
    ),
    "gpt2: a projection x 100": _scaled(_zoo("gpt2", 16), "body.h.1.mlp.c_fc.weight", 100),
    "bert: an output layer x 100": _scaled(
        _zoo("bert", 16), "body.encoder.layer.0.output.dense.weight", 100
    ),
    "llama: gate x 100": _scaled(_zoo("llama", 16), "body.layers.1.mlp.gate_proj.weight", 100),
    "mlp: last layer x 100": _scaled(_dense, "8.weight", 100),
    "mlp: last bias 30": Planted(
        _in(_dense, lambda model: model.get_parameter("8.bias")[:3].fill_(30)), r"\b8\.|" + OUTPUTS
    ),
    "encoder: all weights x 4": Planted(
        _in(_zoo("encoder", 16), lambda model: _all_scaled(model, 4)), _ANYWHERE
    ),
    "mlp: dead ReLUs": _filled(_dense, "4.bias", -10, r"dead|\b4\."),
    "cnn: dead ReLUs": _filled(_conv, "6.bias", -10, r"dead|\b6\."),
    "tanh mlp: saturated": Planted(_in(_tanh, lambda model: _all_scaled(model, 10)), "satur|scale"),
    "sigmoid mlp: saturated": Planted(
        _in(
            _dense_of(lambda: dense(4, nn.Sigmoid)), lambda model: _all_scaled(model, 30)
        ),
        "satur|scale",
    ),
    "mlp: dropout without rescaling": Planted(
        _dense_of(_inserted(4, lambda: Mask(1.0))), "noise", True,
        _dense_of(_inserted(4, lambda: nn.Dropout(0.5))),
    ),
    "mlp: dropout rescaled twice": Planted(
        _dense_of(_inserted(4, lambda: Mask(4.0))), "noise", True,
        _dense_of(_inserted(4, lambda: nn.Dropout(0.5))),
    ),
    "50 residual blocks without scaling": Planted(
        _dense_of(
            lambda: _sound(
                nn.Linear(256, 64), *(Branch(64) for _ in range(50)), nn.Linear(64, CLASSES)
            )
        ),
        "residual|depth",
    ),
    "mlp: 30 layers of PyTorch's default": Planted(
        _dense_of(lambda: networks.mlp(16, 64, 30)), DEPTH
    ),
    "sigmoid mlp: 30 layers": Planted(
        _dense_of(lambda: networks.mlp(16, 64, 30, nn.Sigmoid)), DEPTH
    ),
    "cnn: 24 layers of deviation 0.02": Planted(
        lambda: problem(lambda: Conv(24, 0.02), "images", 16, 16), DEPTH + "|scale"
    ),
    "rnn: chaotic, 112 steps": Planted(
        lambda: problem(lambda: Chaotic(6.0), "rows", 112), "step|time|hh|" + DEPTH
    ),
    "rnn: vanishing, 112 steps": Planted(
        lambda: problem(lambda: Chaotic(0.3), "rows", 112), "step|time|hh|" + DEPTH
    ),
    "mlp: detached in the middle": Planted(
        _dense_of(_inserted(4, Cut)), "no gradient|gets? no|unused|detach|frozen", True, _dense
    ),
    "mlp: no_grad in the middle": Planted(
        _dense_of(lambda: _sound(Without(nn.Linear(256, 64)), nn.ReLU(), nn.Linear(64, CLASSES))),
        "no gradient|gets? no|unused|detach|no_grad", True,
        _dense_of(lambda: _sound(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, CLASSES))),
    ),
    "mlp: a layer unused": Planted(_dense_of(Unused), "forgotten|unused", False),
    "mlp: softmax before cross-entropy": Planted(
        _dense_of(lambda: _sound(dense(), nn.Softmax(-1))), "softmax|probabilit", True, _dense
    ),
    "mlp: targets x 1e5": Planted(
        lambda: replace(
            _mean_square(_dense()), targets=_dense().targets[:, None].float() * 1e5
        ),
        r"target|\bloss", False,
    ),
    "mlp: mean square by broadcasting": Planted(
        lambda: _mean_square(_dense()), "shape|broadcast|target", False
    ),
    "mlp: inputs of 1e5": _batch(_dense, INPUTS, inputs=lambda x: x * 1e5),
    "cnn: inputs of 0 to 255": _batch(
        _conv, INPUTS, inputs=lambda x: (x * 63 + 121).clamp(0, 255).round()
    ),
    "mlp: NaN in the inputs": _batch(
        _dense, r"input.*(nan|finite)|(nan|finite).*input|nonfinite", inputs=_one_bad
    ),
    "mlp: NaN in a weight": Planted(
        _in(_dense, lambda model: model.get_parameter("4.weight")[3, 5].fill_(math.nan)),
        r"\b4\.weight|nonfinite",
    ),
    "mlp: identical inputs": _batch(
        _dense, "identical|same|equal|constant|differ", inputs=lambda x: x[:1].expand_as(x).clone()
    ),
    "mlp: all labels ignored": _batch(
        _dense, "ignore|nonfinite|nan|not finite", targets=lambda y: torch.full_like(y, -100)
    ),
    "mlp: equal weights": Planted(
        _in(_dense, _equal), "symmetr|equal|identical|same|constant|scale"
    ),
    "encoder: embedding x 100": _scaled(_zoo("encoder", 16), "body.0.weight", 100),
    "encoder: layer norm zero": _filled(
        _zoo("encoder", 16), "body.1.layers.0.norm1.weight", 0, r"norm1|layers\.0|" + DEPTH
    ),
    "resnet18: all batch norms zero": Planted(
        _in(_zoo("resnet18", 64, 8), lambda model: _ones_to_zero(model, nn.BatchNorm2d)),
        r"bn|norm|" + DEPTH + "|dead|scale|no gradient",
    ),
    "cnn: truncated normal of deviation 1": Planted(
        _in(_conv, lambda model: _sizes_of(model, 1.0)), SCALE
    ),
    "encoder: queries and keys x 100": Planted(
        _in(_zoo("encoder", 16), _logits_query), "in_proj|satur|attention"
    ),
    "encoder: positions of deviation 10": Planted(
        _in(
            lambda: problem(Positions, "tokens", 16),
            lambda model: nn.init.normal_(model.positions.weight, 0, 10),  # type: ignore
        ),
        "position",
    ),
    "lstm: input weights x 100": _scaled(_zoo("lstm", 28), "body.weight_ih_l0", 100),
    "gru: recurrent weights x 100": _scaled(_zoo("gru", 28), "body.weight_hh_l0", 100),
}  # fmt: skip
