"""Random small networks with random habits of users: norms are right, or refused by name.

`python -m tests.any_network 2000` prints the failures by kind and what was refused.
"""

from __future__ import annotations

import copy
import inspect
import math
import random
import sys
import time
import warnings
from collections import Counter, UserDict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, prune, weight_norm
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from hessinit_lib import layer_hessians
from hessinit_lib.hessians.estimate.hessians import model_hessian

ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Softplus,
    nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Mish,
    nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Identity,
    lambda: nn.ReLU(inplace=True), lambda: nn.GELU("tanh"), lambda: nn.SiLU(inplace=True),
]  # fmt: skip


class Cube(torch.autograd.Function):
    """A function of one's own: right, or not differentiable twice as a user may write it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, how: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.how = how
        return x.round() if how == "straight-through" else x + 0.1 * x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if ctx.how == "straight-through":
            return grads[0], None
        slope = 1 + 0.3 * (x.detach() if ctx.how == "wrong second" else x) ** 2
        return grads[0] * slope, None


class CubeOnce(Cube):
    backward = staticmethod(torch.autograd.function.once_differentiable(Cube.backward))


class Block(nn.Module):
    """Some layers and what is done between them; `how` is a habit."""

    def __init__(self, how: str, *layers: nn.Module) -> None:
        super().__init__()
        self.how, self.body = how, nn.Sequential(*layers)
        self.list = [nn.Linear(4, 4, dtype=torch.float64)] if how == "weights in a list" else []
        self.unread = nn.Linear(2, 2) if how == "unused layer" else None
        self.scale = nn.Parameter(torch.randn(4, 4)) if how == "bare parameter" else None

    def forward(self, x: Tensor) -> Tensor:
        how, body = self.how, self.body
        if how.startswith("checkpoint") and not REFERENCE:
            return checkpoint(body, x, use_reentrant=how.endswith("reentrant"))
        if how == "residual":
            return x + body(x)
        if how == "tied":
            return body(body(x))
        if how == "detached part":
            return body(x) + body(x).detach() * x
        if how == "no_grad part":
            with torch.no_grad():
                part = body(x).sigmoid()
            return body(x) * part
        if how == "weights in a list":
            return body(x) + F.linear(x, self.list[0].weight.to(x.dtype))
        if how == "bare parameter":
            return body(x) @ self.scale
        if how == "dropout":
            return F.dropout(body(x), 0.5, training=True)
        if how == "once differentiable":
            return CubeOnce.apply(body(x), how)
        if how in ("right function", "wrong second", "straight-through"):
            return Cube.apply(body(x), how)
        if how == "inputs in place":
            return body(x.sub_(0.1).mul_(1.5))
        return body(x)


REFERENCE = False
HOWS = [
    "residual", "tied", "checkpoint reentrant", "checkpoint plain", "detached part",
    "no_grad part", "weights in a list", "bare parameter", "dropout", "once differentiable",
    "right function", "wrong second", "straight-through", "inputs in place", "unused layer",
]  # fmt: skip
# There, second derivatives by autograd are not those of what the model computes.
BY_DIFFERENCES = {
    "detached part", "no_grad part", "wrong second", "straight-through", "once differentiable",
    "weights in a list",
}  # fmt: skip
# Differences mean nothing at a kink, at a jump (of signs, on a diagonal) or in few digits.
NO_DIFFERENCES = {"zero layer", "orthogonal", "float32", "bfloat16"}
WRAPS = [
    "weight_norm", "old weight_norm", "spectral_norm", "orthogonal", "pruned", "scaling hook",
    "looking hook", "pre-hook", "global hook", "global scaling hook", "replaced forward",
    "frozen", "zero layer", "dead", "large", "small", "DataParallel", "float32", "bfloat16",
    "one sample", "dict", "tuple", "UserDict",
]  # fmt: skip


class Attention(nn.Module):
    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.attend, self.weights = nn.MultiheadAttention(4, 2, batch_first=True), weights

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, x, x, need_weights=self.weights)[0]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell = kind(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Bilinear(4, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x, x)


class Structured(nn.Module):
    def __init__(self, model: nn.Module, kind: str) -> None:
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, *batch: Any, **named: Any) -> Tensor:
        if named:
            batch = (named,)
        x = batch[0]
        return self.model(x if isinstance(x, Tensor) else x[0 if self.kind == "tuple" else "x"])


def _layers(rng: random.Random, kind: str) -> list[nn.Module]:
    act = rng.choice(ACTIVATIONS)
    if kind == "conv":
        pool = rng.choice([nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2)])
        norm = rng.choice([nn.Identity(), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)])
        groups = rng.choice([1, 2])
        conv = nn.Conv2d(2, 4, 3, padding=1, groups=groups)
        return [conv, norm, act(), pool, nn.Flatten(), nn.Linear(16, 4)]
    if kind == "recurrent":
        return [Recurrent(rng.choice([nn.RNN, nn.LSTM, nn.GRU]))]
    if kind == "attention":
        return [Attention(rng.random() < 0.5), nn.LayerNorm(4)]
    if kind == "embedding":
        return [nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 4), act()]
    middle = rng.choice([nn.Identity, lambda: nn.BatchNorm1d(4), lambda: nn.LayerNorm(4)])
    last = rng.choice([lambda: nn.Linear(4, 4), lambda: nn.Linear(4, 4), Bilinear])
    return [nn.Linear(4, 4), middle(), act(), last()]


class Draw:
    """A network, a loss and a batch, all from one number."""

    def __init__(self, seed: int) -> None:
        rng, self.seed = random.Random(seed), seed
        torch.manual_seed(seed)
        kind = rng.choice(["mlp"] * 4 + ["conv", "recurrent", "attention", "embedding"])
        self.how = rng.choice(["plain"] * 8 + HOWS)
        self.wrap = rng.choice(["none"] * 10 + WRAPS)
        if self.how in BY_DIFFERENCES and self.wrap in NO_DIFFERENCES:
            self.wrap = "none"
        batch = 1 if self.wrap == "one sample" else rng.choice([3, 5])
        shape = {"mlp": (4,), "conv": (2, 4, 4), "embedding": (3,)}.get(kind, (3, 4))
        self.x: Any = torch.randn(batch, *shape, dtype=torch.float64)
        if kind == "embedding":
            self.x = torch.randint(7, (batch, 3))
        first = Block("plain", *_layers(rng, kind))
        act = rng.choice(ACTIVATIONS)
        second = Block(self.how, nn.Linear(4, 4), act())
        if self.how == "inputs in place":
            first, second = second, first
        three = kind in ("recurrent", "attention")
        self.loss_name = rng.choice(list(LOSSES) if not three else ["mse", "l1", "huber"])
        head: list[nn.Module] = [nn.Linear(4, 1 if self.loss_name == "broadcast" else 3)]
        if self.loss_name in ("nll", "kl"):
            head.append(nn.LogSoftmax(-1))
        elif self.loss_name == "bce":
            head.append(nn.Sigmoid())
        elif rng.random() < 0.05:
            head.append(nn.Softmax(-1))
        blocks = [first, second, *head]
        if self.how == "inputs in place" and kind not in ("mlp", "recurrent", "attention"):
            blocks = [second, first, *head]  # these first layers do not take four features
        model: nn.Module = (
            nn.Sequential(*blocks)
            .double()
            .train(
                # Differences would count what a batch's statistics do; here they are constants.
                rng.random() < 0.4 and batch > 1 and self.how not in BY_DIFFERENCES
            )
        )
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2.0)
                module.running_mean.normal_()
        self.stack = ExitStack()
        self.target = rng.choice(["right"] * 15 + ["int32", "(B,1)", "float", "out of range"])
        with torch.no_grad():
            out = copy.deepcopy(model)(self.x.clone())
        self.y = _targets(self.loss_name, out, self.target)
        weight = rng.uniform(0.1, 2)
        self.loss = LOSSES[self.loss_name](weight, model)
        self.model = self._wrapped(model, rng)
        self.kind = f"{kind} | {self.how} | {self.wrap} | {self.loss_name} | {self.target}"

    def _wrapped(self, model: nn.Module, rng: random.Random) -> nn.Module:
        wrap, layer = self.wrap, rng.choice([m for m in model.modules() if type(m) is nn.Linear])
        every = nn.modules.module
        if wrap == "weight_norm":
            parametrizations.weight_norm(layer)
        elif wrap == "old weight_norm":
            weight_norm(layer)
        elif wrap == "spectral_norm":
            parametrizations.spectral_norm(layer)
            model.eval()
        elif wrap == "orthogonal":
            parametrizations.orthogonal(layer)
        elif wrap == "pruned":
            prune.random_unstructured(layer, "weight", 0.4)
        elif wrap == "scaling hook":
            rng.choice(list(model.modules())).register_forward_hook(
                lambda m, a, out: out * 1.7 if isinstance(out, Tensor) else None
            )
        elif wrap == "looking hook":
            layer.register_forward_hook(lambda m, a, out: None)
        elif wrap == "pre-hook":
            layer.register_forward_pre_hook(lambda m, a: (a[0] * 1.3,))
        elif wrap == "global hook":
            self.hook = lambda m, a, out: None
        elif wrap == "global scaling hook":
            self.hook = lambda m, a, out: out * 1.2 if type(m) is nn.Linear else None
        elif wrap == "replaced forward":
            old = layer.forward
            layer.forward = lambda z: old(z) * 1.5
        elif wrap == "frozen":
            layer.requires_grad_(False)
        elif wrap in ("zero layer", "dead", "large", "small"):
            factor = {"zero layer": 0.0, "dead": 1.0, "large": 1e4, "small": 1e-4}[wrap]
            with torch.no_grad():
                layer.weight.mul_(factor)
                if wrap == "dead" and layer.bias is not None:
                    layer.bias.sub_(100)
        elif wrap == "DataParallel":
            return nn.DataParallel(model)
        elif wrap in ("float32", "bfloat16"):
            model.to(getattr(torch, wrap))
            model.double().to(getattr(torch, wrap))
            if self.x.is_floating_point():
                self.x = self.x.to(getattr(torch, wrap))
        elif wrap in ("dict", "UserDict", "tuple"):
            x = self.x
            self.x = (x,) if wrap == "tuple" else {"dict": dict, "UserDict": UserDict}[wrap](x=x)
            return Structured(model, wrap)
        if wrap.startswith("global"):
            self.stack.callback(every.register_module_forward_hook(self.hook).remove)
        return model


def _hinge(out: Tensor, y: Tensor) -> Tensor:
    return F.relu(1 - out * y).mean()


def _contrastive(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out @ out.T, torch.arange(len(out)))


def _decayed(weight: float, model: nn.Module) -> Callable:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y) + weight * sum(p.square().sum() for p in model.parameters())

    return loss


LOSSES: dict[str, Callable[[float, nn.Module], Callable]] = {
    "ce": lambda w, m: nn.CrossEntropyLoss(),
    "weighted ce": lambda w, m: nn.CrossEntropyLoss(torch.tensor([w, 1.0, 0.5]).double()),
    "smooth ce": lambda w, m: nn.CrossEntropyLoss(label_smoothing=0.1),
    "ignoring ce": lambda w, m: nn.CrossEntropyLoss(ignore_index=1),
    "ce sum": lambda w, m: nn.CrossEntropyLoss(reduction="sum"),
    "nll": lambda w, m: nn.NLLLoss(), "mse": lambda w, m: nn.MSELoss(),
    "l1": lambda w, m: nn.L1Loss(), "smooth l1": lambda w, m: nn.SmoothL1Loss(),
    "huber": lambda w, m: nn.HuberLoss(delta=w), "bce logits": lambda w, m: nn.BCEWithLogitsLoss(),
    "bce": lambda w, m: nn.BCELoss(), "kl": lambda w, m: nn.KLDivLoss(reduction="batchmean"),
    "hinge": lambda w, m: _hinge, "critic": lambda w, m: lambda out, y: out.mean(),
    "contrastive": lambda w, m: _contrastive, "decay": _decayed,
    "broadcast": lambda w, m: nn.MSELoss(),
}  # fmt: skip


def _targets(loss: str, out: Tensor, how: str) -> Tensor:
    y = torch.randint(3, out.shape[:1])
    if loss == "broadcast":
        return torch.randn(len(out), dtype=out.dtype)
    if "ce" in loss.split() or loss in ("nll", "decay"):
        wrong = {"int32": y.int(), "(B,1)": y[:, None], "float": y.double(), "out of range": y + 3}
        return wrong.get(how, y)
    if loss in ("bce", "bce logits", "kl"):
        return torch.rand_like(out).softmax(-1) if loss == "kl" else torch.rand_like(out)
    return torch.randn_like(out)


_BATCH_NORM = inspect.signature(F.batch_norm)


class Plain(TorchFunctionMode):
    """Functions whose second derivative torch has wrong, and fixed statistics."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch._weight_norm:
            v, g, dim = (*args, kwargs.get("dim", 0))[:3]
            axes = [i for i in range(v.ndim) if i != dim]
            return v * (g / v.square().sum(axes, keepdim=True).sqrt())
        if func is F.hardsigmoid:
            return F.hardtanh(args[0] / 6 + 0.5, 0.0, 1.0)
        if (
            func is F.batch_norm
            and (given := _BATCH_NORM.bind(*args, **kwargs).arguments)["training"]
        ):
            x, axes = given["input"], [0, *range(2, given["input"].ndim)]
            mean, var = x.detach().mean(axes), x.detach().var(axes, unbiased=False)
            return F.batch_norm(x, mean, var, given["weight"], given["bias"], eps=given["eps"])
        return func(*args, **kwargs)


def _called(model: nn.Module, x: Any) -> Tensor:
    if isinstance(x, Tensor):
        return model(x.clone())
    if isinstance(x, tuple):
        return model(*[part.clone() for part in x])
    return model(type(x)(x=x["x"].clone()))  # what is done in place is done to a copy


def dense(draw: Draw, names: list[str]) -> dict[str, Tensor]:
    """Hessian blocks of what the model computes, in float64."""
    global REFERENCE
    weights = {k.removeprefix("module."): v for k, v in draw.model.named_parameters()}
    REFERENCE, differences = True, draw.how in BY_DIFFERENCES
    try:
        with Plain(), sdpa_kernel(SDPBackend.MATH):
            return {
                name: (_differences if differences else _twice)(draw, weights[name])
                for name in names
            }
    finally:
        REFERENCE = False


def _gradient(draw: Draw, weight: Tensor, twice: bool = False) -> Tensor:
    torch.manual_seed(draw.seed)  # the mask of a dropout is that of the call
    y = draw.y.long() if draw.y.dtype == torch.int32 else draw.y
    loss = draw.loss(_called(draw.model, draw.x), y)
    none = torch.zeros_like(weight)
    if not loss.requires_grad:
        return none
    if not torch.isfinite(loss):
        return none + torch.nan
    (grad,) = torch.autograd.grad(loss, weight, create_graph=twice, allow_unused=True)
    return none if grad is None else grad


def _twice(draw: Draw, weight: Tensor) -> Tensor:
    grad = _gradient(draw, weight, twice=True).reshape(-1)
    none = torch.zeros_like(grad) if torch.isfinite(grad).all() else grad.detach()
    rows = [none] * len(grad)
    if grad.requires_grad:
        for i, entry in enumerate(grad):
            (row,) = torch.autograd.grad(entry, weight, retain_graph=True, allow_unused=True)
            rows[i] = none if row is None else row.reshape(-1)
    return torch.stack(rows).detach()


def _whole(draw: Draw, names: list[str]) -> Tensor:
    """The Hessian of all weights together."""
    weights = [v for k, v in draw.model.named_parameters() if k.removeprefix("module.") in names]
    with Plain(), sdpa_kernel(SDPBackend.MATH):
        torch.manual_seed(draw.seed)
        y = draw.y.long() if draw.y.dtype == torch.int32 else draw.y
        loss = draw.loss(_called(draw.model, draw.x), y)
        options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
        grads = torch.autograd.grad(loss, weights, create_graph=True, **options)
        rows = []
        for entry in torch.cat([g.reshape(-1) for g in grads]):
            if entry.requires_grad:
                parts = torch.autograd.grad(entry, weights, retain_graph=True, **options)
            else:
                parts = [torch.zeros_like(w) for w in weights]
            rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows)


def _differences(draw: Draw, weight: Tensor) -> Tensor:
    rows, flat = [], weight.data.view(-1)
    for i in range(len(flat)):
        old = flat[i].item()
        ends = []
        for value in (old + 1e-5, old - 1e-5):
            flat[i] = value
            ends.append(_gradient(draw, weight).reshape(-1).clone())
        flat[i] = old
        rows.append((ends[0] - ends[1]) / 2e-5)
    return torch.stack(rows)


def verdict(seed: int) -> tuple[str, str]:
    """("right" | "refused" | "failed", why) of one draw."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draw = Draw(seed)
        try:
            with draw.stack:
                return _verdict(draw, seed)
        except Exception as error:  # a raw error of a reference is a failure, too
            return "failed", f"{draw.kind}: REFERENCE {type(error).__name__}: {error}"[:300]


def _verdict(draw: Draw, seed: int) -> tuple[str, str]:
    generator = torch.Generator().manual_seed(seed)
    whole = None
    options: dict[str, Any] = {"generator": generator, "tolerance": 0.05}
    before = {k: v.clone() for k, v in draw.model.state_dict().items()}
    try:
        if seed % 5 == 0 and draw.how not in BY_DIFFERENCES:
            torch.manual_seed(seed)
            whole = model_hessian(draw.model, draw.loss, draw.x, draw.y, **options)
        torch.manual_seed(seed)
        report = layer_hessians(draw.model, draw.loss, draw.x, draw.y, **options)
    except (ValueError, NotImplementedError) as error:
        text = str(error)
        lines = "\n" in text.strip() or not text.strip()
        return ("failed" if lines else "refused"), f"{draw.kind}: {text}"
    except Exception as error:
        return "failed", f"{draw.kind}: {type(error).__name__}: {error}"[:300]
    after = draw.model.state_dict()
    if any(not torch.equal(before[k], after[k]) for k in before):
        return "failed", f"{draw.kind}: the model's state changed"
    if draw.wrap in ("float32", "bfloat16"):  # the same numbers, computed more exactly
        draw.model.double()
        draw.x = draw.x.double() if draw.x.is_floating_point() else draw.x
    blocks = dense(draw, list(report))
    bound = 1e-6 if draw.wrap not in ("float32", "bfloat16") else 1e-3
    bound = max(bound, 1e-5 if draw.how in BY_DIFFERENCES else 0)
    found = dict(report)
    if whole is not None:
        global REFERENCE
        REFERENCE = True
        try:
            found["model"], blocks["model"] = whole, _whole(draw, list(report))
        finally:
            REFERENCE = False
    least = 1e-9 if draw.how in BY_DIFFERENCES else 1e-12
    for name, block in blocks.items():
        layer, norm = found[name], float(block.norm())
        if not math.isfinite(norm) and math.isnan(layer.frobenius):
            continue  # and the report says why
        spectral = float(torch.linalg.matrix_norm(block, 2))
        # A reference that is not symmetric shows how much of it is rounding.
        rough = 0.0 if draw.how in BY_DIFFERENCES else 10 * float((block - block.mT).norm())
        allowed = bound * norm + least + rough + (0 if layer.exact else 5 * layer.stderr)
        if not abs(layer.frobenius - norm) <= allowed:
            numbers = f"{layer.frobenius} +- {layer.stderr} for {norm}"
            return "failed", f"{draw.kind}: {name} wrong: frobenius {numbers}"
        if not abs(layer.spectral - spectral) <= 0.1 * spectral + least:
            return "failed", f"{draw.kind}: {name} spectral {layer.spectral} for {spectral}"
    return "right", "exact" if all(v.exact for v in report.values()) else "estimated"


def main(count: int, seconds: float = 1e9) -> None:
    start, verdicts, reasons = time.time(), Counter(), Counter()
    for seed in range(count):
        if time.time() - start > seconds:
            break
        what, why = verdict(seed)
        verdicts[what] += 1
        if what == "failed":
            print(seed, why, flush=True)
        elif what == "refused":
            reasons[why.split(": ", 1)[1][:70]] += 1
    total = sum(verdicts.values())
    print(f"{total} draws in {time.time() - start:.0f} s: {dict(verdicts)}")
    for reason, times in reasons.most_common(40):
        print(f"{times / total:6.1%}  {reason}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), *map(float, sys.argv[2:]))
