"""Random small networks with random habits of users: norms are right, or refused by name.

`python -m tests.any_network 2000` prints the failures by kind and what was refused.
"""

from __future__ import annotations

import copy
import inspect
import math
import random
import re
import sys
import time
import warnings
from collections import Counter, UserDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.overrides import TorchFunctionMode

from hessinit_lib import layer_hessians
from hessinit_lib.hessians.estimate.hessians import model_hessian
from hessinit_lib.hessians.report import LayerHessian
from hessinit_lib.hessians.spectrum import Spectrum, spectrum
from tests.any_parts import (
    ACTIVATIONS,
    BY_DIFFERENCES,
    FOR_STEPS,
    HOWS,
    KINDS,
    LOSSES,
    PIECEWISE_LINEAR,
    SHAPES,
    STATE,
    STEPS,
    Block,
    Mean,
    RMSNorm,
    Structured,
    first_layers,
    targets,
)  # fmt: skip

WRAPS = [
    "weight_norm", "old weight_norm", "spectral_norm", "old spectral_norm", "orthogonal", "pruned",
    "rows pruned", "scaling hook", "looking hook", "pre-hook", "backward hook", "global hook",
    "global scaling hook", "replaced forward", "frozen", "all but one frozen", "zero layer",
    "dead", "large", "small", "DataParallel", "float32", "bfloat16", "one sample", "dict",
    "tuple", "UserDict", "gives logits", "gives dict", "gives tuple", "not finite",
]  # fmt: skip
# Differences mean nothing at a kink, at a jump (of signs, on a diagonal) or in few digits.
NO_DIFFERENCES = {"zero layer", "orthogonal", "float32", "bfloat16", "large"}


class Draw:
    """A network, a loss and a batch, all from one number."""

    def __init__(self, seed: int) -> None:
        rng, self.seed = random.Random(seed), seed
        torch.manual_seed(seed)
        kind = rng.choice(KINDS)
        self.how = rng.choice(["plain"] * 25 + HOWS)
        self.wrap = rng.choice(["none"] * 15 + WRAPS)
        if self.how in BY_DIFFERENCES and self.wrap in NO_DIFFERENCES:
            self.wrap = "none"
        if self.how == "noise" and self.wrap in ("float32", "bfloat16"):
            self.wrap = "none"  # the reference would draw other numbers
        batch = 1 if self.wrap == "one sample" else rng.choice([3, 5])
        self.x: Any = torch.randn(batch, *SHAPES.get(kind, (3, 4)), dtype=torch.float64)
        if kind in ("embedding", "bag"):
            self.x = torch.randint(7, (batch, 3))
        acts = rng.choice([ACTIVATIONS, PIECEWISE_LINEAR])
        blocks = [Block("plain", *first_layers(rng, kind, rng.choice(acts)))]
        blocks.append(Block(self.how, nn.Linear(4, 4), rng.choice(acts)()))
        if self.how == "plain" and rng.random() < 0.5:
            blocks = [layer for block in blocks for layer in block.body]
        if self.how == "inputs in place" and kind in {"mlp", *STEPS}:
            blocks.reverse()
        steps = kind in STEPS
        if steps and rng.random() < 0.5:
            blocks.append(Mean())
            steps = False
        usual = ["ce", "mse", "bce logits"] if rng.random() < 0.3 else list(LOSSES)
        self.loss_name = rng.choice(FOR_STEPS if steps else usual)
        if self.how in BY_DIFFERENCES and self.loss_name == "distilled":
            self.loss_name = "mse"  # differences would count how its targets change
        softmax = rng.random() < 0.05
        if self.loss_name == "in place" and (self.wrap == "backward hook" or softmax):
            self.loss_name = "mse"  # torch refuses to write to what these give
        head = [nn.Linear(4, 1 if self.loss_name == "broadcast" else 3)]
        last = {"nll": nn.LogSoftmax(-1), "kl": nn.LogSoftmax(-1), "bce": nn.Sigmoid()}
        if self.loss_name in last:
            head.append(last[self.loss_name])
        elif softmax:
            head.append(nn.Softmax(-1))
        model = nn.Sequential(*blocks, *head).double()
        # Differences would count what a batch's statistics do; here they are constants.
        model.train(rng.random() < 0.4 and batch > 1 and self.how not in BY_DIFFERENCES)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2.0)
                module.running_mean.normal_()
            if isinstance(module, nn.Dropout) and rng.random() < 0.7:
                module.eval()
        self.stack = ExitStack()
        wrong = ["int32", "uint8", "(B,1)", "float", "out of range"]
        self.target = rng.choice(["right"] * 20 + wrong)
        with torch.no_grad():
            out = copy.deepcopy(model)(self.x.clone())
        self.y = targets(self.loss_name, out, self.target)
        weight = rng.uniform(0.1, 2)
        self.loss = LOSSES[self.loss_name](weight, model, self.x)
        self.model = self._wrapped(model, rng)
        self.kind = f"{kind} | {self.how} | {self.wrap} | {self.loss_name} | {self.target}"

    def _wrapped(self, model: nn.Module, rng: random.Random) -> nn.Module:
        wrap, layer = self.wrap, rng.choice([m for m in model.modules() if type(m) is nn.Linear])
        changes = {
            "weight_norm": parametrizations.weight_norm, "old weight_norm": weight_norm,
            "spectral_norm": parametrizations.spectral_norm, "old spectral_norm": spectral_norm,
            "orthogonal": parametrizations.orthogonal,
            "pruned": lambda m: prune.random_unstructured(m, "weight", 0.4),
            "rows pruned": lambda m: prune.ln_structured(m, "weight", 0.4, 2, 0),
            "looking hook": lambda m: m.register_forward_hook(lambda m, a, out: None),
            "pre-hook": lambda m: m.register_forward_pre_hook(lambda m, a: (a[0] * 1.3,)),
            "backward hook": lambda m: m.register_full_backward_hook(lambda m, a, b: None),
            "frozen": lambda m: m.requires_grad_(False),
        }  # fmt: skip
        if wrap in changes:
            changes[wrap](layer)
            if "spectral" in wrap:
                model.eval()
        elif wrap == "scaling hook":
            rng.choice(list(model.modules())).register_forward_hook(
                lambda m, a, out: out * 1.7 if isinstance(out, Tensor) else None
            )
        elif wrap.startswith("global"):
            factor = 1.2 if "scaling" in wrap else None
            hook = nn.modules.module.register_module_forward_hook(
                lambda m, a, out: out * factor if factor and type(m) is nn.Linear else None
            )
            self.stack.callback(hook.remove)
        elif wrap == "replaced forward":
            old = layer.forward
            layer.forward = lambda z: old(z) * 1.5
        elif wrap == "all but one frozen":
            model.requires_grad_(False)
            layer.requires_grad_(True)
        elif wrap in ("zero layer", "dead", "large", "small", "not finite"):
            factors = {"zero layer": 0.0, "large": 1e4, "small": 1e-4, "not finite": math.inf}
            with torch.no_grad():
                layer.weight.mul_(factors.get(wrap, 1.0))
                if wrap == "dead" and layer.bias is not None:
                    layer.bias.sub_(100)
        elif wrap == "DataParallel":
            return nn.DataParallel(model)
        elif wrap in ("float32", "bfloat16"):
            model.to(getattr(torch, wrap)).double().to(getattr(torch, wrap))
            if self.x.is_floating_point():
                self.x = self.x.to(getattr(torch, wrap))
        elif wrap in ("dict", "UserDict", "tuple") or wrap.startswith("gives"):
            kinds = {"dict": dict, "UserDict": UserDict}
            if wrap in kinds:
                self.x = kinds[wrap](x=self.x)
            elif wrap == "tuple":
                self.x = (self.x,)
            return Structured(model, wrap)
        return model

    def called(self) -> Any:
        x = self.x  # what is done in place is done to a copy
        if isinstance(x, Tensor):
            return self.model(x.clone())
        return self.model(x[0].clone()) if isinstance(x, tuple) else self.model(x=x["x"].clone())

    def state(self) -> dict[str, Any]:
        """All that a call is to leave as it was."""
        x = self.x if isinstance(self.x, Tensor) else self.x[0 if type(self.x) is tuple else "x"]
        tensors = {**self.model.state_dict(), "x": x, "y": self.y, "random": torch.get_rng_state()}
        return {
            **{name: value.clone() for name, value in tensors.items()},
            "modes": [module.training for module in self.model.modules()],
            "gradients": [p.grad is None and p.requires_grad for p in self.model.parameters()],
            "hooks": [len(module._forward_hooks) for module in self.model.modules()],
            "switches": (torch.backends.cuda.flash_sdp_enabled(), torch.is_grad_enabled()),
        }


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
        if func is F.embedding_bag:
            return _bag(
                *args[:2], kwargs["padding_idx"], args[6] if len(args) > 6 else kwargs["mode"]
            )
        if (
            func is F.batch_norm
            and (given := _BATCH_NORM.bind(*args, **kwargs).arguments)["training"]
        ):
            x, axes = given["input"], [0, *range(2, given["input"].ndim)]
            mean, var = x.detach().mean(axes), x.detach().var(axes, unbiased=False)
            return F.batch_norm(x, mean, var, given["weight"], given["bias"], eps=given["eps"])
        return func(*args, **kwargs)


def _bag(tokens: Tensor, table: Tensor, padding: int | None, mode: str) -> Tensor:
    rows = []
    for bag in tokens:
        kept = table[bag if padding is None else bag[bag != padding]]
        found = {"sum": kept.sum, "mean": kept.mean, "max": kept.amax}[mode](0) if len(kept) else 0
        rows.append(table[0] * 0 + found)
    return torch.stack(rows)


@contextmanager
def reference() -> Iterator[None]:
    """Call models by functions whose derivatives are right."""
    STATE.reference = True
    try:
        with Plain(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        STATE.reference = False


def _gradient(draw: Draw, weights: list[Tensor], twice: bool = False) -> Tensor:
    torch.manual_seed(draw.seed)  # the mask of a dropout is that of the call
    y = draw.y.long() if draw.y.dtype in (torch.int32, torch.uint8) else draw.y
    outputs = draw.called()
    finite = not isinstance(outputs, Tensor) or bool(torch.isfinite(outputs).all())
    loss = draw.loss(outputs, y)
    none = torch.zeros(sum(w.numel() for w in weights), dtype=weights[0].dtype)
    if not (finite and torch.isfinite(loss)):
        return none + torch.nan
    if not loss.requires_grad:
        return none
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    found = torch.autograd.grad(loss, weights, create_graph=twice, **options)
    return torch.cat([g.reshape(-1) for g in found])


def dense(draw: Draw, weights: list[Tensor]) -> Tensor:
    """The Hessian block of some weights of what the model computes, in float64."""
    if draw.how in BY_DIFFERENCES:
        return torch.cat([_differences(draw, weight) for weight in weights])
    grad = _gradient(draw, weights, twice=True)
    none = torch.zeros_like(grad) if torch.isfinite(grad).all() else grad.detach()
    rows = [none.detach()] * len(grad)
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    for i, entry in enumerate(grad if grad.requires_grad else []):
        parts = torch.autograd.grad(entry, weights, retain_graph=True, **options)
        rows[i] = torch.cat([part.reshape(-1) for part in parts])
    return torch.stack(rows).detach()


def _differences(draw: Draw, weight: Tensor) -> Tensor:
    rows, flat = [], weight.data.view(-1)
    for i in range(len(flat)):
        old = flat[i].item()
        ends = []
        for value in (old + 1e-5, old - 1e-5):
            flat[i] = value
            ends.append(_gradient(draw, [weight]).clone())
        flat[i] = old
        rows.append((ends[0] - ends[1]) / 2e-5)
    return torch.stack(rows)


def verdict(seed: int) -> tuple[str, str]:
    """("right" | "refused" | "failed", why) of one draw."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draw = Draw(seed)
        with draw.stack:
            what, why = _verdict(draw)
    return what, why if what == "right" else f"{draw.kind}: {why}"


def _verdict(draw: Draw) -> tuple[str, str]:
    before = draw.state()
    found, refusal = _found(draw)
    for key, now in draw.state().items():
        same = torch.equal(before[key], now) if isinstance(now, Tensor) else before[key] == now
        if not same and not (isinstance(now, Tensor) and bool((now != now).any())):
            return "failed", f"{key} changed"
    if refusal is not None:
        text = str(refusal)
        if not isinstance(refusal, ValueError | NotImplementedError):
            return "failed", f"{type(refusal).__name__}: {text}"[:300]
        one_line = "\n" not in text.strip() and text.strip()
        return ("refused" if one_line else "failed"), text
    if draw.wrap in ("float32", "bfloat16"):  # the same numbers, computed more exactly
        draw.model.double()
        if isinstance(draw.x, Tensor) and draw.x.is_floating_point():
            draw.x = draw.x.double()
    weights = {k.removeprefix("module."): v for k, v in draw.model.named_parameters()}
    layers = [name for name in found if name in weights]
    for name, got in found.items():
        chosen = [weights[k] for k in layers] if name == "model" else [weights[name.split()[0]]]
        try:
            with reference():
                block = dense(draw, chosen)
        except Exception as error:
            return "failed", f"REFERENCE {type(error).__name__}: {error}"[:300]
        if wrong := _wrong(draw, got, block):
            return "failed", f"{name} {wrong}"
    exact = all(found[name].exact for name in layers)
    return "right", "exact" if exact else "estimated"


def _found(draw: Draw) -> tuple[dict[str, LayerHessian | Spectrum], Exception | None]:
    """Call the library."""
    generator = torch.Generator().manual_seed(draw.seed)
    options: dict[str, Any] = {"generator": generator, "tolerance": 0.05}
    given = (draw.model, draw.loss, draw.x, draw.y)
    found: dict[str, LayerHessian | Spectrum] = {}
    state = torch.get_rng_state()
    try:
        torch.manual_seed(draw.seed)
        report = layer_hessians(*given, **options)
        found.update(report)
        name = list(found)[draw.seed % len(found)]
        finite = all(math.isfinite(layer.frobenius) for layer in found.values())
        if draw.seed % 5 == 0 and draw.how not in BY_DIFFERENCES and finite:
            torch.manual_seed(draw.seed)
            found["model"] = model_hessian(*given, **options)
        if draw.seed % 3 == 0 and finite:
            torch.manual_seed(draw.seed)
            found[f"{name} (spectrum)"] = spectrum(*given, name=name, steps=200)
    except Exception as error:
        return found, error
    finally:
        torch.set_rng_state(state)
    # NaN is as good as a refusal where it has a reason.
    return found, ValueError(report.not_finite) if report.not_finite else None


def _wrong(draw: Draw, got: LayerHessian | Spectrum, block: Tensor) -> str:
    """Say which number is not that of a block, or ""."""
    norm = float(block.norm())
    if not math.isfinite(norm):  # the report says why
        return "" if not got.frobenius < math.inf else f"frobenius {got.frobenius} for {norm}"
    by_differences = draw.how in BY_DIFFERENCES
    in_float32 = draw.how == "in float32" or any(type(m) is RMSNorm for m in draw.model.modules())
    rough = draw.wrap in ("float32", "bfloat16") or in_float32
    bound = 1e-3 if rough else 1e-5 if by_differences else 1e-6
    # A reference that is not symmetric shows how much of it is rounding, as do saturated classes:
    # of features of size 1e4, squared, the 16th digit.
    least = 1e-9 if by_differences or draw.wrap == "large" else 1e-12
    asymmetry = 0.0 if by_differences else 10 * float((block - block.mT).norm())
    allowed = bound * norm + asymmetry + least
    errors = got if isinstance(got, LayerHessian) else SimpleNamespace(stderr=0, trace_stderr=0)
    spectral, trace = float(torch.linalg.matrix_norm(block, 2)), float(block.trace())
    for kind, value, true, error in (
        ("frobenius", got.frobenius, norm, errors.stderr),
        ("trace", got.trace, trace, errors.trace_stderr),
    ):
        if not abs(value - true) <= allowed + 5 * error:
            return f"{kind} {value} +- {error} for {true}"
    gap = getattr(got, "spectral_gap", 0.0)  # where the budget came first
    bound = 0.1 * spectral + allowed
    if not -gap - bound <= got.spectral - spectral <= bound:
        return f"spectral {got.spectral} for {spectral}"
    return ""


def main(count: int, first: int = 0) -> None:
    start, verdicts, reasons = time.time(), Counter(), Counter()
    for seed in range(first, first + count):
        what, why = verdict(seed)
        verdicts[f"{what}, {why}" if what == "right" else what] += 1
        if what == "failed":
            print(seed, why, flush=True)
        elif what == "refused":
            # Names, shapes and numbers aside.
            reason = re.sub(r"\([\d, ]+\)|[\w.]*\d[\w.+-]*|<lambda>", "_", why.split(": ", 1)[1])
            reasons[reason[:90]] += 1
    print(f"{count} draws in {time.time() - start:.0f} s: {dict(verdicts)}")
    for reason, times in reasons.most_common(60):
        print(f"{times / count:6.2%}  {reason}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(int, sys.argv[1:]))
