"""Reports of a tracker, sent to any logger.

Any logger will do that has Lightning's method `log_metrics(metrics, step)` (its loggers for
CSV, TensorBoard, MLflow, Weights & Biases), TensorBoard's `add_scalar(tag, value, step)` or
`log(metrics, step=step)`, as a run of Weights & Biases has.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection

from hessinit_lib.hessians.report import HessianReport

QUANTITIES = ("frobenius", "spectral", "trace")


def scalars(report: HessianReport, prefix: str = "hessian") -> dict[str, float]:
    """Flatten a report to named numbers, without those that were not computed.

    Args:
        report: of one step.
        prefix: what the names begin with.

    Returns:
        By "prefix/quantity/parameter", so that TensorBoard groups them by quantity.

    Example:
        >>> import torch
        >>> from hessinit_lib import layer_hessians
        >>> model, x, y = torch.nn.Linear(2, 1), torch.ones(3, 2), torch.zeros(3, 1)
        >>> report = layer_hessians(model, torch.nn.MSELoss(), x, y)
        >>> list(scalars(report, "h"))
        ['h/frobenius/weight', 'h/spectral/weight', 'h/trace/weight']
    """
    found = {
        f"{prefix}/{quantity}/{name}": getattr(layer, quantity)
        for quantity in QUANTITIES
        for name, layer in report.items()
    }
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _arguments(function: object) -> Collection[str]:
    try:
        return inspect.signature(function).parameters if callable(function) else ()
    except ValueError:  # a built-in function
        return ()


def log_to(logger: object, prefix: str = "hessian") -> Callable[[int, HessianReport], None]:
    """Make the function that sends a tracker's reports to a logger.

    Args:
        logger: an object with `log_metrics(metrics, step)`, `add_scalar(tag, value, step)` or
            `log(metrics, step=step)`, in this order.
        prefix: what the names of the numbers begin with.

    Returns:
        A function for the tracker's argument `on_record`.

    Raises:
        ValueError: the logger has none of these methods.

    Example:
        In a plain loop, with any logger:

        >>> import torch
        >>> from hessinit_lib import HessianTracker
        >>> class Printer:
        ...     def log_metrics(self, metrics, step):
        ...         print(step, f"{metrics['hessian/frobenius/weight']:.1f}")
        >>> model, x, y = torch.nn.Linear(2, 1), torch.ones(3, 2), torch.zeros(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> tracker = HessianTracker(
        ...     model, torch.nn.functional.mse_loss, x, y, every=2, on_record=log_to(Printer())
        ... )
        >>> for _ in range(3):
        ...     _ = tracker.step()
        ...     optimizer.zero_grad()
        ...     torch.nn.functional.mse_loss(model(x), y).backward()
        ...     optimizer.step()
        0 4.0
        2 4.0
    """
    log_metrics = getattr(logger, "log_metrics", None)
    add_scalar = getattr(logger, "add_scalar", None)
    log = getattr(logger, "log", None)
    if "step" not in _arguments(log):  # of Python's loggers, say, or of a Lightning module
        log = None

    def send(step: int, report: HessianReport) -> None:
        metrics = scalars(report, prefix)
        if callable(log_metrics):
            log_metrics(metrics, step)
        elif callable(add_scalar):
            for name, value in metrics.items():
                add_scalar(name, value, step)
        elif callable(log):
            log(metrics, step=step)

    if not any(map(callable, (log_metrics, add_scalar, log))):
        raise ValueError(
            f"logger: got {type(logger).__name__}, expected a method log_metrics(metrics, step), "
            "add_scalar(tag, value, step) or log(metrics, step=step)"
        )
    return send
