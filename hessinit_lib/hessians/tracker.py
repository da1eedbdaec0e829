"""Layer Hessians followed during training, on a fixed probe batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from hessinit_lib.hessians.layers import layer_hessians
from hessinit_lib.hessians.losses import LossFn
from hessinit_lib.hessians.report import HessianReport

if TYPE_CHECKING:
    import pandas as pd


class HessianTracker:
    """Record the layer Hessians every so many training steps.

    The probe batch stays the same, so that what changes is the network and not the data.

    Args:
        model: the network in training, see `layer_hessians`.
        loss_fn: the loss, see `layer_hessians`.
        probe_inputs: shape (B, ...).
        probe_targets: shape (B,) or (B, C).
        every: steps from one record to the next, at least 1.

    Attributes:
        history: reports by the number of training steps done before each, in order.

    Raises:
        ValueError: `every` is not a positive whole number.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 3))
        >>> x, y = torch.zeros(8, 4), torch.zeros(8, dtype=torch.int64)
        >>> tracker = HessianTracker(model, nn.CrossEntropyLoss(), x, y, every=2)
        >>> for _ in range(5):
        ...     _ = tracker.step()  # then one step of the optimizer
        >>> list(tracker.history)
        [0, 2, 4]
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        probe_inputs: Tensor,
        probe_targets: Tensor,
        every: int = 50,
    ) -> None:
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every={every!r}: expected a whole number of steps, at least 1")
        self.model = model
        self.loss_fn = loss_fn
        self.probe_inputs = probe_inputs
        self.probe_targets = probe_targets
        self.every = every
        self.history: dict[int, HessianReport] = {}
        self._steps = 0

    def step(self) -> HessianReport | None:
        """Note that a training step is about to be taken; record if it is time.

        Call it once at the top of the training loop. Returns the report if one was made.
        """
        due = self._steps % self.every == 0
        report = self.record() if due else None
        self._steps += 1
        return report

    def record(self) -> HessianReport:
        """Record now, whatever the interval: after the last step, say."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()  # dropout off: the norms are those of the deterministic network
        try:
            report = layer_hessians(self.model, self.loss_fn, self.probe_inputs, self.probe_targets)
        finally:
            for module, training in modes:
                module.training = training
        self.history[self._steps] = report
        return report

    def to_frame(self) -> pd.DataFrame:
        """Make a pandas table, one row for each step and layer, indexed by both."""
        import pandas as pd

        if not self.history:
            return pd.DataFrame()
        frames = [report.to_frame() for report in self.history.values()]
        return pd.concat(frames, keys=list(self.history), names=["step", "parameter"])
