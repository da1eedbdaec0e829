"""A model as a function of chosen parameters, called so that nothing of it changes.

Both routes that take any `nn.Module` go through here: the graph is built on detached
parameters and copied buffers, so gradients, running statistics, modes and the global random
state stay as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from hessinit_lib.hessians.chain.network import compute_dtype, refuse_active_noise

FROZEN = (
    "batch normalization in training mode couples the samples: these are the norms of the "
    "network with its statistics frozen at this batch's"
)


def plain(model: nn.Module) -> nn.Module:
    """Give the module behind `torch.compile`, or the module itself."""
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


class PureModel:
    """A model with a state of its own.

    Batch normalization in training mode uses the statistics of the first batch it is called
    with, held constant: in the derivatives, and for later calls on parts of that batch.

    Args:
        model: any module, compiled or not.
        trainable: names of the parameters that derivatives are asked for.

    Attributes:
        state: parameters and buffers by name, detached, in `compute_dtype`; those of
            `trainable` require a gradient.
        noisy: whether a call has drawn random numbers, such as the mask of a dropout that
            is no module: it is fixed in the graph of that call, and another in the next.

    Raises:
        NotImplementedError: active dropout; the message names it.

    Example:
        >>> pure = PureModel(nn.Linear(3, 2), ["weight"])
        >>> with pure.running():
        ...     out = pure(torch.ones(4, 3))
        >>> out.requires_grad, pure.state["bias"].requires_grad
        (True, False)
    """

    def __init__(self, model: nn.Module, trainable: Iterable[str]) -> None:
        self.module = plain(model)
        refuse_active_noise(self.module)
        self._dtype = compute_dtype(self.module)
        self.state: dict[str, Tensor] = {
            name: self._convert(value) for name, value in self.module.named_parameters()
        }
        for name in trainable:
            self.state[name].requires_grad_()  # a detached tensor: the parameter keeps its flag
        self.state.update(
            (name, self._convert(value).clone()) for name, value in self.module.named_buffers()
        )
        self.noisy = False
        self._statistics: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def _convert(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def __call__(self, inputs: Tensor) -> Any:
        """Call the model; with a graph if gradients are enabled. Only while `running`."""
        cast = inputs.to(self._dtype) if inputs.is_floating_point() else inputs
        before = torch.get_rng_state()
        outputs = torch.func.functional_call(self.module, self.state, (cast,))
        self.noisy |= not torch.equal(torch.get_rng_state(), before)
        return outputs

    @contextmanager
    def running(self) -> Iterator[None]:
        """Prepare for calls and for derivatives of any order of what they give."""
        batch_norms = [
            module
            for module in self.module.modules()
            if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
        ]
        if batch_norms and not self._statistics:
            warnings.warn(FROZEN, UserWarning, stacklevel=4)
        cards = sorted({value.device.index or 0 for value in self.state.values() if value.is_cuda})
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=cards))
            # Fused attention and recurrent layers have no second derivative.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(torch.backends.cudnn.flags(enabled=not self._recurrent()))
            if self._compiled():  # hooks and second derivatives are for eager code
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for module in batch_norms:
                handle = module.register_forward_hook(self._freeze, prepend=True)
                stack.callback(handle.remove)
            yield

    def _compiled(self) -> bool:
        return any(
            hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
            for module in self.module.modules()
        )

    def _recurrent(self) -> bool:
        return any(isinstance(module, nn.RNNBase) for module in self.module.modules())

    def _freeze(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Normalize once more, with constants."""
        assert isinstance(module, _BatchNorm)
        z = args[0]
        if module not in self._statistics:
            axes = [axis for axis in range(z.ndim) if axis != 1]
            variance, mean = torch.var_mean(z.detach(), axes, correction=0)
            self._statistics[module] = (mean, variance)
        mean, variance = self._statistics[module]
        return F.batch_norm(z, mean, variance, module.weight, module.bias, eps=module.eps)
