"""`apply`: a named scheme for all layers of a model, in one call."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from hessinit_lib.init.layers import Layer, restored_on_failure, weight_layers
from hessinit_lib.init.mirrored import mirrored_
from hessinit_lib.init.tensors import normal_, orthogonal_, truncated_, uniform_
from hessinit_lib.theory.critical import critical_variance

Model = TypeVar("Model", bound=nn.Module)
Draw = Callable[[list[Layer], torch.Generator | None], None]

_LAWS = {"normal": normal_, "uniform": uniform_, "truncated": truncated_}


def apply(
    model: Model, scheme: str, *, generator: torch.Generator | None = None, **options: Any
) -> Model:
    r"""Initialize all layers of a model by a named scheme, in place.

    | scheme | deviation of the weights | options and their defaults |
    | --- | --- | --- |
    | "lecun" | $1 / \sqrt n$ | fan="in", law="normal" |
    | "glorot" | $1 / \sqrt n$ | fan="average", law="uniform" |
    | "he" | $\sqrt{2 / ((1 + a^2) n)}$ | fan="in", law="normal", slope=0.0 (a) |
    | "dropout" | `critical_variance` | dropout, activation="relu", fan="in", rescale=True, law |
    | "orthogonal" | an orthogonal map | gain=1.0 |
    | "mirrored" | a network of ReLUs that starts as a linear one | gain=1.0 |
    | "normal", "uniform", "truncated" | std | std |
    | "torch" | what PyTorch does | |

    n is the fan that is named: "in", "out" or "average" of both. Biases become zero, but for
    "torch", which draws them. Layers of a tied weight are drawn once. Normalization layers
    and frozen parameters are left; so is the global random state, if a generator is given.

    Args:
        model: layers of Linear, Conv1d to Conv3d, ConvTranspose1d to 3d, Embedding.
        scheme: one of the above.
        generator: source of randomness; the global one if None.
        options: of the scheme.

    Returns:
        The model.

    Raises:
        ValueError: an unknown scheme, option or value.
        NotImplementedError: a trainable weight of another kind of module.

    Source: LeCun and others, "Efficient BackProp" (1998); Glorot and Bengio, AISTATS 2010;
        He and others, arXiv 1502.01852; Saxe and others, arXiv 1312.6120; Balduzzi and
        others, arXiv 1702.08591 ("mirrored").

    Example:
        >>> model = nn.Sequential(nn.Linear(800, 200), nn.ReLU(), nn.Linear(200, 10))
        >>> _ = apply(model, "he", fan="in", generator=torch.Generator().manual_seed(0))
        >>> round(model[0].weight.std().item(), 3), model[0].bias.abs().max().item()
        (0.05, 0.0)
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme {scheme!r}: expected one of {', '.join(SCHEMES)}")
    known = inspect.signature(SCHEMES[scheme]).parameters
    unknown = sorted(set(options) - set(known))
    missing = [name for name, p in known.items() if p.default is p.empty and name not in options]
    if unknown or missing:
        what = f"unknown option {unknown[0]!r}" if unknown else f"option {missing[0]!r} is missing"
        raise ValueError(f"scheme {scheme!r}: {what}; it takes {', '.join(known) or 'none'}")
    draw = SCHEMES[scheme](**options)
    layers = weight_layers(model)
    with restored_on_failure(model, generator):
        draw_layers(layers, draw, generator, biases=scheme != "torch")
    return model


@torch.no_grad()
def draw_layers(
    layers: list[Layer], draw: Draw, generator: torch.Generator | None, *, biases: bool = True
) -> None:
    """Draw the weights of layers; set their trainable biases to zero, too, if asked to."""
    draw(layers, generator)
    for layer in layers:
        if isinstance(layer.module, nn.Embedding) and layer.module.padding_idx is not None:
            layer.weight[layer.module.padding_idx] = 0
        if biases and layer.bias is not None:
            layer.bias.zero_()


def _lecun(fan: str = "in", law: str = "normal") -> Draw:
    return _by_fan(lambda n: 1 / math.sqrt(n), fan, law)


def _he(fan: str = "in", law: str = "normal", slope: float = 0.0) -> Draw:
    return _by_fan(lambda n: math.sqrt(2 / ((1 + slope**2) * n)), fan, law)


def _glorot(fan: str = "average", law: str = "uniform") -> Draw:
    return _by_fan(lambda n: 1 / math.sqrt(n), fan, law)


def _dropout(
    dropout: float,
    activation: str = "relu",
    fan: str = "in",
    rescale: bool = True,
    law: str = "normal",
) -> Draw:
    mode = {"in": "fan_in", "out": "fan_out", "average": "fan_avg"}.get(fan, fan)

    def std(fan_in: int, fan_out: int) -> float:
        return math.sqrt(
            critical_variance(activation, fan_in, fan_out, mode, dropout=dropout, rescale=rescale)
        )

    std(1, 1)  # options that do not fit are refused before anything is drawn
    return _by_deviation(std, law)


def _orthogonal(gain: float = 1.0) -> Draw:
    def draw(layers: list[Layer], generator: torch.Generator | None) -> None:
        for layer in layers:
            for block in layer.matrices():
                orthogonal_(block, generator=generator).mul_(gain)

    return draw


def _mirrored(gain: float = 1.0) -> Draw:
    """Mirror each layer's outputs but the last one's, as if ReLUs were between all layers."""

    def draw(layers: list[Layer], generator: torch.Generator | None) -> None:
        inputs = False
        for layer in layers:
            blocks = layer.matrices()
            outputs = layer is not layers[-1] and blocks.shape[1] % 2 == 0
            inputs = inputs and blocks.shape[2] % 2 == 0
            for block in blocks:
                mirrored_(block, inputs=inputs, outputs=outputs, generator=generator).mul_(gain)
            inputs = outputs

    return draw


def _constant(law: str) -> Callable[[float], Draw]:
    def scheme(std: float) -> Draw:
        if not 0 <= std < math.inf:
            raise ValueError(f"std {std}: expected a finite number, 0 or more")
        return _by_deviation(lambda fan_in, fan_out: std, law)

    return scheme


def _torch() -> Draw:
    def draw(layers: list[Layer], generator: torch.Generator | None) -> None:
        for layer in layers:
            if isinstance(layer.module, nn.Embedding):
                normal_(layer.weight, 1.0, generator=generator)
                continue
            # torch reads the fan off the weight's second axis, in transposed convolutions too.
            std = 1 / math.sqrt(3 * layer.weight[0].numel())
            for parameter in (layer.weight, layer.bias):
                if parameter is not None:
                    uniform_(parameter, std, generator=generator)

    return draw


def _by_fan(deviation: Callable[[float], float], fan: str, law: str) -> Draw:
    choose = {
        "in": lambda fan_in, fan_out: fan_in,
        "out": lambda fan_in, fan_out: fan_out,
        "average": lambda fan_in, fan_out: (fan_in + fan_out) / 2,
        "geometric": lambda fan_in, fan_out: math.sqrt(fan_in * fan_out),
    }
    if fan not in choose:
        raise ValueError(f"fan {fan!r}: expected one of {', '.join(choose)}")
    return _by_deviation(lambda *fans: deviation(choose[fan](*fans)), law)


def _by_deviation(deviation: Callable[[int, int], float], law: str) -> Draw:
    if law not in _LAWS:
        raise ValueError(f"law {law!r}: expected one of {', '.join(_LAWS)}")

    def draw(layers: list[Layer], generator: torch.Generator | None) -> None:
        for layer in layers:
            _LAWS[law](layer.weight, deviation(*layer.fans()), generator=generator)

    return draw


SCHEMES: dict[str, Callable[..., Draw]] = {
    "lecun": _lecun,
    "glorot": _glorot,
    "he": _he,
    "dropout": _dropout,
    "orthogonal": _orthogonal,
    "mirrored": _mirrored,
    "normal": _constant("normal"),
    "uniform": _constant("uniform"),
    "truncated": _constant("truncated"),
    "torch": _torch,
}
