"""What a diagnosis says of one weight."""

from __future__ import annotations

from dataclasses import dataclass

from hessinit_lib.diagnosis.rules import Verdict


@dataclass(frozen=True)
class LayerDiagnosis:
    r"""One weight of a network before training. NaN: not available.

    Attributes:
        name: the parameter.
        shape: its shape.
        order: place in the forward pass; None if its layer was not called as a module.
        gain: factor on the size of independent inputs, $s \sqrt{n_\mathrm{in}}$; of a table
            of embeddings the size of its entries.
        input_mean: mean of the activations that feed the layer.
        input_std: their standard deviation.
        input_rms: root of their mean square.
        input_zeros: share of them that is zero.
        output_rms: root mean square of its outputs, before the activation.
        dead: share of its units that the ReLU after it sets to zero for every sample; 0
            where no ReLU follows.
        saturated: share of its values that are on the flat parts of a tanh or sigmoid.
        output_gradient: norm of the gradient of the loss at its outputs.
        gradient_norm: norm of the gradient in the weight, $\|g_k\|$; NaN if it is frozen.
        gradient_mean: mean of that gradient's entries.
        gradient_std: their standard deviation.
        gradient_zeros: share of them that is zero.
        hessian_norm: $\|H_k\|_F$ of the loss's Hessian in the weight.
        hessian_error: its standard error, 0 where it is exact.
        hessian_gain: predicted gain of the best step of this layer alone, $\|g_k\|^4 / (2
            g_k^\top H_k g_k)$; infinite where that curvature is not positive.
        verdict: "vanishing", "balanced" or "exploding".
        reasons: what is out of bounds, in words.
    """

    name: str
    shape: tuple[int, ...]
    order: int | None
    gain: float
    input_mean: float
    input_std: float
    input_rms: float
    input_zeros: float
    output_rms: float
    dead: float
    saturated: float
    output_gradient: float
    gradient_norm: float
    gradient_mean: float
    gradient_std: float
    gradient_zeros: float
    hessian_norm: float
    hessian_error: float
    hessian_gain: float
    verdict: Verdict
    reasons: tuple[str, ...]
