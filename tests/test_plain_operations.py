"""Operations whose second derivatives `check_derivatives` takes for granted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.derivatives import check_derivatives
from hessinit_lib.hessians.graph.nodes import PLAIN, PLAIN_ONCE, Watch, inputs_first, operation

SHAPE = (2, 3, 4, 4)


def numbers(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def squared(view: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Have something to differentiate twice around what is linear itself."""
    return lambda x: view(x.square()).square()


def attention(x: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(x, x, x, torch.ones(4, 4, dtype=torch.bool).tril())


def recurrent(kind: type[nn.RNNBase]) -> Callable[[Tensor], Tensor]:
    torch.manual_seed(0)
    module = kind(4, 3, batch_first=True).double()
    return lambda x: module(x[:, 0])[0]


OTHER = numbers(*SHAPE)
INDEX = torch.tensor([1, 0, 1])
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "AdaptiveAvgPool2D": squared(lambda x: F.adaptive_avg_pool2d(x, 2)),
    "Add": squared(lambda x: x + OTHER),
    "Addcmul": lambda x: torch.addcmul(x, x, x),
    "Addmm": lambda x: torch.addmm(x[0, 0], x[0, 1], x[1, 0]),
    "Alias": squared(lambda x: torch.ops.aten.alias(x)),
    "Amax": squared(lambda x: x.amax(-1)),
    "AvgPool2D": squared(lambda x: F.avg_pool2d(x, 2)),
    "Bmm": lambda x: torch.bmm(x[0], x[1]),
    "Cat": squared(lambda x: torch.cat([x, x[:1]])),
    "ClampMin": squared(lambda x: x.clamp_min(0.1)),
    "Clone": squared(torch.clone),
    "ConstantPadNd": squared(lambda x: F.pad(x, (1, 0))),
    "Convolution": lambda x: F.conv2d(x, x[:, :, :2, :2], stride=2, padding=1),
    "Div": lambda x: x / (2 + x.square()),
    "Elu": F.elu,
    "Embedding": squared(lambda x: F.embedding(INDEX, x[0, 0])),
    "Exp": torch.exp,
    "Expand": squared(lambda x: x[:, :, :, :1].expand(-1, -1, -1, 3)),
    "Gelu": lambda x: F.gelu(x) + F.gelu(x, approximate="tanh"),
    "Hardswish": lambda x: F.hardswish(4 * x),
    "Hardtanh": squared(lambda x: F.hardtanh(x, -0.5, 0.7)),
    "Index": squared(lambda x: x[:, INDEX]),
    "LeakyRelu": squared(lambda x: F.leaky_relu(x, 0.2)),
    "LinalgVectorNorm": lambda x: torch.linalg.vector_norm(x, dim=-1),
    "LogSoftmax": lambda x: F.log_softmax(x, -1),
    "MaxPool2DWithIndices": squared(lambda x: F.max_pool2d(x, 2)),
    "Mean": squared(lambda x: x.mean((1, 2)) + x.mean()),
    "Mm": lambda x: x[0, 0] @ x[1, 0],
    "Mul": lambda x: x * x.flip(0),
    "NativeBatchNorm": lambda x: F.batch_norm(x, OTHER[0, :, 0, 0], 1 + OTHER[0, :, 1, 1].square()),
    "NativeGroupNorm": lambda x: F.group_norm(x, 3),
    "NativeLayerNorm": lambda x: F.layer_norm(x, (4,), x[0, 0, 0], x[0, 0, 1]),
    "Neg": squared(torch.neg),
    "Permute": squared(lambda x: x.permute(3, 1, 0, 2)),
    "Pow": lambda x: x.pow(3),
    "Relu": squared(torch.relu),
    "Repeat": squared(lambda x: x.repeat(1, 2, 1, 1)),
    "ReshapeAlias": squared(lambda x: torch.ops.aten._reshape_alias(x, (6, 16), (16, 1))),
    "Roll": squared(lambda x: x.roll(1, 2)),
    "Rsqrt": lambda x: (1 + x.square()).rsqrt(),
    "Rsub": squared(lambda x: 1 - x),
    "SafeSoftmax": attention,
    "Select": squared(lambda x: x[:, 1]),
    "Sigmoid": torch.sigmoid,
    "Silu": F.silu,
    "Sin": torch.sin,
    "Slice": squared(lambda x: x[:, :, 1:3]),
    "Softmax": lambda x: x.softmax(1),
    "Split": squared(lambda x: x.split(2, -1)[1]),
    "SplitWithSizes": squared(lambda x: x.split([1, 2], 1)[1]),
    "Sqrt": lambda x: (1 + x.square()).sqrt(),
    "Squeeze": squared(lambda x: x[:1].squeeze(0)),
    "Stack": squared(lambda x: torch.stack([x, 2 * x])),
    "Sub": squared(lambda x: x - x.flip(0)),
    "Sum": squared(lambda x: x.sum((0, 1)) + x.sum()),
    "T": squared(lambda x: x[0, 0].t()),
    "Tanh": torch.tanh,
    "Transpose": squared(lambda x: x.transpose(1, 2)),
    "Unbind": squared(lambda x: x.unbind(1)[2]),
    "UnsafeSplit": recurrent(nn.GRU),
    "UnsafeView": lambda x: x @ x[0, 0],
    "Unsqueeze": squared(lambda x: x.unsqueeze(2)),
    "UpsampleNearest2D": squared(lambda x: F.interpolate(x, scale_factor=2)),
    "View": squared(lambda x: x.view(6, 16)),
}


IN_FLOAT32 = "MkldnnRnnLayer"


@pytest.mark.parametrize("name", sorted(PLAIN - {"torch::autograd::AccumulateGrad", IN_FLOAT32}))
def test_second_derivatives_are_right(name: str) -> None:
    x = numbers(*SHAPE).requires_grad_()
    outputs = FUNCTIONS[name](x)
    assert name in {operation(node) for node in inputs_first(outputs.grad_fn)}
    assert torch.autograd.gradgradcheck(FUNCTIONS[name], x, fast_mode=True)


@pytest.mark.parametrize("layers", [1, 2])
def test_second_derivatives_of_a_fused_lstm_are_right(layers: int) -> None:
    torch.manual_seed(0)
    model, x = nn.LSTM(5, 7, layers), numbers(6, 4, 5)

    def product(dtype: torch.dtype) -> Tensor:
        weights = list(model.to(dtype).parameters())
        outputs = model(x.to(dtype))[0]
        if dtype == torch.float32:
            fused = IN_FLOAT32 in {operation(node) for node in inputs_first(outputs.grad_fn)}
            if not fused:
                pytest.skip("torch has no fused LSTM here")
        slopes = torch.autograd.grad(outputs.pow(3).sum(), weights, create_graph=True)
        directions = [numbers(*weight.shape).to(dtype) for weight in weights]
        products = torch.autograd.grad(slopes, weights, directions)
        return torch.cat([part.flatten().double() for part in products])

    torch.testing.assert_close(product(torch.float32), product(torch.float64), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["function", "hook"])
def test_what_is_not_plain_is_checked(how: str) -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * ctx.saved_tensors[0].cos().detach()

    class Model(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            if how == "function":
                return Wrong.apply(z)
            z = z.tanh()
            if z.requires_grad:
                z.register_hook(lambda gradient: gradient.detach())
            return z.square()

    case = Case(Model(2, 2), nn.MSELoss(), torch.ones(4, 2), torch.ones(4, 2))
    check_derivatives(case)  # the first derivative is right
    with pytest.raises(NotImplementedError, match="second derivative"):
        check_derivatives(case, twice=True)


def _in_place(h: Tensor) -> None:
    with torch.no_grad():
        h.clamp_(0)


@pytest.mark.parametrize(
    ("step", "cut"),
    [
        (lambda h: h.detach(), True),
        (lambda h: h.detach_(), True),
        (lambda h: h.data, True),
        (lambda h: h.sum().item(), True),
        (lambda h: h.tolist(), True),
        (_in_place, True),
        (lambda h: torch.zeros(h.shape, dtype=h.dtype, device=h.device) + h.view(h.size()), False),
        (lambda h: h.topk(2)[0] + h.max(), False),
        (lambda h: torch.stack([*h]), False),
    ],
)
def test_what_leaves_the_graph_is_seen(step: Callable[[Tensor], object], cut: bool) -> None:
    h = nn.Linear(3, 3)(torch.ones(2, 3))
    with Watch() as watch:
        step(h)
    assert watch.cut is cut


@pytest.mark.parametrize("causal", [False, True])
def test_first_derivatives_of_fused_attention(causal: bool) -> None:
    (name,) = PLAIN_ONCE - PLAIN
    q, k, v = (numbers(2, 2, 5, 4).roll(i, -1).requires_grad_() for i in range(3))
    found = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    assert found.grad_fn is not None
    assert operation(found.grad_fn) == name
    assert torch.autograd.gradcheck(
        lambda *x: F.scaled_dot_product_attention(*x, is_causal=causal), (q, k, v)
    )
