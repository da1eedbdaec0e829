"""Reports reach the loggers that people have, in the right step and with the right numbers."""

from __future__ import annotations

import csv
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_lib import HessianTracker, layer_hessians
from hessinit_lib.adapters.loggers import log_to, scalars

X, Y = torch.arange(12.0).view(6, 2) / 10, torch.ones(6, 1)


class Scalars:
    """A writer in TensorBoard's manner."""

    def __init__(self) -> None:
        self.written: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.written.append((tag, value, step))


def network() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter) + index / 7)
    return model


def test_scalars_are_the_reports() -> None:
    report = layer_hessians(network(), F.mse_loss, X, Y, norms=("frobenius",))
    found = scalars(report, "h")
    assert found == {
        f"h/{quantity}/{name}": getattr(layer, quantity)
        for quantity in ("frobenius", "trace")  # the spectral norm was not asked for
        for name, layer in report.items()
    }


def test_a_writer_of_scalars_gets_them_with_the_step() -> None:
    writer = Scalars()
    tracker = HessianTracker(network(), F.mse_loss, X, Y, every=3, on_record=log_to(writer))
    for _ in range(5):
        tracker.step()
    expected = [
        (name, value, step)
        for step, report in tracker.history.items()
        for name, value in scalars(report).items()
    ]
    assert writer.written == expected
    assert {step for _, _, step in writer.written} == {0, 3}


def test_a_run_that_only_logs_gets_them_with_the_step() -> None:
    class Run:
        def log(self, data: dict[str, float], step: int) -> None:
            self.written = data, step

    run, report = Run(), layer_hessians(network(), F.mse_loss, X, Y)
    log_to(run)(7, report)
    assert run.written == (scalars(report), 7)


@pytest.mark.parametrize("logger", [[], logging.getLogger("any")])
def test_a_logger_without_a_method_is_refused(logger: object) -> None:
    kind = type(logger).__name__
    with pytest.raises(ValueError, match=f"logger: got {kind}, expected a method log_metrics"):
        log_to(logger)


def test_the_callback_says_what_is_missing() -> None:
    code = (
        "import sys; sys.modules['lightning'] = None\n"
        "from hessinit_lib.adapters.lightning import HessianCallback\n"
        "HessianCallback(None, None, None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'pip install "hessinit_lib[lightning]"' in done.stderr.splitlines()[-1]


@pytest.mark.filterwarnings("ignore")  # of Lightning's, about workers and the like
@pytest.mark.parametrize("accumulated", [1, 2])
def test_callback_in_a_training_of_lightnings(tmp_path: Path, accumulated: int) -> None:
    pl = pytest.importorskip("lightning.pytorch")
    from hessinit_lib.adapters.lightning import HessianCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return F.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def train(callbacks: list) -> Module:
        module = Module()
        trainer = pl.Trainer(
            max_epochs=2,
            callbacks=callbacks,
            logger=pl.loggers.CSVLogger(tmp_path, version=len(callbacks)),
            accumulate_grad_batches=accumulated,
            accelerator="cpu",
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 1)
        trainer.fit(module, batches)
        return module

    callback = HessianCallback(F.mse_loss, X, Y, every=4, submodule="net")
    tracked, plain = train([callback]), train([])
    for ours, theirs in zip(tracked.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)  # tracking does not touch the training
    steps = 12 // accumulated
    assert callback.tracker is not None
    assert list(callback.tracker.history) == [*range(0, steps, 4), steps]
    first = layer_hessians(network(), F.mse_loss, X, Y)["0.weight"].frobenius
    last = layer_hessians(tracked.net, F.mse_loss, X, Y)["0.weight"].frobenius
    with next(tmp_path.glob("**/version_1/metrics.csv")).open() as file:
        rows = {
            int(row["step"]): float(row["hessian/frobenius/0.weight"])
            for row in csv.DictReader(file)
        }
    assert rows[0] == pytest.approx(first, rel=1e-4)
    assert rows[steps] == pytest.approx(last, rel=1e-4)
