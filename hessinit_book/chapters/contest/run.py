"""The contest: initializations on deep networks, on equal terms.

Every scheme initializes the same networks and trains on the same batches. Its learning rate is
chosen on one half of the training data, with weights of its own, and judged on the other half.
What is counted: steps to a given loss, final loss, runs that diverge, and what the initialization
itself costs.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn
from tqdm.auto import tqdm

from hessinit_book.chapters.contest.courses import Course, make_course
from hessinit_book.chapters.contest.data import Data, load_data
from hessinit_book.chapters.contest.networks import resnet
from hessinit_book.chapters.contest.schemes import ONLY, SCHEMES, Entry
from hessinit_book.chapters.contest.tuning import choose_rate
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import Blocks, Count, Rates, Units
from hessinit_book.randomness import generator
from hessinit_book.records.machine import choose_device
from hessinit_book.records.records import Record
from hessinit_book.records.runs import Parts, clear_parts, run_seeds
from hessinit_book.statistics.rounding import rounded
from hessinit_book.training.rate_grid import summarize

Network = Literal["relu_30", "relu_100", "gelu_30", "tanh_30", "tanh_100", "resnet", "vgg", "gpt"]

LEVELS = {"relu": 0.7, "gelu": 0.7, "tanh": 0.7, "resnet": 2.0, "vgg": 2.0, "gpt": 2.5}
"""Losses [nat] to which steps are counted, by kind of network."""

LINEAR = ("tanh", "gpt")
"""Kinds of networks for which the usual scheme is LeCun's, not He's."""


_REFUSED = {
    **dict.fromkeys(("final", "steps", "first_loss", "rate", "cost"), math.nan),
    "diverged": True,
    "tried": {"rates": [], "final": [], "diverged": []},
}
"""What a scheme has that gives no weights."""


class Refused(Exception):
    """A scheme gives no weights for a network."""


class ContestParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    Attributes:
        networks: "relu_30" is a plain network of 30 layers, and so on.
        schemes: names in `SCHEMES`.
        width: units of a hidden layer in the plain networks.
        blocks: residual blocks of "resnet".
        stage: convolutions in each stage of "vgg".
        layers: blocks of "gpt".
        rates: learning rates of SGD that are tried first, equal ratios apart.
        adam_rates: the same of Adam, which trains "gpt".
        extensions: how many more are tried, beyond an end that does best.
        steps: training steps.
        batch_size: images a step, at most half of the smallest set; a quarter as many texts.
        context: characters of a text.
        rounds: most iterations of the schemes that learn, MetaInit and GradInit.
        final_steps: the last steps, over which the final loss is averaged; all if there are fewer.
    """

    EXPERIMENT: ClassVar[str] = "contest"
    IMAGES: ClassVar[tuple[str, ...]] = ("mnist", "cifar10")
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {
            "seeds": (0,),
            "networks": ("resnet",),
            "width": 16,
            "blocks": 2,
            "stage": 1,
            "layers": 1,
            "rates": (0.02,),
            "adam_rates": (0.003,),
            "extensions": 0,
            "steps": 11,
            "rounds": 2,
        },
        "quick": {
            "seeds": (0,),
            "networks": ("relu_30", "resnet", "gpt"),
            "width": 32,
            "blocks": 3,
            "stage": 2,
            "layers": 1,
            "rates": (0.01, 0.05),
            "adam_rates": (0.003,),
            "extensions": 0,
            "steps": 20,
            "rounds": 2,
        },
        "paper": {
            "seeds": tuple(range(5)),
            "networks": get_args(Network),
            "width": 100,
            "blocks": 6,
            "stage": 4,
            "layers": 4,
            "rates": (0.012, 0.036, 0.11),
            "adam_rates": (0.003, 0.01, 0.03),
            "extensions": 5,
            "steps": 150,
            "rounds": 500,
        },
    }

    networks: Annotated[tuple[Network, ...], Field(min_length=1)]
    schemes: Annotated[tuple[str, ...], Field(min_length=1)] = tuple(SCHEMES)
    width: Annotated[Units, Field(ge=2, multiple_of=2)]
    blocks: Blocks
    stage: Blocks
    layers: Blocks
    rates: Rates
    adam_rates: Rates
    extensions: Annotated[int, Field(ge=0, le=20)]
    steps: Annotated[Count, Field(ge=10)]
    batch_size: Annotated[Count, Field(ge=4, le=750)] = 64
    context: Annotated[int, Field(ge=1, le=1000)] = 32
    rounds: Count
    final_steps: Count = 20

    @field_validator("schemes")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not set(value) <= set(SCHEMES):
            raise ValueError(f"some of {', '.join(SCHEMES)}")
        return value


def run(parameters: ContestParameters) -> list[Record]:
    """Hold the contest for every seed and give the records.

    A network that is done is kept, see `Parts`: an interrupted run goes on with the next one.

    Raises:
        DataError: a data set cannot be had.
        RecordError: a record that is in the way is damaged.
    """
    loaded, info = load_data(parameters.profile != "paper", parameters.data_dir)
    data = loaded.to(choose_device(parameters.device))
    _warm_up(data.device)

    def run_one(seed: int, device: torch.device, bar: tqdm) -> dict[str, Any]:
        parts, found = Parts(parameters, info, seed, device), {}
        for name in parameters.networks:
            done = bar.n
            found[name] = parts.get(name, lambda name=name: hold(parameters, name, seed, data, bar))
            bar.update(done + len(found[name]) - bar.n)  # where it was read
        return found

    ticks = sum(len(entrants(parameters, name)) for name in parameters.networks)
    records = run_seeds(parameters, info, run_one, ticks=ticks)
    clear_parts(parameters)
    return records


def entrants(parameters: ContestParameters, network: str) -> list[str]:
    """List the schemes for a network: some are for certain kinds, see `ONLY`.

    Example:
        >>> "fixup" in entrants(ContestParameters.check(profile="smoke"), "vgg")
        False
    """
    kind = network.partition("_")[0]
    return [name for name in parameters.schemes if kind in ONLY.get(name, kind)]


def hold(
    parameters: ContestParameters, network: str, seed: int, data: Data, bar: tqdm
) -> dict[str, Any]:
    """Let all schemes initialize one network, and train it.

    Args:
        parameters: of the experiment.
        network: its name.
        seed: of the run; it fixes batches and each scheme's random numbers.
        data: to train on.
        bar: updated once a scheme.

    Returns:
        For each scheme "tried", the rates that it was tuned on with what came of them; the
        "rate" that was chosen; what `summarize` gives at this rate on other weights, batches
        and training data; the first loss; and "cost": the time of the initialization over that
        of a training step, see `_now`. Or, where it gives no weights, why not, as "refused";
        that counts as a run that diverged.
    """
    found = {}
    judged = make_course(parameters, network, seed, data)
    tuning = make_course(parameters, network, seed, data, tuning=True)
    step_time = _step_time(judged, data.device)
    final_steps, level = parameters.final_steps, LEVELS[judged.kind]

    def outcome(course: Course, model: nn.Module, rates: Sequence[float]) -> dict[str, list[Any]]:
        return summarize(course.train(model, rates), level, course.classes, final_steps)

    def compete(name: str) -> dict[str, Any]:
        model, _ = _initialized(name, tuning, parameters, generator(seed, "tuning weights"))
        tried = choose_rate(partial(outcome, tuning, model), tuning.rates, parameters.extensions)
        model, seconds = _initialized(name, judged, parameters, generator(seed, "weights"))
        curve = judged.train(model, [tried["rate"]])
        final = summarize(curve, level, judged.classes, final_steps)
        return {
            **{what: values[0] for what, values in final.items()},
            "rate": tried.pop("rate"),
            "tried": tried,
            "first_loss": rounded(curve[0, 0].item(), 4),
            "cost": rounded(seconds / step_time, 3),
        }

    for name in entrants(parameters, network):
        try:
            found[name] = compete(name)
        except Refused as refusal:
            found[name] = _REFUSED | {"refused": str(refusal)}
        bar.update()
    return found


def _initialized(
    scheme: str, course: Course, parameters: ContestParameters, drawn: torch.Generator
) -> tuple[nn.Module, float]:
    """Make a course's network and initialize it; tell how long that took [s]."""
    model = _made(course)
    entry = Entry(
        model,
        course.batches,
        course.classes,
        linear=course.kind in LINEAR,
        adaptive=course.kind == "gpt",
        rounds=parameters.rounds,
        generator=drawn,
    )
    device = next(model.parameters()).device
    with _without_garbage():
        began = _now(device)
        try:
            SCHEMES[scheme](entry)
        except ValueError as error:
            raise Refused(str(error)) from error
        return model, _now(device) - began


def _now(device: torch.device) -> float:
    """Tell the time [s]: of the processor, or until a GPU has done what it was asked for."""
    if device.type == "cpu":
        return time.process_time()
    getattr(torch, device.type).synchronize()  # torch.cuda, torch.mps
    return time.perf_counter()


def _made(course: Course) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # modules draw weights when they are made
        return course.make()


@contextmanager
def _without_garbage() -> Iterator[None]:
    """Collect garbage now and not while something is timed: whom it hits is chance."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _warm_up(device: torch.device) -> None:
    """Run every scheme once: the first call of much of torch takes a second by itself."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        images = torch.linspace(0, 1, 4 * 3 * 16 * 16, device=device)
        return images.view(4, 3, 16, 16), torch.arange(4, device=device)

    with torch.random.fork_rng(devices=[]):
        for name, scheme in SCHEMES.items():
            if "resnet" in ONLY.get(name, "resnet"):
                drawn = generator(0, "warm-up")
                scheme(Entry(resnet(1, 2).to(device), batch, 10, False, False, 1, drawn))


def _step_time(course: Course, device: torch.device, steps: int = 5) -> float:
    """Measure a training step: forward, backward and update, the fastest of a few [s].

    From the usual weights: with signals that vanish, some processors are several times slower.
    """
    model = _made(course)
    linear = course.kind in LINEAR
    drawn = generator(0, "timing")
    Entry(model, course.batches, course.classes, linear, False, 1, drawn).start()
    descent = torch.optim.SGD(model.parameters(), lr=1e-6)
    times = []
    with _without_garbage():
        for step in range(steps):
            began = _now(device)
            inputs, targets = course.batches(step)
            descent.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            descent.step()
            times.append(_now(device) - began)
    return min(times)
