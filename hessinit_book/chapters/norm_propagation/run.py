"""Predicted against measured norms of layer Hessians at initialization, scheme by scheme.

Fully connected networks of several widths and depths read MNIST images. The weights have the
variances that keep the Hessian norms from layer to layer: LeCun's, Glorot's and He's, and those
for dropout. One batch of images is the same for all seeds, so that the prediction is, too.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from tqdm.auto import tqdm

from hessinit_book.chapters.norm_propagation.checks import expectation_check, gain_curves
from hessinit_book.chapters.norm_propagation.known_rules import known_rules
from hessinit_book.chapters.norm_propagation.networks import (
    SCHEMES,
    make_network,
)
from hessinit_book.networks.linearized_norms import linearized_norms
from hessinit_book.networks.random_networks import draw_weights, hessian_norms, make_model
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import Count, Deviation, Layers, Units
from hessinit_book.randomness import generator
from hessinit_book.records.records import Record
from hessinit_book.records.runs import run_seeds
from hessinit_book.statistics.rounding import all_rounded, rounded
from hessinit_book.theory import RandomNetwork, predict_layer_norms
from hessinit_book.training.image_data import load_images


class NormPropagationParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    Networks of the largest width with up to `close_depth` layers are looked at closely: each
    seed draws more of them, so that a median over networks says more, and with tanh the whole
    Hessian is measured besides its linearization, which is what is predicted.

    Attributes:
        widths: units of each hidden layer.
        depths: layers of weights.
        batch_size: images whose mean loss is differentiated.
        keep: probability that dropout keeps a unit.
        small_scale: factor of the images where pre-activations are to be small.
        close_depth: see above.
        repeats: networks that each seed draws more, see above.
        draws: networks of the Monte Carlo check, and samples of each gain.
    """

    EXPERIMENT: ClassVar[str] = "norm_propagation"
    IMAGES: ClassVar[tuple[str, ...]] = ("mnist",)
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {
            "seeds": (0,),
            "widths": (64,),
            "depths": (2, 5),
            "batch_size": 8,
            "close_depth": 2,
            "repeats": 2,
            "draws": 2000,
        },
        "quick": {
            "seeds": (0, 1, 2),
            "widths": (64, 256),
            "depths": (2, 5, 10),
            "batch_size": 16,
            "close_depth": 10,
            "repeats": 4,
            "draws": 5000,
        },
        "paper": {
            "seeds": tuple(range(20)),
            "widths": (64, 128, 256, 512),
            "depths": (2, 5, 10, 20, 50),
            "batch_size": 32,
            "close_depth": 20,
            "repeats": 14,
            "draws": 10_000,
        },
    }

    widths: Annotated[tuple[Units, ...], Field(min_length=1)]
    depths: Annotated[tuple[Layers, ...], Field(min_length=1)]
    batch_size: Count
    keep: Annotated[float, Field(ge=0.01, lt=1)] = 0.5
    small_scale: Deviation = 0.1
    close_depth: Layers
    repeats: Count
    draws: Annotated[Count, Field(ge=100)]


def run(parameters: NormPropagationParameters) -> list[Record]:
    """Measure all networks for every seed and give the records.

    Raises:
        DataError: the data set cannot be had.
        ParameterError: a batch larger than the training set.
        RecordError: a record that is in the way is damaged.
    """
    data = load_images(parameters, "mnist", "batch_size")
    size, keep = parameters.batch_size, parameters.keep
    shapes = [(width, depth) for width in parameters.widths for depth in parameters.depths]
    predictions: dict[tuple[str, int, int], dict[str, Any]] = {}

    def run_one(seed: int, device: torch.device, bar: tqdm) -> dict[str, Any]:
        images, labels = data.tensors("train", device)
        images = images.flatten(1)
        chosen = torch.randperm(len(images), generator=generator(0, "images"))[:size].to(device)
        found: dict[str, dict[str, Any]] = {name: {} for name in SCHEMES}
        for name, scheme in SCHEMES.items():
            inputs = images[chosen] * (parameters.small_scale if scheme.small else 1)
            for width, depth in shapes:
                network = make_network(scheme, width, depth, keep)
                key = (name, width, depth)
                if key not in predictions:
                    predictions[key] = predicted(network, inputs)
                draws = generator(seed, "/".join(map(str, key)))
                weights = [weight.to(device) for weight in draw_weights(network, draws)]
                measured = linearized_norms(network, weights, inputs, draws)
                values = {**predictions[key], "measured": all_rounded(measured, 4)}
                if width == max(parameters.widths) and depth <= parameters.close_depth:
                    values["more"] = [
                        all_rounded(measure(network, inputs, draws), 4)
                        for _ in range(parameters.repeats)
                    ]
                    if scheme.activation == "tanh":
                        model = make_model(network, weights)
                        values["hessian"] = all_rounded(
                            hessian_norms(model, inputs, labels[chosen]), 4
                        )
                found[name][f"w{width}_d{depth}"] = values
                bar.update()
        deviation = expectation_check(images[chosen[0]], generator(seed, "check"), parameters.draws)
        rules = {
            name: {**rule._asdict(), "difference": rule.difference}
            for name, rule in known_rules(512, 256).items()
        }
        return {
            "checks": {
                "statement_06": {
                    "what": "mean trace and squared Frobenius norm of the layer Hessians of "
                    "random ReLU networks against the exact expectations, in standard errors",
                    "value": rounded(deviation),
                    "allowed": 4.5,
                },
                "statement_07": {
                    "what": "critical variances by quadrature against the known rules, largest "
                    "relative difference",
                    "value": max(rule["difference"] for rule in rules.values()),
                    "allowed": 1e-6,
                },
            },
            "schemes": found,
            "gains": gain_curves(generator(seed, "gains"), parameters.draws),
            "rules": rules,
        }

    return run_seeds(parameters, data.info, run_one, ticks=len(SCHEMES) * len(shapes))


def predicted(network: RandomNetwork, inputs: Float[Tensor, "b i"]) -> dict[str, list[float]]:
    """Predict each layer's typical norm, its limit in wide networks, and how it scatters."""
    layers = predict_layer_norms(network, inputs)
    return {
        "predicted": all_rounded((layer.frobenius for layer in layers), 4),
        "limit": all_rounded((layer.limit for layer in layers), 4),
        "log_std": all_rounded((layer.log_std for layer in layers), 4),
    }


def measure(
    network: RandomNetwork, inputs: Float[Tensor, "b i"], draws: torch.Generator
) -> list[float]:
    """Draw one more network of the kind; give each layer's norm."""
    weights = [weight.to(inputs) for weight in draw_weights(network, draws)]
    return linearized_norms(network, weights, inputs, draws)
