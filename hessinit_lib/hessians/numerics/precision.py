"""Faster matrix products: at lower precision, by oneDNN, or in one thread, as suits their size."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Held while settings of the whole process are changed: two calls that overlap would put them
# back in the wrong order, and each would find those of the other.
PROCESS = threading.RLock()

# Tolerance from which the rounding of inputs to bfloat16 (relative 2^-9, at random, so that
# it averages out: 1e-5 to 1e-4 in a norm) is small beside what is asked for.
ROUNDING = 1e-3

# Multiplications from which products are worth rounding: smaller ones gain little, and the
# rounding of their inputs averages out less.
_LARGE = 1 << 26

# Tolerance from which whole passes may be rounded to TF32: their errors are of one sign.
_PASSES = 0.03

# Where products of float32 may be rounded, and what stands for no rounding there.
_cuda, _cudnn, _mkldnn = (vars(torch.backends)[name] for name in ("cuda", "cudnn", "mkldnn"))
_NEW = hasattr(_cuda.matmul, "fp32_precision")
_NAME, _FULL = ("fp32_precision", "ieee") if _NEW else ("allow_tf32", False)
_OWNERS = [_cuda.matmul, _cudnn]
if _NEW:
    _OWNERS = [_cuda.matmul, _mkldnn.matmul]
    _OWNERS += [getattr(m, n) for m in (_cudnn, _mkldnn) for n in ("conv", "rnn")]

# Multiplications from which oneDNN is faster than MKL where it is at all: its calls take longer.
_WORTH_ONEDNN = 1 << 21

# Multiplications from which a product is worth several threads, which wait for each other.
_WORTH_THREADS = 1 << 22


@contextlib.contextmanager
def fast_products(dtype: torch.dtype, tolerance: float, multiplications: int) -> Iterator[bool]:
    """Let large float32 products round their inputs: to bfloat16 on a CPU, TF32 on a GPU.

    Sums are still accumulated in float32. Only on a CPU with matrix units (AMX) and on
    CUDA; the process-wide setting is put back at the end, so products of other threads may
    be rounded in the meantime. On other CPUs with AVX-512 nothing is rounded, but the same
    setting has products made by oneDNN in place of MKL: on AMD's twice as fast. Small products are
    made in one thread, see `few_threads`.

    Args:
        dtype: type of the computation; nothing is changed for float64.
        tolerance: relative error allowed for the result; nothing is rounded below 1e-3.
        multiplications: of the product; nothing is rounded below 2^26.

    Yields:
        Whether products may be rounded.

    Example:
        >>> a = torch.full((256, 256), 1 / 3)
        >>> with fast_products(torch.float32, 0.01, 2**26):
        ...     error = (a @ a - 256 / 9).abs().max() / 256 * 9
        >>> bool(error < 0.01), torch.equal(a @ a, torch.mm(a, a))
        (True, True)
    """
    rounded = tolerance >= ROUNDING and multiplications >= _LARGE
    by_onednn = multiplications >= _WORTH_ONEDNN and onednn_keeps_float32()
    by_onednn = by_onednn or (rounded and cpu_has_matrix_units())
    with few_threads(multiplications):
        if dtype != torch.float32 or not (rounded or by_onednn):
            yield False
            return
        with _float32_products(tf32=rounded, onednn=by_onednn):
            yield rounded


@contextlib.contextmanager
def few_threads(multiplications: int) -> Iterator[None]:
    """Compute in one thread, if the largest of many products takes so few multiplications.

    Example:
        >>> with few_threads(1000):
        ...     torch.get_num_threads()
        1
    """
    with PROCESS:
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1 if multiplications < _WORTH_THREADS else threads)
            yield
        finally:
            torch.set_num_threads(threads)


def narrowed(factor: Float[Tensor, "*shape"], rounded: bool) -> Float[Tensor, "*shape"]:
    """Round a factor of a product to bfloat16 where that is allowed and `rounding_pays`.

    Setting it once is cheaper than having each product round it, and AVX-512 BF16, other than
    AMX, is not used at all for products of float32. The product is rounded then, too: this is
    for those of which many are summed up.
    """
    return factor.bfloat16() if rounded and rounding_pays(factor) else factor


def may_round(like: Tensor, tolerance: float) -> bool:
    """Tell whether a tolerance allows rounding to bfloat16, and products gain from it."""
    return tolerance >= ROUNDING and rounding_pays(like)


def rounding_pays(like: Tensor) -> bool:
    """Tell whether products of such tensors are faster if these are rounded to bfloat16."""
    on_cpu = like.device.type == "cpu" and cpu_multiplies_bfloat16()
    return on_cpu and like.dtype == torch.float32


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Compute in float32 what is float32, whatever the caller, or torch by itself, rounds to TF32.

    By itself torch rounds what convolutions on a GPU are given, to 10 bits.
    """
    rounded = [owner for owner in _OWNERS if getattr(owner, _NAME) in ("tf32", "bf16", True)]
    with _set(dict.fromkeys(rounded, _FULL)):
        yield


@contextlib.contextmanager
def rounded_passes(tolerance: float) -> Iterator[None]:
    """Let a GPU round to TF32 in forward and backward passes, where a tolerance of 0.03 allows it.

    Norms are off by some 1e-3 then.
    """
    allowed = tolerance >= _PASSES and torch.cuda.is_available()
    with _float32_products(tf32=allowed, onednn=False, convolutions=allowed):
        yield


@contextlib.contextmanager
def _float32_products(*, tf32: bool, onednn: bool, convolutions: bool = False) -> Iterator[None]:
    """Set how float32 products are made, on a GPU and on the CPU, and put it back."""
    rounded = [_cuda.matmul] if tf32 else []
    if convolutions:
        rounded += [_cudnn.conv, _cudnn.rnn] if _NEW else [_cudnn]
    values: dict[Any, Any] = dict.fromkeys(rounded, "tf32" if _NEW else True)
    if onednn and _NEW:  # before torch 2.9 there is one setting for both devices
        values[_mkldnn.matmul] = "bf16"
    with _set(values):
        yield


@contextlib.contextmanager
def _set(values: Mapping[Any, Any]) -> Iterator[None]:
    """Set the precision of some owners, and put it back."""
    found = {owner: getattr(owner, _NAME) for owner in values}
    try:
        for owner, value in values.items():
            setattr(owner, _NAME, value)
        yield
    finally:
        for owner, value in found.items():
            setattr(owner, _NAME, value)


@contextlib.contextmanager
def without_callers_modes() -> Iterator[None]:
    """Compute in the model's own type, with gradients, whatever modes the caller has set.

    Second derivatives of a pass under `torch.autocast` would be mostly rounding, and under
    `torch.inference_mode` there are none. As a decorator, it does so for a whole function.
    Calls from several threads wait for each other: they change settings of the process.

    Example:
        >>> with torch.autocast("cpu"), without_callers_modes():
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    with PROCESS, contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(full_precision())
        yield


def cpu_has_matrix_units() -> bool:
    """Tell whether the processor has tiles for products in bfloat16 (AMX)."""
    return _cpu_has("_is_amx_tile_supported")


def cpu_multiplies_bfloat16() -> bool:
    """Tell whether the processor multiplies bfloat16 faster than float32 (AMX, AVX-512 BF16)."""
    return cpu_has_matrix_units() or _cpu_has("_is_avx512_bf16_supported")


@functools.cache
def onednn_keeps_float32() -> bool:
    """Tell whether oneDNN, allowed to round float32 products to bfloat16, does not do so.

    So it is on processors without matrix units. It is tried out, not assumed.
    """
    if cpu_has_matrix_units() or not _cpu_has("_is_avx512_supported"):
        return False
    left = torch.linspace(0, 1, 64 * 64, device="cpu").view(64, 64)
    with _float32_products(tf32=False, onednn=True):
        product = left @ left
    exact = left.double() @ left.double()
    return bool((product / exact - 1).abs().max() < 1e-5)


def _cpu_has(check: str) -> bool:
    supported = getattr(torch.cpu, check, None)
    return supported is not None and supported()
