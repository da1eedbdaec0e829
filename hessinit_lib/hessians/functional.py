"""A model as a function of chosen parameters, called so that nothing of it changes.

Both routes that take any `nn.Module` go through here: the graph is built on detached
parameters and copied buffers, so gradients, running statistics, modes and the global random
state stay as they are.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

FROZEN = (
    "batch normalization in training mode couples the samples: these are the norms of the "
    "network with its statistics frozen at this batch's"
)


def unwrap_compiled(model: nn.Module) -> nn.Module:
    """Give the module behind `torch.compile`, or the module itself."""
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


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


class PureModel:
    """A model with a state of its own.

    Batch normalization in training mode uses the statistics of the first batch it is called
    with, held constant: in the derivatives, and for later calls on parts of that batch.

    Args:
        model: any module; of a compiled one what `unwrap_compiled` gives.
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
        self.module = model
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


@contextmanager
def without_noise(model: nn.Module) -> Iterator[None]:
    """Put all of a model but its batch normalization in evaluation mode, and back.

    At the start of training, running statistics say nothing yet: with them, a network
    with batch normalization is another one than that which is trained. So its batch
    statistics stay, and what `layer_hessians` warns of is known here.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
        >>> with without_noise(model):
        ...     [module.training for module in model]
        [True, False]
        >>> model[1].training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            if not isinstance(module, _BatchNorm):
                module.training = False
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=re.escape(FROZEN), category=UserWarning)
            yield
    finally:
        for module, training in modes:
            module.training = training


Inputs = Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]
"""What a model takes: one tensor, several in order, or several by keyword."""

PREFIX = "module."
"""What stands before the names of the parameters of a model in a bundle."""


class Bundle(nn.Module):
    """A model with a batch of its inputs, which takes the places of samples in that batch.

    What computes Hessians hands over one tensor, and parts of it where memory is short. A
    bundle takes those rows of every input. The inputs are buffers, so that whoever computes
    in another precision converts them with the parameters.

    Args:
        model: takes several tensors whose first axis is the batch.
        inputs: in order, or by keyword.

    Example:
        >>> model = nn.Bilinear(2, 3, 1)
        >>> bundle = Bundle(model, (torch.ones(4, 2), torch.ones(4, 3)))
        >>> bundle(torch.arange(4)).shape, [name for name, _ in bundle.named_parameters()]
        (torch.Size([4, 1]), ['module.weight', 'module.bias'])
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.module = model
        self.training = model.training  # a new module is in training mode, its model may not be
        self._keywords: list[str | None] = []
        named = (
            inputs.items() if isinstance(inputs, Mapping) else ((None, tensor) for tensor in inputs)
        )
        for index, (keyword, tensor) in enumerate(named):
            self._keywords.append(keyword)
            self.register_buffer(f"input_{index}", tensor, persistent=False)

    def forward(self, places: Int64[Tensor, " b"]) -> object:
        """Call the model with some rows of its inputs."""
        rows = [self.get_buffer(f"input_{i}")[places] for i in range(len(self._keywords))]
        ordered = [row for key, row in zip(self._keywords, rows, strict=True) if key is None]
        named = {key: row for key, row in zip(self._keywords, rows, strict=True) if key is not None}
        return self.module(*ordered, **named)


def single_input(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Tensor, str]:
    """Make a model of one input of any model.

    Args:
        model: any module.
        inputs: what it takes; tensors with as many rows.

    Returns:
        A model, its one input, shape (B, ...), and what now stands before names of parameters.

    Raises:
        ValueError: no tensors, or not as many rows in each; the message names them.

    Example:
        >>> two = torch.ones(4, 2), torch.ones(4, 3)
        >>> _, rows, prefix = single_input(nn.Bilinear(2, 3, 1), two)
        >>> rows.tolist(), prefix
        ([0, 1, 2, 3], 'module.')
    """
    if isinstance(inputs, Tensor):
        return model, inputs, ""
    if not isinstance(inputs, Mapping | tuple | list) or not inputs:
        raise ValueError(
            f"inputs: got {type(inputs).__name__}, expected a tensor, or tensors in a tuple or dict"
        )
    tensors = list(inputs.values() if isinstance(inputs, Mapping) else inputs)
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or tensor.ndim == 0:
            raise ValueError(
                f"inputs: got {tensor!r} among them, expected tensors of shape (B, ...)"
            )
    lengths = [len(tensor) for tensor in tensors]
    if len(set(lengths)) > 1:
        raise ValueError(f"inputs: got {lengths} samples, expected as many in each")
    places = torch.arange(lengths[0], device=tensors[0].device)
    return Bundle(model, inputs), places, PREFIX
