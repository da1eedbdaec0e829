"""A fully connected network as a chain of layers, and its forward pass.

The derivation of the layer Hessians speaks of a^k = W^k z^(k-1) + b^k and z^k = f_k(a^k).
`Chain` finds those in an `nn.Module`; its forward pass keeps what the backward pass needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from hessinit_lib.hessians.chain.activations import is_elementwise, is_piecewise_linear
from hessinit_lib.hessians.functional import calls_only_forward, compute_dtype, refuse_active_noise
from hessinit_lib.hessians.inputs import Inputs
from hessinit_lib.hessians.numerics.precision import fast_products


@dataclass(frozen=True)
class LinearStage:
    """a = W z + b, with its inputs z. If W is not `trainable`, its block is not asked for."""

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


@dataclass(frozen=True)
class Chain:
    """A fully connected network.

    Linear layers and elementwise activations in (nested) `nn.Sequential`, with Flatten,
    Identity and dropout between them, and one vector for each sample as input.

    Attributes:
        modules: names and modules in the order of the forward pass, without Identity.
        dtype: the type to compute in.
        log_softmax: whether the model ends in a log-softmax of what this chain gives.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> chain = Chain.of(model, torch.ones(5, 4))
        >>> [name for name, _ in chain.modules], chain.has_residual
        (['0', '1', '2'], True)
        >>> Chain.of(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), torch.ones(5, 4)) is None
        True
    """

    modules: tuple[tuple[str, nn.Module], ...]
    dtype: torch.dtype
    log_softmax: bool = False

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs) -> Chain | None:
        """Find the layers of a model; None if it is no such network on these inputs.

        Raises:
            NotImplementedError: it is one, but with active dropout or a weight that is used
                twice; the message names it.
        """
        if not isinstance(inputs, Tensor):
            return None
        modules = tuple(flat_modules(model))
        if not all(map(calls_only_forward, model.modules())):
            return None
        ends = bool(modules) and _is_log_softmax(modules[-1][1])
        modules = modules[: len(modules) - ends]
        known = all(
            type(module) in (nn.Linear, nn.Flatten)
            or isinstance(module, _DropoutNd)
            or is_elementwise(module)
            for _, module in modules
        )
        vectors = inputs.ndim == 2 or (modules and isinstance(modules[0][1], nn.Flatten))
        if not (known and vectors):
            return None
        refuse_active_noise(model)
        seen: dict[int, str] = {}
        for name, module in modules:
            if isinstance(module, nn.Linear):
                weight = _weight_name(name)
                first = seen.setdefault(id(module.weight), weight)
                if first != weight:
                    raise NotImplementedError(
                        f"{weight} shares its tensor with {first}: tied weights are not covered"
                    )
        return cls(modules, compute_dtype(model), ends)

    @property
    def has_residual(self) -> bool:
        """Whether some block is more than its linearization.

        So it is if a smooth activation comes after a trainable weight.
        """
        trainable = False
        for _, module in self.modules:
            if isinstance(module, nn.Linear):
                trainable = trainable or module.weight.requires_grad
            elif trainable and is_elementwise(module) and not is_piecewise_linear(module):
                return True
        return False

    def outputs(
        self, inputs: Inputs, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the logits with the graph from the weights, and these by name.

        Parameters are those of the state.
        """
        assert isinstance(inputs, Tensor)
        linear = (name for name, module in self.modules if isinstance(module, nn.Linear))
        weights = {n: state[n].detach().requires_grad_() for n in map(_weight_name, linear)}
        return self.forward(inputs, {**state, **weights})[1], weights

    def forward(
        self, inputs: Tensor, given: Mapping[str, Tensor] | None = None
    ) -> tuple[list[Stage], Float[Tensor, "b c"]]:
        """Run the network; give the stages from input to output, and the logits.

        Parameters are the modules' own where none are given for them, by name.

        Raises:
            ValueError: the input of a Linear layer is not of shape (B, fan_in).
        """
        stages: list[Stage] = []
        dtype, given = self.dtype, given or {}
        z = inputs.to(dtype) if inputs.dtype.is_floating_point else inputs
        for name, module in self.modules:
            if isinstance(module, nn.Linear):
                if z.ndim != 2 or z.shape[1] != module.in_features:
                    raise ValueError(
                        f"{name or 'Linear'} got an input of shape {tuple(z.shape)}, "
                        f"expected (batch, {module.in_features})"
                    )
                own = _weight_name(name)
                weight = given.get(own, module.weight).to(dtype)
                bias = given.get(own.removesuffix("weight") + "bias", module.bias)
                trainable = module.weight.requires_grad
                stages.append(LinearStage(own, weight, z, trainable))
                bias = None if bias is None else bias.to(dtype)
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


def _is_log_softmax(module: nn.Module) -> bool:
    return type(module) is nn.LogSoftmax and module.dim in (1, -1)


def _weight_name(module: str) -> str:
    return f"{module}.weight" if module else "weight"


def flat_modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Flatten nested `nn.Sequential`; leave out `nn.Identity`."""
    if type(module) is nn.Sequential:
        # Not named_children(), which passes over a module that comes a second time.
        for child_name, child in module._modules.items():
            assert child is not None  # nn.Sequential holds no empty places
            yield from flat_modules(child, f"{name}.{child_name}" if name else child_name)
    elif type(module) is not nn.Identity:
        yield name, module
