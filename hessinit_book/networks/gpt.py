"""A small GPT: a decoder of characters or tokens, normalized before each branch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

_STD = 0.02


class Attention(nn.Module):
    """Causal self-attention with several heads.

    Args:
        width: of the stream.
        heads: a divisor of the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, z: Float[Tensor, "b t n"]) -> Float[Tensor, "b t n"]:
        """Let each position look at those before it, and itself."""
        batch, length, width = z.shape
        split = self.qkv(z).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Two branches of the residual stream: attention, then two layers with GELU.

    Args:
        width: of the stream.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, z: Float[Tensor, "b t n"]) -> Float[Tensor, "b t n"]:
        """Add both branches to the stream."""
        z = z + self.attention(self.norm_1(z))
        return z + self.down(F.gelu(self.up(self.norm_2(z))))


class Gpt(nn.Module):
    r"""A small GPT-2: learned positions, normalization before branches, no dropout.

    It starts as GPT-2 does: weights normal with deviation 0.02, those at the ends of the 2 L
    branches with $0.02 / \sqrt{2 L}$, biases zero.

    Args:
        vocabulary: number of tokens.
        context: most positions.
        width: of the residual stream.
        heads: of the attention, a divisor of the width.
        depth: L, number of blocks.
        generator: for the weights.

    Raises:
        ValueError: the heads do not divide the width.

    Source: Radford and others, "Language models are unsupervised multitask learners" (2019).

    Example:
        >>> model = Gpt(11, 8, 16, 2, 2, torch.Generator().manual_seed(0))
        >>> model(torch.zeros(3, 8, dtype=torch.int64)).shape
        torch.Size([3, 8, 11])
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        width: int,
        heads: int,
        depth: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads {heads}: expected a divisor of the width {width}")
        with torch.device("meta"):  # PyTorch's own initialization would draw from the global stream
            self.tokens = nn.Embedding(vocabulary, width)
            self.positions = nn.Embedding(context, width)
            self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, vocabulary, bias=False)
        self.to_empty(device=generator.device)
        for name, parameter in self.named_parameters():
            self._start(name, parameter.data, depth, generator)

    @staticmethod
    def _start(name: str, values: Tensor, depth: int, generator: torch.Generator) -> None:
        if values.ndim == 1:
            values.fill_(float("norm" in name and name.endswith("weight")))
            return
        last = name.endswith(("out.weight", "down.weight"))
        values.normal_(0, _STD / (math.sqrt(2 * depth) if last else 1), generator=generator)

    def forward(self, tokens: Int64[Tensor, "b t"]) -> Float[Tensor, "b t v"]:
        """Give the logits of the token that follows each position."""
        return self.decode(self.tokens(tokens) + self.positions.weight[: tokens.shape[1]])

    def decode(self, z: Float[Tensor, "b t n"]) -> Float[Tensor, "b t v"]:
        """Give the logits from the embedded tokens, positions included."""
        for block in self.blocks:
            z = block(z)
        return self.head(self.norm(z))
