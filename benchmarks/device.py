"""What the device itself can do: rates of matrix products and copies, and what TF32 does.

The rates are the roofline under our times: a call that takes as long as its arithmetic at the
rate of the device's products is as fast as it can be.

usage: python -m benchmarks.device [--device cuda] [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.recording import Recording, add_recording
from benchmarks.timing import interleave
from hessinit_book.data import load

SIZES = {"cpu": 1024, "cuda": 8192}  # of the matrices that are multiplied
COPIED = {"cpu": 1 << 26, "cuda": 1 << 30}  # numbers that are copied: far more than caches hold
ROUNDED = 1024.75  # takes 12 bits: TF32 has 11, rounded to the nearest or cut off


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Let a GPU round the factors of float32 products to TF32, or not."""
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    if hasattr(cudnn, "conv"):
        settings, name, values = (matmul, cudnn.conv), "fp32_precision", ("ieee", "tf32")
    else:  # before torch 2.9
        settings, name, values = (matmul, cudnn), "allow_tf32", (False, True)
    before = [getattr(setting, name) for setting in settings]
    for setting in settings:
        setattr(setting, name, values[on])
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setattr(setting, name, value)


def precisions(device: torch.device) -> dict[str, tuple[torch.dtype, bool]]:
    """Name what products can be made in: the type of the factors, and whether TF32 is on."""
    found = {"float32": (torch.float32, False), "bfloat16": (torch.bfloat16, False)}
    return found | ({"tf32": (torch.float32, True)} if device.type == "cuda" else {})


@lru_cache(maxsize=8)
def rates(
    device: torch.device, size: int | None = None, copied: int | None = None, budget: float = 2.0
) -> dict[str, float]:
    """Measure matrix products [GFLOP/s] by precision, and a copy, read and written [GB/s].

    Args:
        device: the device.
        size: of the matrices; None: by device.
        copied: numbers that are copied; None: by device.
        budget: time for all [s].
    """
    n, count = size or SIZES[device.type], copied or COPIED[device.type]
    stream = torch.Generator().manual_seed(0)
    drawn = torch.randn(n, n, generator=stream).to(device)
    source = torch.zeros(count, device=device)
    target = torch.ones_like(source)
    actions: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    for name, (dtype, rounded) in precisions(device).items():
        factor = drawn.to(dtype)

        def multiply(factor: torch.Tensor = factor, rounded: bool = rounded) -> None:
            with tf32(rounded):
                torch.mm(factor, factor)

        actions[name] = multiply
    least = interleave(actions, budget)
    found = {name: 2 * n**3 / took / 1e9 for name, took in least.items() if name != "copy"}
    return found | {"copy": 2 * 4 * count / least["copy"] / 1e9}


def rounding(device: torch.device) -> dict[str, Any]:
    """Tell what TF32 makes of factors, in products and in convolutions: rounds, cuts off, nothing.

    Returns:
        For each the word, and the relative error of a product of random numbers with TF32 and
        without, against float64 on the CPU.
    """
    stream = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 512, generator=stream) for _ in range(2))
    exact = left.double() @ right.double()
    images, kernels = (torch.randn(*s, generator=stream) for s in ((8, 64, 16, 16), (64, 64, 3, 3)))
    convolved = F.conv2d(images.double(), kernels.double())
    found: dict[str, Any] = {}
    for on in (True, False):
        with tf32(on):
            ones = torch.eye(512).to(device)
            made = (torch.full((512, 512), ROUNDED).to(device) @ ones)[0, 0].item()
            errors = {
                "product": (left.to(device) @ right.to(device)).cpu() - exact,
                "convolution": F.conv2d(images.to(device), kernels.to(device)).cpu() - convolved,
            }
        whole = {"product": exact, "convolution": convolved}
        key = "tf32" if on else "float32"
        found[key] = {name: (e.norm() / whole[name].norm()).item() for name, e in errors.items()}
        found[key]["does"] = {1025.0: "rounds", 1024.0: "cuts off"}.get(made, "nothing")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device")
    add_recording(parser)
    chosen = parser.parse_args(arguments)
    recording = Recording("device", chosen)
    small = {"size": 128, "copied": 1 << 16, "budget": 0.1} if chosen.quick else {}
    found = {"rates": rates(chosen.device, **small), "rounding": rounding(chosen.device)}
    for name, rate in found["rates"].items():
        print(f"{name:10}{rate:12.1f} {'GB/s' if name == 'copy' else 'GFLOP/s'}")
    for name, errors in found["rounding"].items():
        shown = ", ".join(f"{what} {error:.1e}" for what, error in errors.items() if what != "does")
        print(f"{name:10}{errors['does']:>12}; relative errors: {shown}")
    recording.write(found, {"quick": chosen.quick}, load("mnist", sample=True).info)


if __name__ == "__main__":
    main()
