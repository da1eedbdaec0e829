"""The contest: initializations on deep networks, on equal terms.

Every scheme initializes the same networks and trains on the same batches with every learning
rate of the same grid. What is counted: steps to a given loss, final loss, runs that diverge,
and what the initialization itself costs.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn
from tqdm.auto import tqdm

from hessinit_book.chapters.contest.data import Data, load_data
from hessinit_book.chapters.contest.networks import CharacterGpt, resnet, vgg
from hessinit_book.chapters.contest.schemes import SCHEMES, Entry
from hessinit_book.chapters.contest.text import LETTERS
from hessinit_book.chapters.contest.training import train_any
from hessinit_book.networks.dense import dense_network
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import Blocks, Count, Rates, Units
from hessinit_book.randomness import generator
from hessinit_book.records.machine import choose_device
from hessinit_book.records.records import Record
from hessinit_book.records.runs import Parts, clear_parts, run_seeds
from hessinit_book.statistics.rounding import rounded
from hessinit_book.training.batches import independent_batches
from hessinit_book.training.rate_grid import summarize, train_dense

Network = Literal["relu_30", "relu_100", "gelu_30", "tanh_30", "tanh_100", "resnet", "vgg", "gpt"]

LEVELS = {"relu": 0.7, "gelu": 0.7, "tanh": 0.7, "resnet": 2.0, "vgg": 2.0, "gpt": 2.5}
"""Losses [nat] to which steps are counted, by kind of network."""

LINEAR = ("tanh", "gpt")
"""Kinds of networks for which the usual scheme is LeCun's, not He's."""


class ContestParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    Attributes:
        networks: "relu_30" is a plain network of 30 layers, and so on.
        schemes: names in `SCHEMES`.
        width: units of a hidden layer in the plain networks.
        blocks: residual blocks of "resnet".
        stage: convolutions in each stage of "vgg".
        layers: blocks of "gpt".
        rates: learning rates of SGD.
        adam_rates: learning rates of Adam, which trains "gpt".
        steps: training steps.
        batch_size: images a step; a quarter as many texts.
        context: characters of a text.
        rounds: iterations of the schemes that learn, MetaInit and GradInit.
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
            "rates": (0.0013, 0.004, 0.012, 0.036, 0.11, 0.33),
            "adam_rates": (0.003, 0.01, 0.03),
            "steps": 150,
            "rounds": 40,
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
    steps: Annotated[Count, Field(ge=10)]
    batch_size: Annotated[Count, Field(ge=4)] = 64
    context: Annotated[int, Field(ge=1, le=1000)] = 32
    rounds: Count
    final_steps: Count = 20

    @field_validator("schemes")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not set(value) <= set(SCHEMES):
            raise ValueError(f"some of {', '.join(SCHEMES)}")
        return value


@dataclass(frozen=True)
class Course:
    """One network of the contest for one seed.

    Attributes:
        kind: "relu", "gelu", "tanh", "resnet", "vgg" or "gpt".
        make: makes the network, on the device of the data; its weights are not used.
        batches: gives a training step's inputs and targets.
        classes: number of classes.
        rates: learning rates.
        train: takes a network; gives its loss before each step at each rate.
    """

    kind: str
    make: Callable[[], nn.Module]
    batches: Callable[[int], tuple[Tensor, Tensor]]
    classes: int
    rates: Sequence[float]
    train: Callable[[nn.Module], Tensor]


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
    """List the schemes for a network: Fixup is for residual ones.

    Example:
        >>> "fixup" in entrants(ContestParameters.check(profile="smoke"), "vgg")
        False
    """
    return [name for name in parameters.schemes if name != "fixup" or network == "resnet"]


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
        For each scheme what `summarize` gives, the first loss, and "cost": the time of the
        initialization over that of a training step, see `_now`.
    """
    found = {}
    course = make_course(parameters, network, seed, data)
    step_time = _step_time(course, data.device)
    for name in entrants(parameters, network):
        model = _made(course)
        entry = Entry(
            model,
            course.batches,
            course.classes,
            linear=course.kind in LINEAR,
            adaptive=course.kind == "gpt",
            rounds=parameters.rounds,
            generator=generator(seed, "weights"),
        )
        with _without_garbage():
            began = _now(data.device)
            SCHEMES[name](entry)
            cost = (_now(data.device) - began) / step_time
        curve = course.train(model)
        found[name] = {
            **summarize(curve, LEVELS[course.kind], course.classes, parameters.final_steps),
            "first_loss": rounded(curve[0, 0].item(), 4),
            "cost": rounded(cost, 3),
        }
        bar.update()
    return found


def make_course(parameters: ContestParameters, network: str, seed: int, data: Data) -> Course:
    """Set up one network's data, batches and training."""
    kind, _, depth = network.partition("_")
    steps = max(parameters.steps, parameters.rounds + 1)
    shuffle = generator(seed, f"{kind} batches")
    if kind == "gpt":
        starts = torch.randint(
            len(data.text) - parameters.context - 1,
            (steps, parameters.batch_size // 4),
            generator=shuffle,
        ).to(data.device)

        def texts(step: int) -> tuple[Tensor, Tensor]:
            following = torch.arange(parameters.context + 1, device=data.device)
            places = starts[step][:, None] + following
            return data.text[places][:, :-1], data.text[places][:, 1:].flatten()

        def train_gpt(model: nn.Module) -> Tensor:
            rates = parameters.adam_rates
            return train_any(model, rates, texts, parameters.steps, torch.optim.Adam)

        return Course(
            kind,
            lambda: _at(data, CharacterGpt(LETTERS, parameters.layers, 32, 4, parameters.context)),
            texts,
            LETTERS,
            parameters.adam_rates,
            train_gpt,
        )
    inputs, labels = data.images if kind in ("resnet", "vgg") else data.flat
    order = independent_batches(len(inputs), parameters.batch_size, steps, shuffle)
    order = order.to(data.device)

    def images(step: int) -> tuple[Tensor, Tensor]:
        return inputs[order[step]], labels[order[step]]

    if depth:  # a plain network

        def train_stacked(model: nn.Module) -> Tensor:
            assert isinstance(model, nn.Sequential)
            chosen = order[: parameters.steps]
            ones = [1.0] * int(depth)
            return train_dense(model, parameters.rates, ones, inputs, labels, chosen)

        def make_plain() -> nn.Module:
            widths = (784, *[parameters.width] * (int(depth) - 1), 10)
            return _at(data, dense_network(widths, kind))

        return Course(kind, make_plain, images, 10, parameters.rates, train_stacked)

    def make_images() -> nn.Module:
        made = resnet(parameters.blocks, 16) if kind == "resnet" else vgg(parameters.stage, 8)
        return _at(data, made)

    def train_images(model: nn.Module) -> Tensor:
        return train_any(model, parameters.rates, images, parameters.steps)

    return Course(kind, make_images, images, 10, parameters.rates, train_images)


def _at(data: Data, model: nn.Module) -> nn.Module:
    return model.to(data.device)


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
        for scheme in SCHEMES.values():
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
