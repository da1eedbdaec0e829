"""Random fully connected networks: the law of their weights, which is all that theory needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from hessinit_lib.hessians.chain.activations import is_elementwise
from hessinit_lib.hessians.chain.network import flat_modules
from hessinit_lib.theory.activations import Activation, activation_function


@dataclass(frozen=True)
class Masks:
    """Dropout behind an activation: each unit is kept with probability `keep`.

    Attributes:
        keep: probability p that a unit is kept, above 0.
        rescale: whether kept units are divided by p ("inverted" dropout, as in PyTorch).
        shared: whether all samples of the batch have the same mask; else each has its own.
    """

    keep: float = 1.0
    rescale: bool = True
    shared: bool = False


@dataclass(frozen=True)
class RandomNetwork:
    r"""A fully connected network whose weights are independent, with zero means.

    $a^k = W^k z^{k-1} + b^k$, $z^k = m_k f_k(a^k)$ with dropout masks $m_k$, k = 1..n; the
    logits are $a^n$.

    Attributes:
        widths: $n_0$ (inputs) to $n_n$ (classes).
        variances: $s_k^2$ of the entries of $W^k$, one a layer.
        activations: $f_1$ to $f_{n-1}$.
        masks: of the same layers.
        bias_variances: of the entries of $b^k$, one a layer.
        names: of the weights.
    """

    widths: tuple[int, ...]
    variances: tuple[float, ...]
    activations: tuple[Callable[[Tensor], Tensor], ...]
    masks: tuple[Masks, ...]
    bias_variances: tuple[float, ...]
    names: tuple[str, ...]

    @classmethod
    def make(
        cls,
        widths: Sequence[int],
        variances: Sequence[float],
        activation: Activation = "relu",
        masks: Masks | None = None,
    ) -> RandomNetwork:
        """Describe a network without biases that has one activation throughout.

        Raises:
            ValueError: numbers of widths and variances that do not fit, or values out of
                range; the message names them.

        Example:
            >>> RandomNetwork.make([784, 512, 10], [2 / 784, 2 / 512]).names
            ('0', '1')
        """
        layers = len(widths) - 1
        if layers < 1 or min(widths) < 1:
            raise ValueError(f"widths {list(widths)}: expected two or more, each 1 or more")
        if len(variances) != layers or min(variances) < 0:
            raise ValueError(f"variances {list(variances)}: expected {layers}, each 0 or more")
        masks = masks or Masks()
        if not 0 < masks.keep <= 1:
            raise ValueError(f"keep {masks.keep}: expected a probability above 0")
        return cls(
            tuple(widths),
            tuple(variances),
            (activation_function(activation),) * (layers - 1),
            (masks,) * (layers - 1),
            (0.0,) * layers,
            tuple(str(k) for k in range(layers)),
        )

    @classmethod
    def of_model(cls, model: nn.Module) -> RandomNetwork:
        """Describe a model by the mean squares of its weights and biases as they are.

        Args:
            model: (nested) `nn.Sequential` of Linear layers with at most one elementwise
                activation between two of them, and Flatten, Identity and Dropout; dropout
                counts in training mode, with a mask for each sample.

        Raises:
            NotImplementedError: another module, or an order not covered; the message names it.

        Example:
            >>> model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Linear(8, 2))
            >>> RandomNetwork.of_model(model).widths
            (4, 8, 2)
        """
        linears: list[tuple[str, nn.Linear]] = []
        between: list[tuple[nn.Module | None, Masks]] = []
        for name, module in flat_modules(model):
            match module:
                case nn.Linear():
                    if linears and module.in_features != linears[-1][1].out_features:
                        raise NotImplementedError(f"{name}: its input is not the layer before it")
                    linears.append((name, module))
                    between.append((None, Masks()))
                case nn.Flatten() if not linears:
                    pass
                case nn.Dropout() if linears:
                    active = module.training and module.p > 0
                    if active and between[-1][1].keep < 1:
                        raise NotImplementedError(f"{name}: a second dropout behind one layer")
                    if active:
                        between[-1] = (between[-1][0], Masks(1 - module.p))
                case _ if linears and between[-1] == (None, Masks()) and is_elementwise(module):
                    between[-1] = (module, Masks())
                case _:
                    raise NotImplementedError(
                        f"{name or 'the model'} ({type(module).__name__}): expected Linear layers "
                        "with one elementwise activation, then dropout, between them"
                    )
        if not linears or between[-1] != (None, Masks()):
            raise NotImplementedError("expected a network that ends in a Linear layer")
        layers = [linear for _, linear in linears]
        return cls(
            (layers[0].in_features, *(layer.out_features for layer in layers)),
            tuple(_mean_square(layer.weight) for layer in layers),
            tuple(module or nn.Identity() for module, _ in between[:-1]),
            tuple(masks for _, masks in between[:-1]),
            tuple(_mean_square(layer.bias) for layer in layers),
            tuple(f"{name}.weight" if name else "weight" for name, _ in linears),
        )


def _mean_square(values: Tensor | None) -> float:
    return 0.0 if values is None else float(values.detach().double().square().mean())
