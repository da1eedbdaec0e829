"""Layer Hessians of a snapshot, computed in a process of their own while training goes on.

A process and not a thread: random numbers, the precision of products and the choice of
kernels are settings of a whole process, and the training must not feel them change.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.functional import unwrapped
from hessinit_lib.hessians.ggn.hessians import Known
from hessinit_lib.hessians.inputs import Inputs
from hessinit_lib.hessians.isolation import entry
from hessinit_lib.hessians.layers import block_hessians, exact_or_ggn
from hessinit_lib.hessians.loss import LossFn
from hessinit_lib.hessians.noise import without_noise
from hessinit_lib.hessians.options import Options, separated
from hessinit_lib.hessians.report import HessianReport


def take_snapshot(
    model: nn.Module, loss_fn: LossFn, inputs: Inputs, targets: Tensor, options: dict[str, Any]
) -> bytes:
    """Copy all that the computation needs, so that training may change the model at once.

    Args:
        model: see `hessinit_lib.layer_hessians`.
        loss_fn: see there.
        inputs: shape (B, ...).
        targets: what the loss takes.
        options: the keyword arguments of `layer_hessians`.

    Raises:
        ValueError: something of this cannot be pickled.
    """
    try:
        return pickle.dumps((unwrapped(model), loss_fn, inputs, targets, options))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"asynchronous=True: expected a model, loss and options that can be pickled: {error}"
        ) from error


class Worker:
    """A process that computes what it is given, started at the first snapshot.

    It has as many threads as this process, so that the numbers are the same too.

    Example:
        >>> x, y = torch.ones(2, 4), torch.ones(2, 3)
        >>> worker = Worker()
        >>> future = worker.submit(take_snapshot(nn.Linear(4, 3), nn.MSELoss(), x, y, {}))
        >>> report, generator = future.result()
        >>> list(report), generator
        (['weight'], None)
        >>> worker.close()
    """

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, snapshot: bytes) -> Future[tuple[HessianReport, torch.Generator | None]]:
        """Start a computation; it gives the report, and the generator as it is afterwards."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                max_workers=1,
                mp_context=multiprocessing.get_context("spawn"),  # a fork breaks CUDA and OpenMP
                initializer=_prepare,
                initargs=(torch.get_num_threads(),),
            )
        try:
            return self._pool.submit(_compute, snapshot)
        except BrokenProcessPool:  # it was killed: what was under way is lost, not the rest
            self.close()
            return self.submit(snapshot)

    def close(self) -> None:
        """Let the process end once it has finished; the next snapshot starts a new one."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
        self._pool = None


def _prepare(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted training keeps its records
    torch.set_num_threads(threads)


def _compute(snapshot: bytes) -> tuple[HessianReport, torch.Generator | None]:
    model, loss_fn, inputs, targets, options = pickle.loads(snapshot)
    report = training_hessians(model, loss_fn, inputs, targets, **options)
    return report, options.get("generator")


_BUDGET = 2.5  # training steps: one in twenty of the 50 between two records


@entry
def training_hessians(
    model: nn.Module,
    loss_fn: LossFn,
    inputs: Inputs,
    targets: Tensor,
    *,
    known: Known | None = None,
    **options: Any,
) -> HessianReport:
    """Compute `layer_hessians` of a model in training, without the noise of dropout.

    Unless a curvature or a method is chosen, exact norms of networks of up to a million
    parameters that have an exact route, and for all others the norms of Gauss-Newton blocks, from
    the fewest vectors that tell their errors unless a tolerance is chosen.

    Args:
        model: see `layer_hessians`, as all others.
        loss_fn: see there.
        inputs: see there.
        targets: see there.
        known: of this model, from an earlier call; what is found is noted there.
        options: the keyword arguments of `layer_hessians`.
    """
    model = unwrapped(model)  # no other process need take part
    known = known or Known()
    named, options = separated(options)
    case = Case.checked(model, loss_fn, inputs, targets, **named)
    with without_noise(model, inputs, known.drawing) as known.drawing:
        if "curvature" in options or "method" in options:
            return block_hessians(case, Options(**options), known)
        budget = {} if "tolerance" in options else {"budget": _BUDGET}
        ggn = Options(**{"norms": ("frobenius",), **budget, **options, "curvature": "ggn"})
        with suppress(NotImplementedError):
            return exact_or_ggn(case, Options(**options), ggn, known)
        return block_hessians(case, Options(**options), known)
