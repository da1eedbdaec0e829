"""A model as a function of chosen parameters, called so that nothing of it changes.

Both routes that take any `nn.Module` go through here: the graph is built on detached
parameters and copied buffers, so gradients, running statistics, modes and the global random
state stay as they are.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from hessinit_lib.errors import first_line
from hessinit_lib.hessians.equal_functions import equal_functions
from hessinit_lib.hessians.inputs import Inputs, fresh, tensors_of
from hessinit_lib.hessians.isolation import (
    attribute,
    cards,
    dense_gradients,
    random_state_kept,
    random_states,
)
from hessinit_lib.hessians.numerics.precision import PROCESS

NOISE = (_DropoutNd, nn.RReLU)

FROZEN = (
    "batch normalization in training mode couples the samples: these are the norms of the "
    "network with its statistics frozen at this batch's"
)


def by_batch_statistics(modules: Iterable[nn.Module]) -> list[_BatchNorm]:
    """List the batch normalization that uses the statistics of the batch."""
    return [
        module
        for module in modules
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
    ]


def unwrapped(model: nn.Module) -> nn.Module:
    """Give the module behind `torch.compile`, `DataParallel` and `DistributedDataParallel`.

    Raises:
        ValueError: it is no module.

    Example:
        >>> type(unwrapped(nn.DataParallel(nn.Linear(2, 1)))).__name__
        'Linear'
    """
    if not isinstance(model, nn.Module):
        kind = model.__name__ if isinstance(model, type) else type(model).__name__
        raise ValueError(f"model: got {kind}, expected a torch.nn.Module")
    while True:
        parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
        inner = model.module if parallel else getattr(model, "_orig_mod", model)
        assert isinstance(inner, nn.Module)
        if inner is model:
            return model
        model = inner


def refuse_active_noise(model: nn.Module) -> None:
    """Refuse modules that draw random numbers in this mode.

    Raises:
        NotImplementedError: there is one; the message names it.
    """
    for name, module in model.named_modules():
        if module.training and isinstance(module, NOISE) and getattr(module, "p", 1):
            raise NotImplementedError(
                f"{name or 'the model'} ({type(module).__name__}) is active: "
                "its mask changes with every call; call model.eval() first"
            )


def calls_only_forward(module: nn.Module) -> bool:
    """Tell whether a call of a module is its class's `forward` on its own parameters alone.

    Hooks, a `forward` of this one instance, and weights that hooks recompute make it another
    function.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = calls_only_forward(layer)
        >>> _ = layer.register_forward_hook(lambda module, inputs, output: 2 * output)
        >>> before, calls_only_forward(layer)
        (True, False)
    """
    hooked = any(
        getattr(owner, prefix + name, None)
        for owner, prefix in ((module, "_"), (torch.nn.modules.module, "_global_"))
        for name in ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    )
    owned = module._parameters.keys() >= {"weight", "bias"} or not isinstance(module, nn.Linear)
    return owned and not hooked and "forward" not in vars(module)


def compute_dtype(model: nn.Module) -> torch.dtype:
    """Give the type to compute in: that of the parameters, at least float32."""
    kinds = {parameter.dtype for parameter in model.parameters()}
    return torch.float64 if torch.float64 in kinds else torch.float32


def state_of(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Detach parameters and copy buffers, in the type to compute in."""
    buffers = {name for name, _ in model.named_buffers()}
    named = itertools.chain(model.named_parameters(), model.named_buffers())
    state = {name: value.detach() for name, value in named}
    copied: dict[str, Tensor] = {}
    for name, value in state.items():
        kind = dtype if value.is_floating_point() else value.dtype
        # What was made under inference_mode can be part of a graph only as a copy.
        if name in buffers or value.is_inference() or value.dtype != kind:
            copied[name] = torch.empty_like(value, dtype=kind)
    if copied:
        lists: Any = torch  # one launch on a GPU
        lists._foreach_copy_([*copied.values()], [state[name] for name in copied])
    return {**state, **copied}


def calling(model: nn.Module) -> Callable[[Mapping[str, Tensor], tuple, dict[str, Any]], Any]:
    """Make the function of (tensors by name, arguments, keywords) that calls a model with these.

    Left to itself, `torch.func.functional_call` swaps the tensors of a module once for each name
    of the module, and leaves one that stands in several places with the tensors of the call.
    So each place is named once, with the first name of the tensor there.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> calling(model)({"weight": torch.ones(1, 2)}, (torch.ones(2),), {}).item()
        2.0
    """
    named = itertools.chain(model.named_parameters(), model.named_buffers())
    names = {id(tensor): name for name, tensor in named}
    places = {
        f"{prefix}.{name}" if prefix else name: names[id(tensor)]
        for prefix, module in model.named_modules()
        for name, tensor in itertools.chain(module._parameters.items(), module._buffers.items())
        if tensor is not None
    }

    def call(state: Mapping[str, Tensor], arguments: tuple, keywords: dict[str, Any]) -> Any:
        held = {place: state[name] for place, name in places.items()}
        return torch.func.functional_call(model, held, arguments, keywords, tie_weights=False)

    return call


class PureModel:
    """A model with a state of its own.

    Batch normalization in training mode uses the statistics of the first batch it is called
    with, held constant: in the derivatives, and for later calls on parts of that batch.

    Args:
        model: any module, as `unwrapped` gives it.
        trainable: names of the parameters that derivatives are asked for.
        dtype: type to compute in, `compute_dtype` if None.

    Attributes:
        dtype: type to compute in.
        state: parameters and buffers by name, detached, in that type; those of `trainable`
            require a gradient.
        noisy: whether a call has drawn random numbers, such as the mask of a dropout that
            is no module: it is fixed in the graph of that call, and another in the next.
        hooked: whether a call has put a hook on a tensor.

    Raises:
        NotImplementedError: active dropout; the message names it.

    Example:
        >>> pure = PureModel(nn.Linear(3, 2), ["weight"])
        >>> with pure.running():
        ...     out = pure(torch.ones(4, 3))
        >>> out.requires_grad, pure.state["bias"].requires_grad
        (True, False)
    """

    def __init__(
        self, model: nn.Module, trainable: Iterable[str], dtype: torch.dtype | None = None
    ) -> None:
        self.module = model
        refuse_active_noise(self.module)
        self.dtype = dtype or compute_dtype(self.module)
        self.state = state_of(self.module, self.dtype)
        for name in trainable:
            self.state[name].requires_grad_()  # a detached tensor: the parameter keeps its flag
        self.noisy = self.hooked = False
        self._cards = cards(self.state.values())
        self._call = calling(model)
        self._last = _LogSoftmax()
        self._statistics: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def __call__(self, inputs: Inputs) -> Any:
        """Call the model; with a graph if gradients are enabled. Only while `running`.

        It gets a copy of the inputs, so that it may write into them.
        """
        arguments, keywords = fresh(inputs, self.dtype)
        before = random_states(self._cards)
        with _LogSoftmax() as self._last, plain_errors(inputs):
            outputs = self._call(self.state, arguments, keywords)
        self.hooked |= self._last.hooked
        self.noisy |= not all(map(torch.equal, random_states(self._cards), before))
        return outputs

    def logits(self, inputs: Inputs) -> tuple[Any, int | None]:
        """Call the model, and undo a log-softmax that is the last thing it does.

        Returns:
            What it gave, or the logits and the axis of the log-softmax.
        """
        outputs = self(inputs)
        last, self._last = self._last, _LogSoftmax()
        return (last.logits, last.axis) if last.result is outputs else (outputs, None)

    @contextmanager
    def running(self, *, twice: bool = True, training: bool = False) -> Iterator[None]:
        """Prepare for calls and for derivatives of what they give: of any order, if `twice`.

        If not, recurrent layers are computed step by step: one operation for all steps does not
        tell what comes in and goes out at each.
        For `training`, statistics of batch normalization and sparse gradients are as found there.
        """
        batch_norms = by_batch_statistics(self.module.modules())
        freeze = _normalize if training else self._freeze
        if not training and batch_norms and not self._statistics:
            warnings.warn(FROZEN, UserWarning, stacklevel=4)
        with PROCESS, ExitStack() as stack:
            stack.enter_context(random_state_kept(self.state.values()))
            # Fused attention and recurrent layers have no second derivative.
            if twice:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if self.recurrent:
                stack.enter_context(attribute(torch.backends.cudnn, "enabled", False))
                if not twice and not training:
                    stack.enter_context(_StepByStep())
            stack.enter_context(equal_functions(twice=twice))
            # Hooks and second derivatives are for eager code, also where a function is compiled.
            if self._compiled() or "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for module in batch_norms:
                handle = module.register_forward_hook(freeze, prepend=True)
                stack.callback(handle.remove)
                if isinstance(module, nn.SyncBatchNorm):  # other processes need not take part
                    stack.enter_context(attribute(module, "training", False))
            for module in _iterating(self.module.modules()):
                # Power iterations go on at each call: these are held.
                stack.enter_context(attribute(module, "training", False))
            if not training:
                stack.enter_context(dense_gradients(self.module.modules()))
            yield

    def _compiled(self) -> bool:
        return any(
            hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
            for module in self.module.modules()
        )

    @property
    def recurrent(self) -> bool:
        """Whether there are recurrent layers with fused kernels."""
        return any(isinstance(module, nn.RNNBase) for module in self.module.modules())

    def _freeze(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Normalize once more, with constants."""
        assert isinstance(module, _BatchNorm)
        z = args[0]
        if module not in self._statistics:
            axes = [axis for axis in range(z.ndim) if axis != 1]
            with torch._C.DisableTorchFunction():  # which constants are meant: no detach() to find
                variance, mean = torch.var_mean(z.detach(), axes, correction=0)
            self._statistics[module] = (mean, variance)
        mean, variance = self._statistics[module]
        return F.batch_norm(z, mean, variance, module.weight, module.bias, eps=module.eps)


def _normalize(module: _BatchNorm, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Normalize once more, with the statistics of this process's samples."""
    return F.batch_norm(args[0], None, None, module.weight, module.bias, True, eps=module.eps)


def _iterating(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Find those that normalize a weight by its spectral norm, in either way of torch."""
    return [
        module
        for module in modules
        if type(module).__name__ == "_SpectralNorm"
        or any(type(hook).__name__ == "SpectralNorm" for hook in module._forward_pre_hooks.values())
    ]


class _StepByStep(TorchFunctionMode):
    """Let recurrent layers be computed by operations on one time step each."""

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in _RECURRENT:
            with attribute(torch.backends.mkldnn, "enabled", False):
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


class _LogSoftmax(TorchFunctionMode):
    """Note the last log-softmax that is computed: its axis, what it was given, what it gave."""

    axis: int | None = None
    logits: Tensor | None = None
    result: object = 0  # not None, which a model could give
    hooked = False  # whether a hook was put on a tensor

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.hooked |= func is Tensor.register_hook
        result = func(*args, **(kwargs or {}))
        if func in _LOG_SOFTMAXES and len(args) > 0 and result.dtype == args[0].dtype:
            axis = args[1] if len(args) > 1 else (kwargs or {}).get("dim")
            if isinstance(axis, int):  # torch still guesses one that is left out
                self.axis, self.logits, self.result = axis % result.ndim, args[0], result
        return result


_LOG_SOFTMAXES = (F.log_softmax, torch.log_softmax, torch.special.log_softmax, Tensor.log_softmax)


@contextmanager
def plain_errors(inputs: Inputs) -> Iterator[None]:
    """Say in one line what a model raises when it is called, and for which inputs.

    Raises:
        ValueError: the model does not take these inputs.

    Example:
        >>> with plain_errors(torch.ones(2, 4)):
        ...     _ = nn.Linear(3, 1)(torch.ones(2, 4))
        Traceback (most recent call last):
        ValueError: the model refused inputs of shape (2, 4), torch.float32: ...
    """
    try:
        yield
    except (NotImplementedError, torch.OutOfMemoryError):
        raise
    except _CALL_ERRORS as error:
        shapes = [f"{tuple(x.shape)}, {x.dtype}" for x in tensors_of(inputs)]
        raise ValueError(
            f"the model refused inputs of shape {'; '.join(shapes)}: {first_line(error)}"
        ) from error


_CALL_ERRORS = (RuntimeError, TypeError, LookupError, AttributeError, AssertionError)


def one_tensor(outputs: object, *, graph: bool = True) -> Tensor:
    """Make sure that a model gave one tensor, with a graph if gradients are enabled.

    Raises:
        ValueError: something else; the message says what, and what to do.

    Example:
        >>> one_tensor({"logits": torch.zeros(2)})
        Traceback (most recent call last):
        ValueError: the model gave a dict, expected one tensor: wrap it in a module whose ...
    """
    if isinstance(outputs, Tensor):
        if graph and torch.is_grad_enabled() and not outputs.requires_grad:
            raise ValueError(
                f"the model's outputs ({outputs.dtype}) do not depend on any trainable weight: "
                "expected a function that can be differentiated, with no detach, no_grad or "
                "argmax at its end"
            )
        return outputs
    raise ValueError(
        f"the model gave a {type(outputs).__name__}, expected one tensor: wrap it in a module "
        "whose forward gives one of its parts, such as its .logits"
    )
