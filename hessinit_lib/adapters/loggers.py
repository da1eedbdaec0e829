"""Reports of a tracker, sent to any logger.

Any logger will do that has Lightning's method `log_metrics(metrics, step)` (its loggers for
CSV, TensorBoard, MLflow, Weights & Biases) or TensorBoard's `add_scalar(tag, value, step)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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


def log_to(logger: object, prefix: str = "hessian") -> Callable[[int, HessianReport], None]:
    """Make the function that sends a tracker's reports to a logger.

    Args:
        logger: an object with `log_metrics(metrics, step)` or `add_scalar(tag, value, step)`.
        prefix: what the names of the numbers begin with.

    Returns:
        A function for the tracker's argument `on_record`.

    Raises:
        ValueError: the logger has neither method.

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

    def send(step: int, report: HessianReport) -> None:
        metrics = scalars(report, prefix)
        if log_metrics is not None:
            log_metrics(metrics, step)
            return
        assert add_scalar is not None  # checked below, before the first report
        for name, value in metrics.items():
            add_scalar(name, value, step)

    if not callable(log_metrics) and not callable(add_scalar):
        raise ValueError(
            f"logger: got {type(logger).__name__}, expected a method "
            "log_metrics(metrics, step) or add_scalar(tag, value, step)"
        )
    return send
