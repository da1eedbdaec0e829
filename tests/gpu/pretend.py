"""A pretend GPU: tensors that say `cuda:0`, compute on the CPU, and refuse to be mixed.

    with PretendGpu() as gpu:
        layer_hessians(model.cuda(), loss_fn, x.cuda(), y.cuda())
    gpu.launches.total(), gpu.waits.total()

Like on a GPU: devices of tensors and generators, errors where two devices meet, a random stream of
its own, the names of operations in the graph, rounding to TF32 if asked for. Counted: operations
that launch a kernel, and those for which the host waits, by the line of the project that they come
from. Unlike on a GPU: speed, memory, streams, the order of sums.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.utils._device
import torch.utils.backend_registration as backend_registration
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

aten: Any = torch.ops.aten
CUDA = torch.device("cuda", 0)
ROOT = Path(__file__).resolve().parents[2]
_active: list[PretendGpu] = []


class _Backend(backend_registration._DummyBackendModule):
    """What torch asks the backend that stands for the GPU."""

    def get_rng_state(self, device: object = None) -> Tensor:
        return _active[-1].generator.get_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        _active[-1].generator.set_state(state)


# For what is written in C++ the tensors lie on a device of their own, which needs no driver: a
# backend that is written in Python, in this process for good.
backend_registration._setup_privateuseone_for_python_backend("pretend", _Backend())
# The engine would want a thread of the device; kept, as the setting lasts as long as this.
_IN_ONE_THREAD = torch.autograd.set_multithreading_enabled(False)
_DEVICE = torch.device("pretend", 0)
# What a default device concerns is noted at the first use: that it be torch's own functions.
torch.utils._device._device_constructors()


class GpuTensor(Tensor):
    """A tensor that says that it is on a GPU, and stands for `inner`, which is on the CPU."""

    inner: Any  # pyright: ignore
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @staticmethod
    def __new__(cls, inner: Tensor) -> GpuTensor:
        new = Tensor._make_wrapper_subclass(
            *(cls, inner.size(), inner.stride(), inner.storage_offset()),
            dtype=inner.dtype, layout=inner.layout, device=_DEVICE,
            storage_size=inner.untyped_storage().nbytes(),
        )  # fmt: skip
        new.inner = inner.detach()
        return new

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    device = property(lambda _: CUDA)  # pyright: ignore
    is_cuda = property(lambda _: True)  # pyright: ignore

    def get_device(self) -> int:
        return 0

    # These do not pass the dispatcher.
    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def new_tensor(self, data: Any, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:  # pyright: ignore
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or CUDA)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            new = self.detach().clone()
            if isinstance(self, torch.nn.Parameter):
                new = torch.nn.Parameter(new)
            memo[id(self)] = new.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuilt, (self.inner, isinstance(self, torch.nn.Parameter), self.requires_grad)

    def __repr__(self, **_: Any) -> str:
        return f"GpuTensor({self.inner!r})"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else repr(self)


def _rebuilt(tensor: Tensor, parameter: bool, requires_grad: bool) -> Tensor:
    new = GpuTensor(tensor) if _active else tensor
    return (
        torch.nn.Parameter(new, requires_grad) if parameter else new.requires_grad_(requires_grad)
    )


def _is_gpu(device: object) -> bool:
    return device is not None and torch.device(device).type in ("cuda", "pretend")  # pyright: ignore


# Random numbers ----------------------------------------------------------------------------------

_CpuGenerator = torch.Generator


class CudaGenerator(_CpuGenerator):
    """A generator that says that it is on a GPU."""

    device = property(lambda _: CUDA)  # pyright: ignore

    def clone_state(self) -> CudaGenerator:
        new = CudaGenerator()
        new.set_state(self.get_state())
        return new

    def __deepcopy__(self, memo: Any) -> CudaGenerator:
        return self.clone_state()


class _Generators(type):
    def __instancecheck__(cls, found: object) -> bool:
        return isinstance(found, _CpuGenerator)

    def __call__(cls, device: Any = "cpu") -> Any:
        return CudaGenerator() if torch.device(device).type == "cuda" else _CpuGenerator(device)


class _Generator(metaclass=_Generators):
    """Takes the place of `torch.Generator`."""


_given: list[Any] = []  # the generators of the calls that are running: torch hands on copies


def _watched(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        candidates = (kwargs.get("generator"), *args)
        _given.append(next((g for g in candidates if isinstance(g, _CpuGenerator)), None))
        try:
            return function(*args, **kwargs)
        finally:
            _given.pop()

    return call


_DRAWING = ["rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "normal"]
_DRAWING_IN_PLACE = ["normal_", "uniform_", "random_", "bernoulli_", "exponential_", "multinomial"]


def _check_generator(on_gpu: bool) -> None:
    if (given := _given[-1] if _given else None) is not None:
        expected = "cuda" if on_gpu else "cpu"
        found = given.device.type
        if expected != found:
            message = f"Expected a '{expected}' device type for generator but found '{found}'"
            raise RuntimeError(message)


@contextlib.contextmanager
def _own_stream(gpu: PretendGpu) -> Iterator[None]:
    """Draw from the random stream of the GPU."""
    kept = torch.default_generator.get_state()
    torch.default_generator.set_state(gpu.generator.get_state())
    try:
        yield
    finally:
        gpu.generator.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(kept)


# Operations --------------------------------------------------------------------------------------

_COPIES = {aten.copy_.default, aten._to_copy.default, aten.set_.source_Tensor}
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
# The host waits for sizes, or for what a solver says of its success.
_WAITING_NAMES = """
_local_scalar_dense nonzero equal masked_select _unique2 unique_dim unique_consecutive bincount
linalg_qr linalg_lstsq _linalg_eigh _linalg_svd _linalg_solve_ex linalg_cholesky_ex linalg_inv_ex
linalg_ldl_factor_ex linalg_eig repeat_interleave
"""
_WAITING = frozenset(_WAITING_NAMES.split())
_NO_KERNEL = (
    "empty",
    "new_empty",
    "detach",
    "lift_fresh",
    "is_same_size",
    "_local_scalar_dense",
    "_unsafe_view",
)

# The factors of products, which may be rounded, by their places.
_FACTORS = {
    **dict.fromkeys(("mm", "bmm", "mv", "convolution"), (0, 1)),
    **dict.fromkeys(("addmm", "addmm_", "baddbmm", "baddbmm_"), (1, 2)),
    "convolution_backward": (0, 1, 2),
}


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute what torch was about to, where the arguments lie."""
    name, seeded, launching = _facts(func)
    tensors: list[Tensor] = []
    inner = tuple([_inner(each, tensors) for each in args])
    options = {key: _inner(each, tensors) for key, each in kwargs.items()} if kwargs else {}
    given = {id(t.inner): t for t in tensors if isinstance(t, GpuTensor)}
    remote = bool(given)
    device = kwargs.get("device")
    to_gpu = _is_gpu(device)
    on_gpu = to_gpu or (remote and device is None)
    if seeded:
        _check_generator(on_gpu)
    if not (remote or to_gpu):
        return func(*args, **kwargs)
    if func not in _COPIES:
        _check_devices(name, args, tensors)
    if _active:
        _active[-1].count(func, name, args, on_gpu, launching)
    if device is not None:
        options["device"] = "cpu"
        if options.get("pin_memory"):
            options["pin_memory"] = False
    own = seeded and _active and not (_given and _given[-1])
    with _own_stream(_active[-1]) if own else contextlib.nullcontext():
        compute: Any = _ONLY_ON_GPU.get(name, func)
        found = compute(*_rounded(name, inner), **options)
    if not on_gpu:
        return found
    if name in _RESHAPING:  # the tensor that says that it is on a GPU has a shape of its own
        with torch._C._DisableTorchDispatch():
            func(*args, **kwargs)

    return _outer(found, given, tensors)


def _outer(value: Any, given: dict[int, GpuTensor], tensors: list[Tensor]) -> Any:
    """Give what says that it is on the GPU for what was computed."""
    if isinstance(value, list | tuple):
        return type(value)([_outer(each, given, tensors) for each in value])
    if not isinstance(value, Tensor):
        return value
    if id(value) in given:  # a result in place is the tensor that was given
        return given[id(value)]
    return value if any(value is t for t in tensors) else GpuTensor(value)


@functools.cache
def _facts(func: Any) -> tuple[str, bool, bool]:
    """Give an operation's name, whether it draws random numbers, whether it launches a kernel."""
    name = func.name().removeprefix("aten::").partition(".")[0]
    aliases = [result.alias_info for result in func._schema.returns]
    views = any(alias is not None and not alias.is_write for alias in aliases)
    launching = not views and not name.startswith(_NO_KERNEL)
    return name, torch.Tag.nondeterministic_seeded in func.tags, launching


def _inner(value: Any, tensors: list[Tensor]) -> Any:
    """Give what stands for an argument on the CPU; note the tensors in it."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.inner if isinstance(value, GpuTensor) else value
    if isinstance(value, list | tuple):
        return type(value)([_inner(each, tensors) for each in value])
    return value


_RESHAPING = ["squeeze_", "unsqueeze_", "t_", "transpose_", "as_strided_", "swapaxes_", "swapdims_"]


def _check_devices(name: str, args: Any, tensors: list[Tensor]) -> None:
    if name in _INDEXED and isinstance(args[0], GpuTensor):  # indices may lie on the CPU
        tensors = [args[0], *args[2:3]]
    strict = name in ("cat", "stack")
    mixed = [t for t in tensors if not isinstance(t, GpuTensor) and (t.dim() or strict)]
    if mixed:
        shapes = [(t.device.type, tuple(t.shape)) for t in tensors]
        raise RuntimeError(f"Expected all tensors to be on the same device: {name} of {shapes}")


def _rounded(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Round factors to TF32, as its settings tell."""
    if name not in _FACTORS or not _active or not _active[-1].tf32:
        return args
    conv = "convolution" in name
    backends: Any = torch.backends
    backend = backends.cudnn.conv if conv else backends.cuda.matmul
    if backend.fp32_precision != "tf32" or (conv and not torch.backends.cudnn.enabled):
        return args
    return tuple(_to_tf32(a) if place in _FACTORS[name] else a for place, a in enumerate(args))


def _to_tf32(values: Any) -> Any:
    """Keep ten bits after the leading one, cut off as the worst that a device may do."""
    if not isinstance(values, Tensor) or values.dtype != torch.float32:
        return values
    return (values.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


# What a GPU has in place of operations of the CPU -------------------------------------------------


def _cudnn_batch_norm(x: Tensor, w: Tensor, b: Tensor, *rest: Any) -> Any:
    assert torch.backends.cudnn.enabled
    found = aten.native_batch_norm(x, w, b, *rest)
    return *found, x.new_empty(0, dtype=torch.uint8)


def _cudnn_batch_norm_backward(
    x: Tensor, g: Tensor, w: Tensor, m: Any, v: Any, mean: Any, inv: Any, eps: float, _: Tensor
) -> Any:
    return aten.native_batch_norm_backward(g, x, w, m, v, mean, inv, True, eps, [True] * 3)


def _gates(gi: Tensor, gh: Tensor, bi: Any, bh: Any) -> tuple[Tensor, Tensor]:
    return (gi, gh) if bi is None else (gi + bi, gh + bh)


def _lstm_cell(gi: Tensor, gh: Tensor, c: Tensor, bi: Any = None, bh: Any = None) -> Any:
    gates = sum(_gates(gi, gh, bi, bh))
    assert isinstance(gates, Tensor)
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    return o * c.tanh(), c, torch.cat([i, f, g, o], 1)


def _lstm_cell_backward(
    dh: Tensor | None, dc: Tensor | None, before: Tensor, c: Tensor, saved: Tensor, biased: bool
) -> Any:
    i, f, g, o = saved.chunk(4, 1)
    t = c.tanh()
    dh = torch.zeros_like(c) if dh is None else dh
    total = dh * o * (1 - t**2) + (0 if dc is None else dc)
    parts = (total * g * i * (1 - i), total * before * f * (1 - f), total * i * (1 - g**2))
    gates = torch.cat([*parts, dh * t * o * (1 - o)], 1)
    return gates, total * f, gates.sum(0) if biased else gates.new_empty(0)


def _gru_cell(gi: Tensor, gh: Tensor, h: Tensor, bi: Any = None, bh: Any = None) -> Any:
    (ri, zi, ni), (rh, zh, nh) = (gates.chunk(3, 1) for gates in _gates(gi, gh, bi, bh))
    r, z = (ri + rh).sigmoid(), (zi + zh).sigmoid()
    n = (ni + r * nh).tanh()
    return n + z * (h - n), torch.cat([r, z, n, h, nh], 1)


def _gru_cell_backward(dh: Tensor, saved: Tensor, biased: bool) -> Any:
    r, z, n, h, nh = saved.chunk(5, 1)
    dn = dh * (1 - z) * (1 - n**2)
    dr, dz = dn * nh * r * (1 - r), dh * (h - n) * z * (1 - z)
    gi, gh = torch.cat([dr, dz, dn], 1), torch.cat([dr, dz, dn * r], 1)
    sums = (gi.sum(0), gh.sum(0)) if biased else (gi.new_empty(0), gh.new_empty(0))
    return gi, gh, dh * z, *sums


_ONLY_ON_GPU: dict[str, Callable[..., Any]] = {
    "cudnn_batch_norm": _cudnn_batch_norm,
    "cudnn_batch_norm_backward": _cudnn_batch_norm_backward,
    "_thnn_fused_lstm_cell": _lstm_cell,
    "_thnn_fused_lstm_cell_backward_impl": _lstm_cell_backward,
    "_thnn_fused_gru_cell": _gru_cell,
    "_thnn_fused_gru_cell_backward": _gru_cell_backward,
}

_batch_norm = torch.batch_norm


def _gpu_batch_norm(x: Tensor, w: Any, b: Any, *rest: Any) -> Tensor:
    """Normalize by cuDNN where torch would."""
    if isinstance(x, GpuTensor) and rest[-1] and x.dim() > 2 and w is not None and b is not None:
        return aten.cudnn_batch_norm.default(x, w, b, *rest[:-1])[0]
    return _batch_norm(x, w, b, *rest)


# The device ---------------------------------------------------------------------------------------

_to, _load = Tensor.to, torch.load


def _moved(
    self: Tensor, *args: Any, device: Any = None, dtype: Any = None, **kwargs: Any
) -> Tensor:
    """Do what `Tensor.to` does."""
    if args and isinstance(args[0], Tensor):
        device, dtype = args[0].device, args[0].dtype
    for each in args:
        device = each if isinstance(each, str | torch.device) else device
        dtype = each if isinstance(each, torch.dtype) else dtype
    if device is not None:
        kwargs["device"] = _DEVICE if _is_gpu(device) else device
    return _to(self, dtype=dtype or self.dtype, **kwargs)


def _loaded(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
    """Do what `torch.load` does."""
    gpu = _is_gpu(map_location)
    found = _load(file, "cpu", **kwargs)
    return tree_map(lambda t: t.to(CUDA) if isinstance(t, Tensor) else t, found) if gpu else found


def _made_on_cpu(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Turn data of Python into a tensor of the CPU first: what torch does itself is not seen."""

    def call(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if isinstance(data, GpuTensor) and device is None:
            device = CUDA
        device = torch.empty(0).device if device is None else torch.device(device)
        if isinstance(data, GpuTensor):
            return data.to(device, kwargs.get("dtype") or data.dtype)
        return make(data, *args, device="cpu", **kwargs).to(device)

    return call


class _Event:
    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, _: _Event) -> float:
        return 1.0


class PretendGpu(TorchDispatchMode):
    """All within `with PretendGpu():` sees one GPU.

    Args:
        tf32: round the factors of products where the settings allow it.
    """

    def __init__(self, *, tf32: bool = False) -> None:
        super().__init__()
        self.tf32 = tf32
        self.launches: collections.Counter[tuple[str, str]] = collections.Counter()
        self.waits: collections.Counter[tuple[str, str]] = collections.Counter()
        self.generator = CudaGenerator().manual_seed(0)
        self._stack = contextlib.ExitStack()

    def clear(self) -> None:
        self.launches.clear()
        self.waits.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def count(self, func: Any, name: str, args: Any, on_gpu: bool, launching: bool) -> None:
        """Note whether a kernel is launched, and whether the host waits."""
        waits = name in _WAITING or (func is aten._to_copy.default and not on_gpu)
        if func is aten.copy_.default:
            waits = isinstance(args[1], GpuTensor) and not isinstance(args[0], GpuTensor)
        if name in _INDEXED:
            waits |= any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        place = _place()
        if waits:
            self.waits[place, name] += 1
        if launching:
            self.launches[place, name] += 1

    def __enter__(self) -> PretendGpu:
        put, cuda, generator = self._put, torch.cuda, self.generator
        future = torch.__future__
        lifts = torch._C._only_lift_cpu_tensors()  # lists of indices are made on the CPU first
        self._stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        torch._C._set_only_lift_cpu_tensors(True)
        # Tied parameters stay tied in `module.to`.
        swaps = future.get_swap_module_params_on_conversion()
        self._stack.callback(future.set_swap_module_params_on_conversion, swaps)
        future.set_swap_module_params_on_conversion(True)
        put(torch, "Generator", _Generator)
        put(torch, "batch_norm", _gpu_batch_norm)
        put(torch, "load", _loaded)
        for name in ("tensor", "as_tensor", "asarray"):
            put(torch, name, _made_on_cpu(getattr(torch, name)))
        put(Tensor, "to", _moved)
        put(Tensor, "cuda", lambda self, *_, **__: self.to(CUDA))
        put(Tensor, "pin_memory", lambda self, *_: self)
        put(torch.nn.RNNBase, "flatten_parameters", lambda _: None)
        for owner, names in ((torch, _DRAWING), (Tensor, _DRAWING_IN_PLACE)):
            for name in names:
                put(owner, name, _watched(getattr(owner, name)))
        put(Tensor, "cpu", lambda self, *_, **__: self.to("cpu"))
        properties = types.SimpleNamespace(
            name="Pretend GPU", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132
        )
        answers = {
            "_lazy_init": None, "is_available": True, "is_initialized": True, "device_count": 1,
            "current_device": 0, "get_device_name": "Pretend GPU", "synchronize": None,
            "get_device_properties": properties, "get_device_capability": (9, 0),
            "_exchange_device": 0, "_maybe_exchange_device": 0, "empty_cache": None,
            "reset_peak_memory_stats": None, "max_memory_allocated": 0, "memory_allocated": 0,
            "is_bf16_supported": True, "set_device": None, "is_current_stream_capturing": False,
        }  # fmt: skip
        for name, answer in answers.items():
            put(cuda, name, lambda *_, found=answer, **__: found)
        for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            if hasattr(torch.optim.Optimizer, name):
                put(torch.optim.Optimizer, name, lambda _: None)
        put(cuda, "_initialized", True)
        put(cuda, "Event", _Event)
        put(cuda, "default_generators", (generator,))
        put(cuda, "_lazy_call", lambda function, **_: function())
        for module in (cuda, cuda.random):
            put(module, "get_rng_state", lambda *_: generator.get_state())
            put(module, "set_rng_state", lambda state, *_: generator.set_state(state))
            put(module, "manual_seed", generator.manual_seed)
            put(module, "manual_seed_all", generator.manual_seed)
        torch.serialization.add_safe_globals([_rebuilt])
        _active.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _active.remove(self)
        self._stack.close()

    def _put(self, owner: Any, name: str, value: Any) -> None:
        before = vars(owner).get(name)
        if before is None:  # inherited
            self._stack.callback(delattr, owner, name)
        else:
            self._stack.callback(setattr, owner, name, before)
        setattr(owner, name, value)


def _place() -> str:
    """Give the innermost line of the project that is running; autograd's own has none."""
    frame = sys._getframe(2)
    while frame is not None:
        if path := _path(frame.f_code):
            return f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


@functools.cache
def _path(code: types.CodeType) -> str:
    """Give where code of the project is; "" for other code, and what hands on what others call."""
    path = code.co_filename
    ours = path.startswith(str(ROOT)) and "/tests/" not in path and "/.venv/" not in path
    return path[len(str(ROOT)) + 1 :] if ours and code.co_name != "__torch_function__" else ""
