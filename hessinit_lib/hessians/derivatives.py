r"""Is the function that is differentiated the one that the model computes? Tried on the batch.

What autograd gives can be the derivative of another function: where the forward pass detaches a
tensor, where a custom function has a backward pass of its own, or where a weight is read past
the module that owns it. So once a call, at a few samples of the batch, for f(W) the outputs, u
and v random,

$$u^\top J v \approx u^\top \frac{f(W + h v) - f(W - h v)}{2 h}$$

is checked, and for estimates also the derivative of $J^\top u$ along v, block by block. In
float64 if the model allows it; in float32, and so roughly, where nothing leaves the graph and it
holds only operations that this library's tests have checked. v is W with random signs: entries
that are zero, which may be at the kink of a ReLU, stay so. Blocks that change the outputs little
take larger steps.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hessinit_lib.errors import first_line
from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.functional import FROZEN, PureModel, one_tensor
from hessinit_lib.hessians.graph.nodes import (
    PLAIN,
    PLAIN_ONCE,
    Watch,
    check_leaves,
    inputs_first,
    operation,
)
from hessinit_lib.hessians.inputs import Inputs, take, tensors_of
from hessinit_lib.hessians.isolation import random_state_kept
from hessinit_lib.hessians.numerics.lanczos import all_finite
from hessinit_lib.hessians.numerics.precision import few_threads
from hessinit_lib.hessians.numerics.random import standard_normal

_lists: Any = torch  # its functions of lists, one launch each on a GPU, are not exported

_SHARE = 32  # one sample in so many is looked at, but two at least,
_LEAST = 8  # or eight if the model is small
_SMALL = 1_000_000  # parameters and inputs of such samples


@dataclass(frozen=True)
class _Precision:
    """Steps h to try, how much larger ones a block may take, the relative error allowed."""

    steps: tuple[float, ...]
    largest: float
    error: float


_PRECISIONS = {
    torch.float64: _Precision((1e-7, 1e-8, 1e-9, 1e-4), 30.0, 1e-5),
    torch.float32: _Precision((1e-3, 1e-2, 1e-4), 1.0, 3e-2),
}

# Of second derivatives, in float64. (Measured: of sound networks 1e-8 to 1e-6.)
_SECOND = _Precision((1e-8, 1e-9, 1e-7), 30.0, 1e-5)
_ALIKE = 1e-8  # the error allowed where it is the same for two steps

_ROUGH = (
    "the outputs change so roughly with the weights, as after a divergence, that their "
    "derivatives could not be checked"
)

_OTHER = "the model does not compute what its modules do one after the other"

Claim = Callable[[Inputs, Mapping[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]
"""Gives outputs of some samples, with the graph from the weights, from these by name."""

Direction = dict[str, Tensor]
"""A step for each weight, by name."""


Tried = tuple[Tensor, list[Tensor]]
"""A vector u of the outputs' shape, and $J^\\top u$ for each weight."""

Look = Callable[[Tensor, Mapping[str, Tensor], int], Tried | None]
"""Takes outputs of some samples with their graph, the weights by name, how many samples."""


def check_derivatives(
    case: Case,
    *,
    twice: bool = False,
    exact: bool = True,
    claim: Claim | None = None,
    look: Look | None = None,
) -> str:
    """Make sure that the derivatives that autograd gives are those of the model's outputs.

    Args:
        case: a model and a batch; the loss is not called.
        twice: whether second derivatives are to be checked, too.
        exact: whether what cannot be checked is an error, and not just to be known.
        claim: what the outputs are taken to be, where it is not the model that is differentiated.
        look: is given the graph of some samples, as for first derivatives, if all operations in it
            are known; may give a u and the weights' gradients, which are checked then.

    Returns:
        What to know: "", that the model draws random numbers, or that nothing could be checked.

    Raises:
        NotImplementedError: they are not; the message says what is wrong, and where.
        ValueError: the outputs depend on no weight, or are not one tensor.

    Example:
        >>> class Detached(torch.nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(x) * super().forward(x).detach()
        >>> x, y = torch.ones(4, 2), torch.ones(4, 1)
        >>> check_derivatives(Case(Detached(2, 1), torch.nn.MSELoss(), x, y))
        Traceback (most recent call last):
        NotImplementedError: the gradient that autograd gives is not that of the model's outputs ...
    """
    size = sum(part.numel() for part in case.parameters.values())
    size += sum(part[:1].numel() for part in tensors_of(case.inputs))
    # Activations that are dead in all samples hide what is below.
    looked_at = max(2, case.samples // _SHARE, min(_LEAST, _SMALL // size))
    looked_at = min(looked_at, case.samples)
    few = take(case.inputs, slice(looked_at))
    tokens = (x[:1].numel() for x in tensors_of(case.inputs) if not x.is_floating_point())
    work = size * looked_at * max([1, *tokens])
    refused: Exception | None = None
    attempts = ((torch.float32, few), (torch.float64, few), (None, few), (None, case.inputs))
    for dtype, inputs in attempts[claim is not None :]:
        pure = PureModel(case.model, case.weights, dtype)
        look = None if pure.recurrent else look  # as many operations, however few samples
        quick = dtype is torch.float32
        probe = _Probe(pure, case, inputs, work, twice=look is None, quick=quick)
        try:
            with probe.running(), torch.enable_grad():
                outputs = probe.run()
        except Exception as error:  # too few samples, or another type than the model wants
            refused = error
            continue
        with probe.running(), suppress(*[NotImplementedError] if quick else ()):
            known = probe.knows(outputs)
            tried = None
            if known and look and inputs is few:
                tried = look(outputs, probe.weights, looked_at)
            if known or not quick:
                return probe.check(outputs, twice, exact, claim, known and claim is None, tried)
    assert refused is not None
    raise refused


class _Probe:
    """The outputs of some samples as a function of the weights."""

    def __init__(
        self, pure: PureModel, case: Case, inputs: Inputs, work: int, *, twice: bool, quick: bool
    ) -> None:
        self.pure, self.case, self.inputs, self.work, self.twice = pure, case, inputs, work, twice
        self.quick = quick  # whether another type is tried if this one does not do
        self.weights = {name: pure.state[name] for name in case.weights}
        self.generator = torch.Generator().manual_seed(0)
        self.watch = Watch(double=pure.dtype == torch.float64)
        # What is compiled is not seen.
        self.watch.cut = any(isinstance(m, torch.jit.ScriptModule) for m in case.model.modules())
        # Rows that are read, but by design get no gradient.
        self.fixed = {
            f"{name}.weight" if name else "weight": module.padding_idx
            for name, module in case.model.named_modules()
            if isinstance(module, nn.Embedding) and module.padding_idx is not None
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        running = self.pure.running(twice=self.twice)
        with warnings.catch_warnings(), few_threads(self.work), running, self.watch:
            warnings.filterwarnings("ignore", message=FROZEN[:40], category=UserWarning)
            yield

    def run(self) -> Tensor:
        """Compute the outputs, with the same random numbers at each call."""
        with random_state_kept(self.weights.values()):
            return one_tensor(self.pure.logits(self.inputs)[0])

    def run_at(self, h: float, v: Direction) -> tuple[Tensor, list[Tensor]]:
        """Compute the outputs at W + h v; give these weights, too."""
        state = self.pure.state
        with torch._C.DisableTorchFunction(), torch.no_grad():
            at = _lists._foreach_add([*self.weights.values()], [*v.values()], alpha=h)
            moved = {n: w.requires_grad_() for n, w in zip(self.weights, at, strict=True)}
        try:
            self.pure.state = {**state, **moved}
            return self.run(), list(moved.values())
        finally:
            self.pure.state = state

    def check(
        self,
        outputs: Tensor,
        twice: bool,
        exact: bool,
        claim: Claim | None,
        known: bool,
        tried: Tried | None,
    ) -> str:
        """Check the derivatives of the outputs that `run` gave, if `known` with fewer tries."""
        names, weights = list(self.weights), list(self.weights.values())
        check_leaves(outputs, self.case.parameters)
        if not outputs.numel():
            return ""
        if claim is None or outputs.dtype != torch.float64:
            claimed, sources = outputs, weights
        else:
            with torch.enable_grad():
                claimed, found = claim(self.inputs, self.pure.state)
            sources = [found[name] for name in names]
            if claimed.shape != outputs.shape:
                raise NotImplementedError(_OTHER)
        twice_checked = twice and not known and not self._is_plain(claimed)
        if tried is not None:
            u, gradients = tried
        else:
            u = standard_normal(outputs.shape, self.generator, outputs)
            gradients = self._gradients(claimed, sources, u, twice_checked)
        with torch._C.DisableTorchFunction(), torch.no_grad():
            # What each block changes the outputs, in one transfer with other sizes.
            products = _lists._foreach_mul(gradients, [*self.weights.values()])
            sizes = [outputs.norm(), (claimed - outputs).norm(), *_lists._foreach_norm(products)]
            size, off, *effects = torch.stack(sizes).tolist()
        if not math.isfinite(size):
            if not all_finite(outputs):
                if self.quick:
                    raise NotImplementedError("the outputs are not finite in float32")
                return ""
            size = outputs.double().norm().item()
        if off > 1e-6 * size:
            raise NotImplementedError(_OTHER)
        self.size, self.effects = size, dict(zip(names, effects, strict=True))
        if self._check_first(u, gradients, outputs, known):
            if twice_checked:
                self._check_second(u, gradients)
            notes = []
        else:
            # What is claimed has the model's outputs, and derivatives of its own.
            notes = [] if known or claim is not None else [_ROUGH]
        if self.pure.noisy and self._is_random(outputs):
            notes.append("the model draws random numbers in its forward pass: norms of one draw")
        if notes and exact:
            raise NotImplementedError("; ".join(notes))
        return "; ".join(notes)

    def knows(self, outputs: Tensor) -> bool:
        """Tell, after one run, whether autograd saw all of it and this library each operation."""
        return not self.watch.cut and self._is_plain(outputs)

    def _is_plain(self, outputs: Tensor) -> bool:
        # A hook on a tensor leaves no trace in the graph.
        nodes = inputs_first(outputs.grad_fn) if outputs.grad_fn and not self.pure.hooked else ()
        names = {operation(node) for node in nodes}
        return bool(names) and names <= (PLAIN if self.twice else PLAIN_ONCE)

    def _direction(self, scales: Mapping[str, float], larger: bool) -> Direction:
        """Give the weights with random signs, of rank one; or their entries times positive numbers.

        And times a scale of each, 1 where there is none.
        """
        weights, g = [*self.weights.values()], self.generator
        factors = [scales.get(name, 1.0) for name in self.weights]
        if larger:
            drawn = [torch.rand(w.shape, generator=g, device="cpu") for w in weights]
            drawn = [d.mul_(f).to(w) for d, f, w in zip(drawn, factors, weights, strict=True)]
            return dict(zip(self.weights, _lists._foreach_mul(weights, drawn), strict=True))
        shapes = [w.shape[:1] + (1,) * (w.ndim - 1) for w in weights]
        shapes += [torch.Size((1, *w.shape[1:])) for w in weights]
        sizes = [shape.numel() for shape in shapes]
        # All in one, which is brought to the device once.
        signs = torch.randint(2, (sum(sizes),), generator=g, device="cpu").mul_(2).sub_(1)
        count, parts = len(weights), [*signs.double().split(sizes)]
        _lists._foreach_mul_(parts[:count], factors)
        signs = torch.cat(parts).to(weights[0])
        parts = [x.view(shape) for x, shape in zip(signs.split(sizes), shapes, strict=True)]
        found = _lists._foreach_mul(weights, parts[:count])
        _lists._foreach_mul_(found, parts[count:])
        return dict(zip(self.weights, found, strict=True))

    def _gradients(
        self, outputs: Tensor, weights: list[Tensor], u: Tensor, graph: bool
    ) -> list[Tensor]:
        try:
            return list(
                torch.autograd.grad(outputs, weights, u, create_graph=graph, materialize_grads=True)
            )
        except RuntimeError as error:
            raise _refused(error) from error

    def _directions(self, precision: _Precision) -> Iterator[tuple[float, float, Direction]]:
        """Give steps ahead, steps back and directions, as long as the last ones did not agree.

        The last direction makes entries larger only: some models round theirs down.
        """
        effects = self.effects
        steps, most = precision.steps, max(effects.values())
        scales = {name: min(most / e, precision.largest) for name, e in effects.items() if e}
        for index, h in enumerate((min(steps[:2]), *steps, None)):
            with torch._C.DisableTorchFunction(), torch.no_grad():  # modes take longer than this
                v = self._direction(scales, h is None)
            for name, row in self.fixed.items():
                if name in v:
                    v[name][row] = 0
            one_sided = index == 0  # which takes but one more call
            yield (min(steps[:2]), 0.0, v) if one_sided or h is None else (h, -h, v)

    def _check_first(
        self, u: Tensor, gradients: list[Tensor], outputs: Tensor, known: bool
    ) -> bool:
        """Make sure of the first derivatives; tell whether they could be checked."""
        precision, off = _PRECISIONS[u.dtype], 0.0
        for ahead, back, v in self._directions(precision):
            error, size = self._error(u, gradients, outputs, ahead, back, v)
            floor = 100 * torch.finfo(u.dtype).eps * self.size / ahead
            if back and ahead != precision.steps[0]:  # a later try is not to be a rough one
                floor = min(floor, 0.01 * size)
            # A sum over entries with random factors is about as large as their norm.
            off = abs(error) / size if abs(error) > precision.error * size + floor else 0.0
            if not off:
                break
        if off and self._is_rough(u, gradients, outputs):
            return False
        if not known:  # where each operation and each path is, nothing small can be off
            off = off or self._off_in_small(u, gradients, outputs)
        if off:
            raise NotImplementedError(
                "the gradient that autograd gives is not that of the model's outputs (off by "
                f"{off:.1g} of it): a detach(), no_grad(), backward hook or custom "
                "autograd.Function on the way; expected none"
            )
        return True

    def _is_rough(self, u: Tensor, gradients: list[Tensor], outputs: Tensor) -> bool:
        """Tell whether slopes depend on the step, or the least of steps moves the outputs far.

        What a gradient lacks, it lacks at each step.
        """
        if u.dtype != torch.float64:
            return False
        (_, _, v) = next(self._directions(_PRECISIONS[u.dtype]))
        steps = (1e-6, 1e-8, 1e-10, 1e-12)
        errors = [self._error(u, gradients, outputs, h, -h, v)[0] for h in steps]
        with torch.no_grad():
            moved = (self.run_at(steps[-1], v)[0] - outputs).norm() > 1e-3 * outputs.norm()
        return bool(moved) or all(
            abs(b - a) > 0.2 * max(abs(a), abs(b)) for a, b in itertools.pairwise(errors)
        )

    def _error(
        self,
        u: Tensor,
        gradients: list[Tensor],
        outputs: Tensor,
        ahead: float,
        back: float,
        v: Direction,
    ) -> tuple[float, float]:
        """Give the error of the slope along v, and its size: that of the change of all outputs."""
        with torch.no_grad():
            behind = self.run_at(back, v)[0] if back else outputs
            change = (self.run_at(ahead, v)[0] - behind) / (ahead - back)
            with torch._C.DisableTorchFunction():
                pairs = [(u, change), *zip(gradients, v.values(), strict=True)]
                sums = [torch.dot(a.flatten(), b.flatten()) for a, b in pairs]
                size, moved, *slopes = torch.stack([change.norm(), *sums]).tolist()
        return moved - sum(slopes), max(size, abs(sum(slopes)))

    def _off_in_small(self, u: Tensor, gradients: list[Tensor], outputs: Tensor) -> float:
        """Look once more, with larger steps, for errors of blocks that change the outputs little.

        Rounding and kinks change with the step; only what is alike for three steps counts.
        """
        least = min(filter(None, self.effects.values()), default=math.inf)
        large = max(self.effects.values())
        if u.dtype != torch.float64 or least * _PRECISIONS[u.dtype].largest >= large:
            return 0.0
        (_, _, v) = next(self._directions(_Precision((1e-7,), 1e3, 0.0)))
        error, size = self._error(u, gradients, outputs, 1e-7, -1e-7, v)
        floor = 100 * torch.finfo(u.dtype).eps * self.size / 1e-7
        if abs(error) <= 1e-7 * size + floor:
            return 0.0
        others = (self._error(u, gradients, outputs, h, -h, v)[0] for h in (1e-6, 1e-8))
        alike = all(abs(other - error) < 0.2 * abs(error) for other in others)
        return abs(error) / size if alike else 0.0

    def _check_second(self, u: Tensor, gradients: list[Tensor]) -> None:
        wrong, sure = "", False
        for ahead, back, v in self._directions(_SECOND):
            products = self._products(gradients, v)
            if u.dtype != torch.float64:
                return  # differences of gradients are too rough to tell
            changes = self._changes(ahead, back, v, u, gradients)
            finer = changes if wrong else self._changes(ahead / 10, back / 10, v, u, gradients)
            whole = math.sqrt(sum(c.square().sum().item() for c in changes))
            first, wrong = not wrong, ""
            for name, product, change, fine, gradient in zip(
                self.weights, products, changes, finer, gradients, strict=True
            ):
                size = max(product.norm().item(), change.norm().item(), 1e-3 * whole)
                floor = 100 * torch.finfo(u.dtype).eps * gradient.norm().item() / ahead
                error = (product - change).norm().item()
                # Rounding and kinks change with the step; what is wrong stays, however small.
                alike = first and (fine - change).norm().item() < 0.2 * error
                if error > (_ALIKE if alike else _SECOND.error) * size + floor:
                    wrong, sure = wrong or name, sure or alike
            if sure or not wrong:
                break
        if wrong:
            raise NotImplementedError(
                f"the second derivative that autograd gives in {wrong} is not that of the model's "
                "outputs: expected no custom autograd.Function or function of torch whose backward "
                "pass cannot be differentiated"
            )

    def _changes(
        self, ahead: float, back: float, v: Direction, u: Tensor, gradients: list[Tensor]
    ) -> list[Tensor]:
        """Give the differences of the gradients along v."""
        ends = []
        for h in (ahead, back):
            with torch.enable_grad():
                outputs, moved = self.run_at(h, v)
            ends.append(torch.autograd.grad(outputs, moved, u, materialize_grads=True))
            if not back:
                ends.append([gradient.detach() for gradient in gradients])
                break
        return [(a - b).div_(ahead - back) for a, b in zip(*ends, strict=True)]

    def _products(self, gradients: list[Tensor], v: Direction) -> list[Tensor]:
        weights = list(self.weights.values())
        paired = [(g, d) for g, d in zip(gradients, v.values(), strict=True) if g.requires_grad]
        if not paired:
            return [torch.zeros_like(w) for w in weights]
        sources, directions = zip(*paired, strict=True)
        try:
            found = torch.autograd.grad(
                sources, weights, directions, retain_graph=True, materialize_grads=True
            )
        except RuntimeError as error:
            raise _refused(error) from error
        return list(found)

    def _is_random(self, outputs: Tensor) -> bool:
        with random_state_kept(self.weights.values()), torch.no_grad():
            torch.manual_seed(1)
            return not torch.equal(one_tensor(self.pure.logits(self.inputs)[0]), outputs)


def _refused(error: RuntimeError) -> NotImplementedError:
    return NotImplementedError(f"the model cannot be differentiated: {first_line(error)}")
