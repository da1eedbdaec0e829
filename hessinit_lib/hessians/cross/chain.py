r"""Cross-layer blocks of fully connected networks, exact.

For layers j < k, with $d^k = D_{a^k} l$, $A_k = D^2_{a^k} l = S_k^\top S_k + R_k$ and
$Q = D_{a^j} z^{k-1}$ per sample, a change of $W^j$ moves both factors of the gradient
$d^k \otimes z^{k-1}$:

$$H_{kj} = \frac1B \sum_b T_b \otimes z^{j-1}_b, \qquad
  T_b = (A_k W^k Q) \otimes z^{k-1} + d^k \otimes Q .$$

Its linearization has $S_k^\top S_k W^k Q = S_k^\top S_j$ in place of $A_k W^k Q$ and nothing in
place of the last term. No T is formed: inner products of two of them are sums of products of
Gram matrices.

Source: Botev, Ritter and Barber, arXiv 1706.03662, for the blocks; the book's statement 13.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from hessinit_lib.hessians.chain.activations import activation_derivatives
from hessinit_lib.hessians.chain.backward import Residual, backward
from hessinit_lib.hessians.chain.network import Chain, LinearStage, Stage
from hessinit_lib.hessians.loss import LossCurvature, LossFn, loss_curvature, on_logits
from hessinit_lib.hessians.options import Options

PIECE = 1 << 23
"""Entries held at a time of what is a matrix for each sample, or for each pair of them."""


@dataclass(frozen=True)
class _Layer:
    """What all pairs with a layer take of it: d, S, R, the inputs z and their Gram matrix."""

    name: str
    gradient: Float[Tensor, "b n"]
    factor: Float[Tensor, "b r n"]
    residual: Residual
    inputs: Float[Tensor, "b m"]
    kernel: Float[Tensor, "b b"]

    def factors(self, rows: slice) -> Float[Tensor, "q p"]:
        """Compute the inner products of the rows of S, of some samples and of all."""
        if rows.start == 0 and rows.stop >= len(self.factor):
            return self._all_factors
        return self.factor[rows].flatten(0, 1) @ self.factor.flatten(0, 1).mT

    @cached_property
    def _all_factors(self) -> Float[Tensor, "p p"]:
        flat = self.factor.flatten(0, 1)
        return flat @ flat.mT

    def of(self, units: slice) -> _Layer:
        """Take some of its units."""
        return replace(self, factor=self.factor[:, :, units])


def chain_squares(
    chain: Chain,
    loss_fn: LossFn,
    inputs: Tensor,
    targets: Tensor,
    names: Sequence[str],
    options: Options,
) -> dict[tuple[str, str], Float[Tensor, " 3"]]:
    r"""Compute the squared norms of all blocks off the diagonal, of the batch's mean loss.

    Args:
        chain: a fully connected network, without active dropout.
        loss_fn: see `loss_curvature`.
        inputs: shape (B, ...).
        targets: shape (B, ...).
        names: of the layers that are asked for.
        options: `max_memory` counts.

    Returns:
        $\|H_{kj}\|_F^2$, $\|G_{kj}\|_F^2$ and $\|R_{kj}\|_F^2$ by names of layers j before k, in
        float64 on the CPU.

    Raises:
        NotImplementedError: a loss that is not covered, see `loss_curvature`.
    """
    stages, logits = chain.forward(inputs)
    loss_fn = on_logits(loss_fn, 1 if chain.log_softmax else None)
    parameters = {
        f"{name}.{key}": parameter
        for name, module in chain.modules
        for key, parameter in module.named_parameters()
    }
    loss = loss_curvature(loss_fn, logits, targets, parameters)
    piece = PIECE
    if options.max_memory is not None:
        piece = min(piece, options.max_memory // (8 * logits.element_size()))
    return {
        (lower, upper): squares.double().cpu() / len(logits) ** 2
        for lower, upper, squares in _all_squares(stages, loss, names, piece)
    }


def training_steps(chain: Chain, samples: int) -> tuple[float, float]:
    """Forecast the work of `chain_squares` by its products of matrices.

    Args:
        chain: a fully connected network.
        samples: B.

    Returns:
        Its cost in training steps, and in multiplications.
    """
    shapes = [module.weight.shape for _, module in chain.modules if isinstance(module, nn.Linear)]
    pairs = [
        fan_in * lower for place, (_, fan_in) in enumerate(shapes) for lower, _ in shapes[:place]
    ]
    work = (6.0 if chain.has_residual else 3.0) * samples**2 * sum(pairs)
    return work / (3 * samples * sum(out * fan_in for out, fan_in in shapes)), work


def _all_squares(
    stages: Sequence[Stage], loss: LossCurvature, names: Sequence[str], piece: int
) -> Iterator[tuple[str, str, Float[Tensor, " 3"]]]:
    """Yield the names of two layers, j < k, and the squared norms of H, G and R, times B^2."""
    layers = _layers(stages, loss, names)
    widest = max(stage.weight.shape[0] for stage in stages if isinstance(stage, LinearStage))
    batch = len(loss.gradient)
    bar = tqdm(layers.items(), desc="cross-layer norms", unit="layer", delay=3, leave=False)
    for below, lower in bar:
        width = lower.factor.shape[2]
        step = max(1, piece // (batch * max(batch, widest)))
        found: dict[int, Tensor] = {}
        for start in range(0, width, step):  # all is a sum over the units of the lower layer
            units = slice(start, min(start + step, width))
            for place, sums in _above(stages, layers, below, units):
                found[place] = found[place] + sums if place in found else sums
        for place, (rest, mixed) in found.items():
            linear = _linear_square(lower, layers[place], piece)
            squares = torch.stack((linear + rest + 2 * mixed, linear, rest))
            yield lower.name, layers[place].name, squares


def _above(
    stages: Sequence[Stage], layers: Mapping[int, _Layer], below: int, units: slice
) -> Iterator[tuple[int, Float[Tensor, " 2"]]]:
    """Follow some units of a layer up, and give their sums in each layer above."""
    lower = layers[below].of(units)
    kernel, width = lower.kernel, layers[below].factor.shape[2]
    passed = torch.eye(width, dtype=kernel.dtype, device=kernel.device)[None, :, units]
    passed = passed.expand(len(kernel), -1, -1)
    for place in range(below + 1, len(stages)):
        stage = stages[place]
        if isinstance(stage, LinearStage):
            through = torch.matmul(stage.weight, passed)
            if place in layers:
                yield place, _sums(layers[place], lower, passed, through)
            passed = through
        else:
            first, _ = activation_derivatives(stage.module, stage.preactivations)
            passed = first[:, :, None] * passed


def _layers(
    stages: Sequence[Stage], loss: LossCurvature, names: Sequence[str]
) -> dict[int, _Layer]:
    """Go back once, and keep what the pairs take, by the place among the stages."""
    gradients: dict[int, Tensor] = {}
    gradient = loss.gradient
    for place in reversed(range(len(stages))):
        stage = stages[place]
        if isinstance(stage, LinearStage):
            gradients[place] = gradient
            gradient = gradient @ stage.weight
        else:
            gradient = gradient * activation_derivatives(stage.module, stage.preactivations)[0]
    linear = [
        place
        for place, stage in enumerate(stages)
        if isinstance(stage, LinearStage) and stage.trainable
    ]
    found: dict[int, _Layer] = {}
    for place, layer in zip(reversed(linear), backward([*stages], loss), strict=True):
        if layer.name not in names:
            continue
        rest, z = layer.residual, layer.inputs
        rest = None if rest is None else rest.clone()  # the next step overwrites it
        found[place] = _Layer(layer.name, gradients[place], layer.factor.clone(), rest, z, z @ z.mT)
    return dict(sorted(found.items()))


def _sums(
    upper: _Layer, lower: _Layer, passed: Float[Tensor, "b m n"], through: Float[Tensor, "b p n"]
) -> Float[Tensor, " 2"]:
    r"""Sum $\langle T_b, T_{b'} \rangle z_b \cdot z_{b'}$ over all pairs of samples.

    Args:
        upper: layer k.
        lower: some units of layer j.
        passed: their columns of Q.
        through: those of $W^k Q$.

    Returns:
        The sums of what is not linear in T, and of its products with what is.
    """
    z, d = upper.inputs, upper.gradient
    read = _read(z, passed)  # z_b^T Q_c, for the terms in which the two parts of T meet
    rest = (d @ d.mT) * _gram(passed, passed)
    mixed = (torch.bmm(_read(d, upper.factor.mT).transpose(0, 1), lower.factor) * read).sum(2)
    if upper.residual is not None:
        residual = upper.residual
        bent = residual[:, :, None] * through if residual.ndim == 2 else residual @ through
        met = (_read(d, bent).transpose(0, 1) * read).sum(2)
        linear = torch.bmm(upper.factor.mT, lower.factor)
        rest = rest + _gram(bent, bent) * upper.kernel + met + met.mT
        mixed = mixed + _gram(linear, bent) * upper.kernel
    return torch.stack([(each * lower.kernel).sum() for each in (rest, mixed)])


def _linear_square(lower: _Layer, upper: _Layer, piece: int) -> Float[Tensor, ""]:
    r"""Sum $\langle S_k^\top S_j, S_k'^\top S_j' \rangle$ times both Gram matrices of inputs."""
    batch, rank, _ = lower.factor.shape
    step = max(1, piece // (batch * rank**2))
    total = lower.kernel.new_zeros(())
    for start in range(0, batch, step):
        rows = slice(start, start + step)
        products = [layer.factors(rows) for layer in (lower, upper)]
        sums = (products[0] * products[1]).view(-1, rank, batch, rank).sum((1, 3))
        total += (sums * lower.kernel[rows] * upper.kernel[rows]).sum()
    return total


def _read(z: Float[Tensor, "b m"], passed: Float[Tensor, "c m n"]) -> Float[Tensor, "b c n"]:
    return (z @ passed.transpose(0, 1).flatten(1)).view(len(z), len(passed), -1)


def _gram(x: Float[Tensor, "b ..."], y: Float[Tensor, "b ..."]) -> Float[Tensor, "b b"]:
    return x.flatten(1) @ y.flatten(1).mT
