"""Many fully connected networks of one shape, trained at once by batched matrix products.

Small networks leave a processor waiting: what hundreds of them need is the same product with
other numbers. Weights are stacked, (networks, out, in), and all networks see the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hessinit_book.networks.dense import linear_layers
from hessinit_lib.theory.activations import activation_function

Masks = Callable[[int], Sequence[Tensor]]
"""Draws the factors of every hidden layer's units, shapes (b, width), for a batch of b."""


class Stack:
    """Networks of one shape, their parameters stacked.

    Args:
        networks: of `dense_network`, of the same widths.
        activation: theirs.

    Attributes:
        weights: of each layer, shape (networks, out, in).
        biases: of each layer, shape (networks, 1, out).
    """

    def __init__(self, networks: Sequence[nn.Sequential], activation: str) -> None:
        linears = [linear_layers(network) for network in networks]
        self.activation = activation_function(activation)
        layers = [*zip(*linears, strict=True)]
        self.weights = [_leaf([linear.weight for linear in layer]) for layer in layers]
        self.biases = [_leaf([linear.bias[None] for linear in layer]) for layer in layers]

    def __len__(self) -> int:
        return len(self.weights[0])

    @property
    def parameters(self) -> list[Tensor]:
        """Weights and biases, all of which require a gradient."""
        return [*self.weights, *self.biases]

    def __call__(
        self, inputs: Float[Tensor, "b n"], masks: Sequence[Tensor] = ()
    ) -> Float[Tensor, "networks b c"]:
        """Compute the logits of all networks.

        Args:
            inputs: the same for all.
            masks: factors of every hidden layer's units, as of dropout; none if empty.
        """
        first = self.weights[0]
        # All networks read the same inputs: one large product is faster than many.
        z = F.linear(inputs, first.flatten(0, 1)).unflatten(1, first.shape[:2]).transpose(0, 1)
        z = z + self.biases[0]
        for k, (weight, bias) in enumerate(zip(self.weights[1:], self.biases[1:], strict=True)):
            z = self.activation(z)
            if masks:
                z = z * masks[k]
            z = torch.baddbmm(bias, z, weight.mT)
        return z

    def losses(
        self,
        inputs: Float[Tensor, "b n"],
        labels: Int64[Tensor, " b"],
        masks: Sequence[Tensor] = (),
    ) -> Float[Tensor, " networks"]:
        """Compute each network's softmax cross-entropy, batch mean [nat]."""
        logits = self(inputs, masks)
        each = F.cross_entropy(
            logits.flatten(0, 1), labels.expand(len(self), -1).flatten(), reduction="none"
        )
        return each.view(len(self), -1).mean(1)

    @torch.no_grad()
    def accuracies(
        self, inputs: Float[Tensor, "b n"], labels: Int64[Tensor, " b"]
    ) -> Float[Tensor, " networks"]:
        """Compute each network's share of samples classified rightly."""
        return (self(inputs).argmax(-1) == labels).float().mean(1)

    def train(
        self,
        inputs: Float[Tensor, "n d"],
        labels: Int64[Tensor, " n"],
        order: Int64[Tensor, "steps b"],
        rates: Float[Tensor, " networks"],
        after_step: Callable[[], object] = lambda: None,
        masks: Masks | None = None,
    ) -> Float[Tensor, "networks steps"]:
        """Train all networks by plain SGD, each at its own rate; one that diverges stays NaN.

        Args:
            inputs: training data.
            labels: classes.
            order: numbers of the samples of each batch.
            rates: learning rates.
            after_step: called after each step, for a progress bar.
            masks: drawn anew for each step, the same for all networks; None for none.

        Returns:
            The loss [nat] of each step's batch before the step.
        """
        found = torch.empty(len(order), len(self))
        rate = rates[:, None, None]
        for step, batch in enumerate(order):
            drawn = masks(len(batch)) if masks else ()
            losses = self.losses(inputs[batch], labels[batch], drawn)
            # A network's loss depends on its own parameters only: the sum has all gradients.
            gradients = torch.autograd.grad(losses.sum(), self.parameters)
            with torch.no_grad():
                for parameter, gradient in zip(self.parameters, gradients, strict=True):
                    parameter.addcmul_(gradient, rate, value=-1)
            found[step] = losses.detach()
            after_step()
        return found.T


def _leaf(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.detach() for tensor in tensors]).requires_grad_()
