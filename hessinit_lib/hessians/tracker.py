"""Layer Hessians followed during training, on a fixed probe batch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from torch import Tensor, nn

from hessinit_lib.errors import needed
from hessinit_lib.hessians.background import Worker, take_snapshot, training_hessians
from hessinit_lib.hessians.case import check_kinds
from hessinit_lib.hessians.ggn.hessians import Known
from hessinit_lib.hessians.inputs import Inputs, mapped, sample_count
from hessinit_lib.hessians.loss import LossFn
from hessinit_lib.hessians.options import Options, separated
from hessinit_lib.hessians.report import HessianReport

if TYPE_CHECKING:
    import pandas as pd


class HessianTracker:
    """Record the layer Hessians every so many training steps.

    The probe batch stays the same, so that what changes is the network and not the data.
    Dropout and its kind are off; batch normalization stays as it is, so that in training it
    counts with the probe batch's statistics, held constant. The training does not feel that
    norms are computed: modes, gradients, buffers and random numbers are left as found.

    Either call `step` at the top of the training loop, or `attach` the tracker to the
    optimizer.

    Args:
        model: the network in training, see `layer_hessians`.
        loss_fn: the loss, see `layer_hessians`.
        probe_inputs: what the model takes, see `layer_hessians`. A copy is kept.
        probe_targets: shape (B,) or (B, C).
        every: steps from one record to the next, at least 1; or the steps to record before,
            such as `hessinit_lib.hessians.tracker.log_schedule` gives; or a function that
            says of a step whether to record before it.
        on_record: called with the number of steps done and the report, after each record,
            in the thread that trains: the place to feed a logger.
        asynchronous: let `step` only take a snapshot, to be worked on by another process,
            one record at a time: if one is due while another is under way, `step` waits.
            The numbers are the same. It pays where the training leaves processor cores idle;
            where both want all of them, training is slower than with records in between.
            Model, loss and probe batch must be picklable, of classes that can be imported,
            and a script needs `if __name__ == "__main__":`. An error there is raised by the
            next call of a method, or by `history`.
        options: the keyword arguments of `layer_hessians`: curvature, layers, method, norms,
            tolerance, generator and so on. Where neither a curvature nor a method is chosen, exact
            norms of networks of up to a million parameters that have an exact route, and norms of
            Gauss-Newton blocks of all others: a record then takes some 2.5 training steps, unless
            a tolerance is chosen. The tracker draws from a copy of the generator.

    Raises:
        ValueError: `every` is none of these, an option has a wrong value, or what must be
            pickled cannot be.
        TypeError: an option that `layer_hessians` does not have.

    Example:
        In a plain loop:

        >>> model = nn.Sequential(nn.Linear(4, 3))
        >>> x, y = torch.zeros(8, 4), torch.zeros(8, dtype=torch.int64)
        >>> tracker = HessianTracker(model, nn.CrossEntropyLoss(), x, y, every=2)
        >>> for _ in range(5):
        ...     _ = tracker.step()  # then one step of the optimizer
        >>> list(tracker.history)
        [0, 2, 4]

        As a callback of the optimizer, with a logger:

        >>> def log(step, report):
        ...     print(f"{step}: {report['0.weight'].trace:.2f}")
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        >>> x = torch.ones(8, 4)
        >>> tracker = HessianTracker(
        ...     model, nn.MSELoss(), x, torch.ones(8, 3), every=[0, 1], on_record=log
        ... )
        >>> with tracker.attach(optimizer):
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         nn.functional.mse_loss(model(x), torch.ones(8, 3)).backward()
        ...         optimizer.step()
        0: 8.00
        1: 8.00
        3: 8.00
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        probe_inputs: Inputs,
        probe_targets: Tensor,
        every: Schedule = 50,
        *,
        on_record: Callable[[int, HessianReport], object] | None = None,
        asynchronous: bool = False,
        **options: Any,
    ) -> None:
        generator = Options(**separated(options)[1]).generator
        if generator is not None:  # one that training shares would make records change it
            options["generator"] = generator.clone_state()
        self.model = model
        self.loss_fn = loss_fn
        check_kinds(model, loss_fn, probe_targets)
        sample_count(probe_inputs)
        self.probe_inputs = mapped(probe_inputs, torch.clone)
        self.probe_targets = probe_targets.clone()
        self.every = every
        self.on_record = on_record
        self.options = options
        self._due = due(every)
        self._known = Known()
        self._history: dict[int, HessianReport] = {}
        self._steps = 0
        self._worker = Worker() if asynchronous else None
        self._pending: tuple[int, Future[Any]] | None = None
        if asynchronous:
            self._snapshot()  # what cannot be pickled is to fail here

    @property
    def history(self) -> dict[int, HessianReport]:
        """Reports by the number of training steps done before each, in order.

        Waits for the record under way, if there is one.
        """
        self._collect()
        return self._history

    def step(self) -> HessianReport | None:
        """Note that a training step is about to be taken; record if it is time.

        Call it once at the top of the training loop.

        Returns:
            The report if one was made; always None if asynchronous.
        """
        if self._pending is not None and self._pending[1].done():
            self._collect()
        report = None
        if self._due(self._steps):
            if self._worker is None:
                report = self.record()
            else:
                self._collect()
                self._pending = self._steps, self._worker.submit(self._snapshot())
        self._steps += 1
        return report

    def record(self) -> HessianReport:
        """Record now, in this process, whatever the schedule: after the last step, say."""
        self._collect()
        case = self.model, self.loss_fn, self.probe_inputs, self.probe_targets
        report = training_hessians(*case, known=self._known, **self.options)
        self._keep(self._steps, report)
        return report

    @contextmanager
    def attach(self, optimizer: torch.optim.Optimizer) -> Iterator[HessianTracker]:
        """Call `step` before each step of the optimizer, and `record` at the end.

        For a `with` statement around the training. If that ends with an exception, the
        records made until then stay in `history`, and no last one is made.

        Args:
            optimizer: any; of several, one that takes a step in every training step.
        """

        def before_step(*_: object) -> None:  # what a hook returns would replace arguments
            self.step()

        handle = optimizer.register_step_pre_hook(before_step)
        try:
            yield self
            self.record()
        finally:
            handle.remove()
            if self._worker is not None:
                self._worker.close()

    def to_frame(self) -> pd.DataFrame:
        """Make a pandas table, one row for each step and layer, indexed by both.

        Raises:
            ImportError: pandas is not installed (the package's extra `report`).
        """
        pd = needed("pandas", "tracker.to_frame()")
        history = self.history
        if not history:
            return pd.DataFrame()
        frames = [report.to_frame() for report in history.values()]
        return pd.concat(frames, keys=list(history), names=["step", "parameter"])

    def _snapshot(self) -> bytes:
        return take_snapshot(
            self.model, self.loss_fn, self.probe_inputs, self.probe_targets, self.options
        )

    def _collect(self) -> None:
        """Wait for the record under way and keep it, or raise what went wrong with it."""
        if self._pending is None:
            return
        step, future = self._pending
        future.exception()  # waits; if interrupted here, the record is still pending
        self._pending = None
        report, generator = future.result()
        if generator is not None:
            self.options["generator"] = generator
        self._keep(step, report)

    def _keep(self, step: int, report: HessianReport) -> None:
        self._history[step] = report
        if self.on_record is not None:
            self.on_record(step, report)


Schedule = SupportsIndex | Collection[SupportsIndex] | Callable[[int], bool]


def due(every: Schedule) -> Callable[[int], bool]:
    """Make the function that says whether a step is one to record before.

    Args:
        every: steps from one record to the next, at least 1, from step 0 on; or the steps;
            or that function itself.

    Raises:
        ValueError: none of these.

    Example:
        >>> [step for step in range(7) if due(3)(step)]
        [0, 3, 6]
        >>> due(range(2, 4))(3)
        True
    """
    if callable(every):
        return every
    try:
        if isinstance(every, Collection):
            steps = frozenset(operator.index(step) for step in every)
            if not steps or min(steps) < 0:
                raise ValueError(f"every={every!r}: expected steps from 0 on, at least one of them")
            return steps.__contains__
        interval = operator.index(every)
    except TypeError:
        interval = 0
    if interval < 1:
        raise ValueError(
            f"every={every!r}: expected a whole number of steps, at least 1, "
            "a collection of steps, or a function of the step"
        )
    return lambda step: step % interval == 0


def log_schedule(total: int, count: int) -> list[int]:
    """Spread steps evenly in their logarithm: training changes most at its beginning.

    Args:
        total: steps of the training.
        count: steps wanted, at least 3; where whole numbers are too few, fewer come back.

    Returns:
        Step 0, then 1 to `total` in a geometric sequence, rounded, each once.

    Raises:
        ValueError: `total` is below 1 or `count` below 3.

    Example:
        >>> log_schedule(1000, 8)
        [0, 1, 3, 10, 32, 100, 316, 1000]
    """
    if total < 1 or count < 3:
        raise ValueError(f"total={total}, count={count}: expected at least 1 and 3")
    gaps = count - 2
    return [0, *sorted({round(total ** (gap / gaps)) for gap in range(gaps + 1)})]
