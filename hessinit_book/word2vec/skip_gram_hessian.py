"""Statement 11: the Hessian of skip-gram with negative sampling, and the saddle it starts at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class BlockNorms:
    """Frobenius norms of parts of the Hessian, each over all its blocks together.

    Attributes:
        inputs: of the diagonal blocks of the input vectors.
        outputs: of the diagonal blocks of the output vectors.
        cross: of the blocks between input and output vectors, each counted once.
        cross_linearization: of their Gauss-Newton part.
        cross_curvature: of the rest, multiples of the identity.
    """

    inputs: float
    outputs: float
    cross: float
    cross_linearization: float
    cross_curvature: float


@dataclass(frozen=True, eq=False)
class WordPairs:
    r"""Input vectors, output vectors and the pairs between them, with exact derivatives.

    A pair of center c and word w has the score $s_{cw} = v_c \cdot u_w$, and

    $$L = \sum_{c,w} n^+_{cw} \log(1 + e^{-s_{cw}}) + n^-_{cw} \log(1 + e^{s_{cw}}).$$

    One center is a matrix of one row, a sample of words some rows of the whole.

    Args:
        inputs: $v_c$, one row a center; shape (c, d).
        outputs: $u_w$, one row a word; shape (w, d).
        positive: $n^+$, how often each pair was observed, counts or shares; shape (c, w).
        negative: $n^-$, how often each was drawn as a negative; shape (c, w).

    Raises:
        ValueError: shapes that do not fit each other, or a count below 0.

    Source: Mikolov and others, arXiv 1310.4546; derivatives in the book, statement 11.

    Example:
        >>> v, u = torch.tensor([[0.6, 0.8]]), torch.zeros(1, 2)
        >>> pairs = WordPairs(v, u, positive=torch.ones(1, 1), negative=torch.zeros(1, 1))
        >>> pairs.input_blocks().norm().item(), pairs.cross_blocks()[0, 0].tolist()
        (0.0, [[-0.5, 0.0], [0.0, -0.5]])
    """

    inputs: Float[Tensor, "c d"]
    outputs: Float[Tensor, "w d"]
    positive: Float[Tensor, "c w"]
    negative: Float[Tensor, "c w"]

    def __post_init__(self) -> None:
        if self.inputs.shape[1] != self.outputs.shape[1]:
            raise ValueError(
                f"outputs of shape {_shape(self.outputs)}: expected rows of "
                f"{self.inputs.shape[1]} numbers, as the inputs have"
            )
        expected = (len(self.inputs), len(self.outputs))
        _check_counts(self.positive, self.negative, expected)

    @cached_property
    def scores(self) -> Float[Tensor, "c w"]:
        r"""Scores $s_{cw} = v_c \cdot u_w$, shape (c, w)."""
        return self.inputs @ self.outputs.mT

    @cached_property
    def slopes(self) -> Float[Tensor, "c w"]:
        r"""First derivatives of the loss in the scores, $n \sigma(s) - n^+$, shape (c, w)."""
        return (self.positive + self.negative) * self.scores.sigmoid() - self.positive

    @cached_property
    def bends(self) -> Float[Tensor, "c w"]:
        r"""Second derivatives of the loss in the scores, $n \sigma'(s)$, shape (c, w)."""
        share = self.scores.sigmoid()
        return (self.positive + self.negative) * share * (1 - share)

    def loss(self) -> Float[Tensor, ""]:
        """Compute the loss [nat]: of all pairs if counts are given, of one if shares are."""
        positive, negative = F.softplus(-self.scores), F.softplus(self.scores)
        return (self.positive * positive + self.negative * negative).sum()

    def gradient(self) -> tuple[Float[Tensor, "c d"], Float[Tensor, "w d"]]:
        """Compute the gradient in the input vectors (c, d) and in the output vectors (w, d)."""
        return self.slopes @ self.outputs, self.slopes.mT @ self.inputs

    def input_blocks(self) -> Float[Tensor, "c d d"]:
        r"""Compute $D^2_{v_c} L = \sum_w n_{cw} \sigma'(s_{cw}) u_w u_w^T$, shape (c, d, d).

        They are Gauss-Newton blocks exactly: the score is linear in $v_c$.
        """
        return torch.einsum("cw,wi,wj->cij", self.bends, self.outputs, self.outputs)

    def output_blocks(self) -> Float[Tensor, "w d d"]:
        r"""Compute $D^2_{u_w} L = \sum_c n_{cw} \sigma'(s_{cw}) v_c v_c^T$, shape (w, d, d)."""
        return torch.einsum("cw,ci,cj->wij", self.bends, self.inputs, self.inputs)

    def cross_blocks(self, *, curvature: bool = True) -> Float[Tensor, "c w d d"]:
        r"""Compute the blocks between each input and each output vector.

        $$D_{v_c} D_{u_w} L = n \sigma'(s) \, u_w v_c^T + (n \sigma(s) - n^+) I.$$

        Args:
            curvature: with the second term; the first alone is the Gauss-Newton part.

        Returns:
            One block a pair, rows for $v_c$ and columns for $u_w$; shape (c, w, d, d).
        """
        blocks = torch.einsum("cw,wi,cj->cwij", self.bends, self.outputs, self.inputs)
        if not curvature:
            return blocks
        eye = torch.eye(self.inputs.shape[1], dtype=blocks.dtype, device=blocks.device)
        return blocks + self.slopes[..., None, None] * eye

    def joint_hessian(self, *, curvature: bool = True) -> Float[Tensor, "p p"]:
        """Form the Hessian in all vectors together: inputs first, one vector after the other.

        Args:
            curvature: with the curvature term of the cross blocks; without it, this is the
                Gauss-Newton matrix, which has no negative eigenvalue.

        Returns:
            A symmetric matrix of p = (c + w) d rows; mind its size.
        """
        rows, columns = self.inputs.numel(), self.outputs.numel()
        cross = self.cross_blocks(curvature=curvature).permute(0, 2, 1, 3).reshape(rows, columns)
        inputs = torch.block_diag(*self.input_blocks())
        outputs = torch.block_diag(*self.output_blocks())
        return torch.cat([torch.cat([inputs, cross], 1), torch.cat([cross.mT, outputs], 1)])

    def block_norms(self) -> BlockNorms:
        r"""Compute the norms of all blocks; the cross blocks are not formed.

        $$\|D_{v_c} D_{u_w} L\|_F^2 = b^2 |u|^2 |v|^2 + 2 a b s + d a^2,$$

        with the pair's slope a and bend b.
        """
        lengths = self.inputs.square().sum(1)[:, None] * self.outputs.square().sum(1)
        linear = (self.bends.square() * lengths).sum()
        curved = self.inputs.shape[1] * self.slopes.square().sum()
        mixed = 2 * (self.slopes * self.bends * self.scores).sum()
        # Rounding may bring the sum below 0 where the terms cancel.
        squares = (linear + mixed + curved).clamp(min=0), linear, curved
        return BlockNorms(
            self.input_blocks().norm().item(),
            self.output_blocks().norm().item(),
            *(square.sqrt().item() for square in squares),
        )


def start_eigenvalues(
    center: Float[Tensor, " d"], positive: Float[Tensor, " w"], negative: Float[Tensor, " w"]
) -> Float[Tensor, " p"]:
    r"""Compute the eigenvalues of one center and its words at word2vec's initialization.

    The output vectors are zero. With $\mu_w = (n^-_w - n^+_w) / 2$ the joint Hessian is,
    along each direction across $v$ and along $v$,

    $$\begin{pmatrix} 0 & \mu^T \\ \mu & 0 \end{pmatrix}, \qquad
      \begin{pmatrix} 0 & \mu^T \\ \mu & \tfrac14 |v|^2 \operatorname{diag} n \end{pmatrix}.$$

    The former has the eigenvalues $\pm \|\mu\|$ and zeros, each d - 1 times. For d > 1 the
    smallest of all is $-\|\mu\|$, which no choice of $v$ changes.

    Args:
        center: the input vector $v$, shape (d,).
        positive: how often each word was observed with it, shape (w,).
        negative: how often each was drawn as a negative, shape (w,).

    Returns:
        All p = (w + 1) d eigenvalues, ascending.

    Raises:
        ValueError: counts of different lengths, or below 0.

    Source: derivation in the book, statement 11 and the notebook on the saddle.

    Example:
        >>> one, none = torch.ones(1), torch.zeros(1)
        >>> start_eigenvalues(torch.zeros(2), positive=one, negative=none).tolist()
        [-0.5, -0.5, 0.5, 0.5]
    """
    _check_counts(positive, negative, tuple(positive.shape))
    mu = (negative - positive) / 2
    along = torch.zeros(len(mu) + 1, len(mu) + 1, dtype=mu.dtype, device=mu.device)
    along[0, 1:] = along[1:, 0] = mu
    along[1:, 1:] = torch.diag((positive + negative) * center.square().sum() / 4)
    across = torch.zeros(len(mu) + 1, dtype=mu.dtype, device=mu.device)
    across[0], across[-1] = -mu.norm(), mu.norm()
    found = [torch.linalg.eigvalsh(along), across.repeat(len(center) - 1)]
    return torch.cat(found).sort().values


def saddle_eigenvalues(
    positive: Float[Tensor, "c w"], negative: Float[Tensor, "c w"], dimension: int
) -> Float[Tensor, " p"]:
    r"""Compute the eigenvalues of the Hessian where all vectors are zero.

    They are $\pm$ the singular values of $M = \frac12 (n^- - n^+)$, each d times, and zeros.

    Args:
        positive: how often each pair was observed, shape (c, w).
        negative: how often each was drawn as a negative, shape (c, w).
        dimension: of the vectors, d.

    Returns:
        All p = (c + w) d eigenvalues, ascending.

    Raises:
        ValueError: shapes that differ, a count below 0, or a dimension below 1.

    Source: derivation in the book, statement 11.

    Example:
        >>> counts = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
        >>> saddle_eigenvalues(counts, torch.zeros(2, 2), dimension=1).tolist()
        [-2.0, -1.0, 1.0, 2.0]
    """
    _check_counts(positive, negative, tuple(positive.shape))
    if dimension < 1:
        raise ValueError(f"dimension {dimension}: expected 1 or more")
    values = torch.linalg.svdvals((negative - positive) / 2)
    zeros = values.new_zeros(sum(positive.shape) - 2 * len(values))
    return torch.cat([values, -values, zeros]).sort().values.repeat_interleave(dimension)


def escape_norms(
    pairs: WordPairs, rate: float, steps: int
) -> tuple[Float[Tensor, " t"], Float[Tensor, " t"]]:
    r"""Predict how gradient descent leaves the saddle at zero, to first order in the vectors.

    With the singular value decomposition $M = \sum_r \varsigma_r p_r q_r^T$, and $a_r$, $b_r$
    the components of inputs and outputs along $p_r$ and $q_r$, a step is
    $(a_r, b_r) \mapsto (a_r - \gamma \varsigma_r b_r, b_r - \gamma \varsigma_r a_r)$. So

    $$a_r(t) = C a_r(0) - S b_r(0), \quad b_r(t) = C b_r(0) - S a_r(0), \quad
      \textstyle\frac{C}{S} = \frac12 \bigl( (1 + \gamma \varsigma_r)^t
      \pm (1 - \gamma \varsigma_r)^t \bigr),$$

    which is $\cosh$ and $\sinh$ of $\gamma \varsigma_r t$ at small rates. Vectors that start
    at zero thus grow linearly first, those of the other side quadratically.

    Args:
        pairs: the vectors at the start, and the pairs.
        rate: the learning rate $\gamma$, above 0.
        steps: how far to predict.

    Returns:
        Frobenius norms of all input vectors and of all output vectors, before each step and
        after the last; shape (steps + 1,) each.

    Raises:
        ValueError: a rate that is not above 0, or a number of steps below 0.

    Source: derivation in the book, the notebook on the saddle.

    Example:
        >>> one = torch.ones(1, 1)
        >>> pairs = WordPairs(one, 0 * one, positive=one, negative=0 * one)
        >>> [norms.tolist() for norms in escape_norms(pairs, rate=1.0, steps=2)]
        [[1.0, 1.0, 1.25], [0.0, 0.5, 1.0]]
    """
    if not rate > 0:
        raise ValueError(f"rate {rate}: expected a number above 0")
    if steps < 0:
        raise ValueError(f"steps {steps}: expected 0 or more")
    matrix = (pairs.negative - pairs.positive) / 2
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    a, b = left.mT @ pairs.inputs, right @ pairs.outputs
    times = torch.arange(steps + 1, dtype=values.dtype, device=values.device)[:, None]
    up, down = (1 + rate * values) ** times, (1 - rate * values) ** times
    even, odd = (up + down)[..., None] / 2, (up - down)[..., None] / 2

    def norms(own: Tensor, other: Tensor, whole: Tensor) -> Tensor:
        # What no mode reaches stays as it is.
        rest = (whole.square().sum() - own.square().sum()).clamp(min=0)
        return ((even * own - odd * other).square().sum((1, 2)) + rest).sqrt()

    return norms(a, b, pairs.inputs), norms(b, a, pairs.outputs)


def _check_counts(positive: Tensor, negative: Tensor, expected: tuple[int, ...]) -> None:
    for name, counts in (("positive", positive), ("negative", negative)):
        if tuple(counts.shape) != expected:
            raise ValueError(
                f"{name} of shape {_shape(counts)}: expected {' x '.join(map(str, expected))}"
            )
        if not (counts >= 0).all():
            raise ValueError(f"{name} {counts.min().item():g}: expected counts of 0 or more")


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
