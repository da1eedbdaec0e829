"""Faster matrix products at lower precision, where they are accurate enough."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

# Tolerance from which the rounding of inputs to bfloat16 (relative 2^-9, at random, so that
# it averages out: 1e-5 to 1e-4 in a norm) is small beside what is asked for.
ROUNDING = 1e-3

# Multiplications from which products are worth it: smaller ones gain little, and the rounding
# of their inputs averages out less.
_LARGE = 1 << 26


@contextlib.contextmanager
def fast_products(dtype: torch.dtype, tolerance: float, multiplications: int) -> Iterator[bool]:
    """Let large float32 products round their inputs: to bfloat16 on a CPU, TF32 on a GPU.

    Sums are still accumulated in float32. Only on a CPU with matrix units (AMX) and on
    CUDA; the process-wide setting is put back at the end, so products of other threads may
    be rounded in the meantime.

    Args:
        dtype: type of the computation; nothing is changed for float64.
        tolerance: relative error allowed for the result; nothing is changed below 1e-3.
        multiplications: of the product; nothing is changed below 2^26.

    Yields:
        Whether products may be rounded.

    Example:
        >>> a = torch.full((256, 256), 1 / 3)
        >>> with fast_products(torch.float32, 0.01, 2**26):
        ...     error = (a @ a - 256 / 9).abs().max() / 256 * 9
        >>> bool(error < 0.01), torch.equal(a @ a, torch.mm(a, a))
        (True, True)
    """
    if dtype != torch.float32 or tolerance < ROUNDING or multiplications < _LARGE:
        yield False
    elif hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        mkldnn: Any = torch.backends.mkldnn
        settings: list[tuple[Any, str]] = [(torch.backends.cuda.matmul, "tf32")]
        if cpu_has_matrix_units():
            settings.append((mkldnn.matmul, "bf16"))
        found = [owner.fp32_precision for owner, _ in settings]
        try:
            for owner, precision in settings:
                owner.fp32_precision = precision
            yield True
        finally:
            for (owner, _), precision in zip(settings, found, strict=True):
                owner.fp32_precision = precision
    else:  # before torch 2.9: one setting for both
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("medium" if cpu_has_matrix_units() else "high")
            yield True
        finally:
            torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Compute in the model's own type, also where the caller trains with `torch.autocast`.

    Second derivatives of a pass in bfloat16 would be mostly rounding. As a decorator, it does
    so for a whole function.

    Example:
        >>> with torch.autocast("cpu"), without_autocast():
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def cpu_has_matrix_units() -> bool:
    """Tell whether the processor multiplies bfloat16 faster than float32 (AMX)."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return supported is not None and supported()
