"""A fully connected network as a chain of stages, and its forward pass.

The derivation of the layer Hessians speaks of a^k = W^k z^(k-1) + b^k and z^k = f_k(a^k).
This file finds those in an `nn.Module` and keeps what the backward pass needs of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from hessinit_lib.hessians.chain.activations import is_elementwise, is_piecewise_linear
from hessinit_lib.hessians.numerics.precision import fast_products


@dataclass(frozen=True)
class LinearStage:
    """a = W z + b, with what was fed to it.

    Attributes:
        name: name of the weight parameter.
        weight: W, shape (n_out, n_in).
        inputs: z, shape (B, n_in).
        trainable: False for a frozen weight, whose block is not asked for.
    """

    name: str
    weight: Float[Tensor, "n m"]
    inputs: Float[Tensor, "b m"]
    trainable: bool


@dataclass(frozen=True)
class ActivationStage:
    """z = f(a), elementwise, with the pre-activations a, shape (B, n)."""

    module: nn.Module
    preactivations: Float[Tensor, "b n"]


Stage = LinearStage | ActivationStage


def is_chain(model: nn.Module, inputs: Tensor) -> bool:
    """Tell whether a model, fed these inputs, is a fully connected network in this file's sense.

    Linear layers and elementwise activations in (nested) `nn.Sequential`, with Flatten,
    Identity and dropout between them, fed one vector a sample.
    """
    modules = [module for _, module in _chain(model)]
    known = all(
        type(module) in (nn.Linear, nn.Flatten)
        or isinstance(module, _DropoutNd)
        or is_elementwise(module)
        for module in modules
    )
    first = modules[0] if modules else None
    return known and (inputs.ndim == 2 or isinstance(first, nn.Flatten))


def has_residual(model: nn.Module) -> bool:
    """Tell whether some block of a network is more than its linearization.

    So it is if a smooth activation comes after a trainable weight.

    Args:
        model: a network of which `is_chain` is true.
    """
    trainable = False
    for _, module in _chain(model):
        if isinstance(module, nn.Linear):
            trainable = trainable or module.weight.requires_grad
        elif trainable and is_elementwise(module) and not is_piecewise_linear(module):
            return True
    return False


def forward(model: nn.Module, inputs: Tensor) -> tuple[list[Stage], Float[Tensor, "b c"]]:
    """Run the network and keep each stage's input.

    Args:
        model: a network of which `is_chain` is true.
        inputs: shape (B, ...).

    Returns:
        The stages from input to output, and the logits, shape (B, C).

    Raises:
        NotImplementedError: active dropout, or a weight used twice; the message names it.
        ValueError: a Linear layer is fed something that is not of shape (B, fan_in).
    """
    refuse_active_noise(model)
    stages: list[Stage] = []
    seen: dict[int, str] = {}
    dtype = compute_dtype(model)
    z = inputs.to(dtype) if inputs.dtype.is_floating_point else inputs
    for name, module in _chain(model):
        if isinstance(module, nn.Linear):
            weight_name = f"{name}.weight" if name else "weight"
            first = seen.setdefault(id(module.weight), weight_name)
            if first != weight_name:
                raise NotImplementedError(
                    f"{weight_name} shares its tensor with {first}: tied weights are not covered"
                )
            if z.ndim != 2 or z.shape[1] != module.in_features:
                raise ValueError(
                    f"{name or 'Linear'} got an input of shape {tuple(z.shape)}, "
                    f"expected (batch, {module.in_features})"
                )
            weight = module.weight.to(dtype)
            stages.append(LinearStage(weight_name, weight, z, module.weight.requires_grad))
            bias = None if module.bias is None else module.bias.to(dtype)
            with fast_products(dtype, 0.0, z.numel() * len(weight)):
                z = nn.functional.linear(z, weight, bias)
        elif is_elementwise(module):
            if not stages:
                z = module(z.clone())  # before the first weight: part of the input
                continue
            stages.append(ActivationStage(module, z))
            z = module(z.clone() if getattr(module, "inplace", False) else z)
        else:  # Flatten, idle dropout: no parameters, no curvature
            z = module(z)
    return stages, z


def refuse_active_noise(model: nn.Module) -> None:
    """Refuse modules that draw random numbers in this mode.

    Raises:
        NotImplementedError: there is one; the message names it.
    """
    for name, module in model.named_modules():
        drops = isinstance(module, _DropoutNd) and module.p > 0
        if module.training and (drops or isinstance(module, nn.RReLU)):
            raise NotImplementedError(
                f"{name or 'the model'} ({type(module).__name__}) is active: "
                "its mask changes with every call; call model.eval() first"
            )


def compute_dtype(model: nn.Module) -> torch.dtype:
    """Give the type to compute in: that of the parameters, at least float32."""
    kinds = {parameter.dtype for parameter in model.parameters()}
    return torch.float64 if torch.float64 in kinds else torch.float32


def _chain(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Flatten nested `nn.Sequential`; leave out `nn.Identity`."""
    if type(module) is nn.Sequential:
        # Not named_children(), which passes over a module that comes a second time.
        for child_name, child in module._modules.items():
            assert child is not None  # nn.Sequential holds no empty places
            yield from _chain(child, f"{name}.{child_name}" if name else child_name)
    elif type(module) is not nn.Identity:
        yield name, module
