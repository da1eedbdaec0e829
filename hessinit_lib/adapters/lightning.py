"""A callback for Lightning that tracks layer Hessians.

Needs Lightning: `pip install "hessinit_lib[lightning]"`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hessinit_lib.adapters.loggers import log_to
from hessinit_lib.errors import UserError
from hessinit_lib.hessians.inputs import Inputs, mapped
from hessinit_lib.hessians.loss import LossFn
from hessinit_lib.hessians.report import HessianReport
from hessinit_lib.hessians.tracker import HessianTracker, Schedule

try:
    from lightning.pytorch import Callback  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError:
    Callback = None

_Base: Any = object if Callback is None else Callback


class HessianCallback(_Base):
    """Track the layer Hessians of a module that Lightning trains, and log them.

    A step is one of the optimizer: batches whose gradients are accumulated count once. The
    numbers go to all loggers of the trainer, under the number of steps done. With several
    processes the first one computes; a strategy that shards the weights is not covered.

    Args:
        loss_fn: the loss, see `hessinit_lib.layer_hessians`.
        probe_inputs: see `HessianTracker`; moved to the module's device.
        probe_targets: what the loss takes; moved, too.
        every: see `HessianTracker`.
        submodule: name of the network in the module, if it is not the module itself ("net").
        options: the keyword arguments of `layer_hessians`.

    Raises:
        UserError: Lightning is not installed.

    Attributes:
        tracker: made when the training starts, kept afterwards: `tracker.history`.

    Example:
        Under `trainer = Trainer(callbacks=[HessianCallback(cross_entropy, x, y, every=100)])`
        and `trainer.fit(module, batches)`, the norms are logged before steps 0, 100, ... and
        after the last one.
    """

    def __init__(
        self,
        loss_fn: LossFn,
        probe_inputs: Inputs,
        probe_targets: Tensor,
        every: Schedule = 50,
        *,
        submodule: str = "",
        **options: Any,
    ) -> None:
        if Callback is None:
            raise UserError('Lightning is not installed: pip install "hessinit_lib[lightning]"')
        super().__init__()
        self.loss_fn, self.every, self.options = loss_fn, every, options
        self.probe_inputs, self.probe_targets = probe_inputs, probe_targets
        self.submodule = submodule
        self.tracker: HessianTracker | None = None
        self._first_step = 0
        self._steps = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the tracker."""
        if not trainer.is_global_zero:
            return
        model: nn.Module = pl_module.get_submodule(self.submodule)
        sinks = [log_to(logger) for logger in trainer.loggers]
        self._first_step = trainer.global_step  # not 0 if the training is resumed
        self._steps = 0

        def log(step: int, report: HessianReport) -> None:
            for send in sinks:
                send(self._first_step + step, report)

        self.tracker = HessianTracker(
            model,
            self.loss_fn,
            mapped(self.probe_inputs, lambda x: x.to(pl_module.device)),
            self.probe_targets.to(pl_module.device),
            self.every,
            on_record=log,
            **self.options,
        )

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note a step, the first time that its number is seen."""
        if self.tracker is not None and trainer.global_step - self._first_step == self._steps:
            self._steps += 1
            self.tracker.step()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Record once more, after the last step."""
        if self.tracker is not None:
            self.tracker.record()
