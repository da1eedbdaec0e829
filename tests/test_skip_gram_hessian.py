"""Word pairs: blocks, saddles and the way out, against automatic differentiation in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from networks import seeded
from torch import Tensor

from hessinit_book.word2vec.skip_gram_hessian import (
    WordPairs,
    escape_norms,
    saddle_eigenvalues,
    start_eigenvalues,
)

SIZES = st.integers(1, 4)
SEEDS = st.integers(0, 10_000)


def make_pairs(
    centers: int, words: int, dimension: int, seed: int, scale: float = 1.0
) -> WordPairs:
    """Normal vectors, and whole numbers of pairs, many of them zero."""
    source = seeded(seed)
    inputs, outputs = (
        scale * torch.randn(n, dimension, generator=source, dtype=torch.float64)
        for n in (centers, words)
    )
    counts = torch.randint(0, 3, (2, centers, words), generator=source).double()
    return WordPairs(inputs, outputs, *counts)


def without_outputs(pairs: WordPairs) -> WordPairs:
    """Word2vec's start: the output vectors are zero."""
    return WordPairs(pairs.inputs, 0 * pairs.outputs, pairs.positive, pairs.negative)


def reference_loss(pairs: WordPairs, flat: Tensor) -> Tensor:
    """Sum the cross-entropies of all pairs one by one, each label as often as it is counted."""
    dimension = pairs.inputs.shape[1]
    vectors = flat.reshape(-1, dimension)
    loss = flat.new_zeros(())
    for c in range(len(pairs.inputs)):
        for w in range(len(pairs.outputs)):
            score = vectors[c] @ vectors[len(pairs.inputs) + w]
            for label, counts in ((1.0, pairs.positive), (0.0, pairs.negative)):
                target = torch.full_like(score, label)
                pair = F.binary_cross_entropy_with_logits(score, target)
                loss = loss + counts[c, w] * pair
    return loss


def flat(pairs: WordPairs) -> Tensor:
    return torch.cat([pairs.inputs, pairs.outputs]).flatten()


def dense_hessian(pairs: WordPairs) -> Tensor:
    return torch.func.hessian(lambda x: reference_loss(pairs, x))(flat(pairs))


@given(SIZES, SIZES, SIZES, SEEDS)
def test_statement_11_blocks_equal_dense_hessian(c: int, w: int, d: int, seed: int) -> None:
    pairs = make_pairs(c, w, d, seed)
    dense = dense_hessian(pairs)
    torch.testing.assert_close(pairs.joint_hessian(), dense, rtol=1e-9, atol=1e-9)
    blocks = dense.reshape(c + w, d, c + w, d).transpose(1, 2)
    for i in range(c):
        torch.testing.assert_close(pairs.input_blocks()[i], blocks[i, i], rtol=1e-9, atol=1e-9)
    for j in range(w):
        block = blocks[c + j, c + j]
        torch.testing.assert_close(pairs.output_blocks()[j], block, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pairs.cross_blocks(), blocks[:c, c:], rtol=1e-9, atol=1e-9)


@given(SIZES, SIZES, SIZES, SEEDS)
def test_statement_11_diagonal_blocks_are_gauss_newton(c: int, w: int, d: int, seed: int) -> None:
    """Without the curvature of the scores there is J^T B J, the same on the diagonal."""
    pairs = make_pairs(c, w, d, seed)

    def scores(x: Tensor) -> Tensor:
        vectors = x.reshape(-1, d)
        return (vectors[:c] @ vectors[c:].mT).flatten()

    jacobian = torch.func.jacrev(scores)(flat(pairs))
    expected = jacobian.mT @ torch.diag(pairs.bends.flatten()) @ jacobian
    found = pairs.joint_hessian(curvature=False)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    difference = (pairs.joint_hessian() - found).reshape(c + w, d, c + w, d)
    for word in range(c + w):
        assert difference[word, :, word].abs().max() == 0
    # What is left out: multiples of the identity, one a pair.
    curvature = pairs.slopes[..., None, None] * torch.eye(d, dtype=torch.float64)
    torch.testing.assert_close(difference[:c, :, c:].transpose(1, 2), curvature)


@given(SIZES, SIZES, SIZES, SEEDS)
def test_statement_11_zeros_at_word2vecs_start(c: int, w: int, d: int, seed: int) -> None:
    pairs = without_outputs(make_pairs(c, w, d, seed))
    inputs, outputs = pairs.gradient()
    assert inputs.abs().max() == 0
    assert pairs.input_blocks().abs().max() == 0
    expected = torch.zeros_like(outputs)
    for i in range(c):
        for j in range(w):
            count = (pairs.negative - pairs.positive)[i, j] / 2
            expected[j] += count * pairs.inputs[i]
    torch.testing.assert_close(outputs, expected)


@given(SIZES, SIZES, SIZES, SEEDS)
def test_statement_11_start_is_indefinite(c: int, w: int, d: int, seed: int) -> None:
    pairs = without_outputs(make_pairs(c, w, d, seed))
    values = torch.linalg.eigvalsh(dense_hessian(pairs))
    if (pairs.positive == pairs.negative).all():
        assert values[0] > -1e-12
    else:
        # A pair alone: its cross block against zero and n |v|^2 / 4.
        assert values[0] < -1e-6
        assert values[-1] > 1e-6
    assert torch.linalg.eigvalsh(pairs.joint_hessian(curvature=False))[0] > -1e-12


@given(SIZES, SIZES, SEEDS)
def test_statement_11_eigenvalues_of_one_word_at_the_start(w: int, d: int, seed: int) -> None:
    pairs = without_outputs(make_pairs(1, w, d, seed))
    found = start_eigenvalues(pairs.inputs[0], pairs.positive[0], pairs.negative[0])
    expected = torch.linalg.eigvalsh(dense_hessian(pairs))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("words", [1, 3, 8])
def test_statement_11_smallest_eigenvalue_with_one_pair_each(words: int) -> None:
    """It is -sqrt(m) / 2 whatever the labels and the input vector are."""
    for seed in range(5):
        center = torch.randn(4, generator=seeded(seed), dtype=torch.float64)
        positive = torch.randint(0, 2, (words,), generator=seeded(seed)).double()
        pairs = WordPairs(
            center[None], torch.zeros(words, 4).double(), positive[None], 1 - positive[None]
        )
        smallest = torch.linalg.eigvalsh(dense_hessian(pairs))[0].item()
        assert smallest == pytest.approx(-math.sqrt(words) / 2, rel=1e-9)
        found = start_eigenvalues(center, positive, 1 - positive)
        assert found[0].item() == pytest.approx(smallest, rel=1e-9)


@given(SIZES, SIZES, SIZES, SEEDS)
def test_statement_11_eigenvalues_of_the_saddle_at_zero(c: int, w: int, d: int, seed: int) -> None:
    pairs = make_pairs(c, w, d, seed, scale=0.0)
    assert all(part.abs().max() == 0 for part in pairs.gradient())
    found = saddle_eigenvalues(pairs.positive, pairs.negative, d)
    expected = torch.linalg.eigvalsh(dense_hessian(pairs))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@given(SIZES, SIZES, SIZES, SEEDS)
def test_loss_gradient_and_norms(c: int, w: int, d: int, seed: int) -> None:
    pairs = make_pairs(c, w, d, seed)
    loss, (inputs, outputs) = pairs.loss(), pairs.gradient()
    assert loss.item() == pytest.approx(reference_loss(pairs, flat(pairs)).item(), rel=1e-12)
    gradient = torch.func.grad(lambda x: reference_loss(pairs, x))(flat(pairs))
    torch.testing.assert_close(torch.cat([inputs, outputs]).flatten(), gradient)
    norms, linear = pairs.block_norms(), pairs.cross_blocks(curvature=False)
    expected = [
        pairs.input_blocks().norm(),
        pairs.output_blocks().norm(),
        pairs.cross_blocks().norm(),
        linear.norm(),
        (pairs.cross_blocks() - linear).norm(),
    ]
    assert [*vars(norms).values()] == pytest.approx([x.item() for x in expected], abs=1e-9)


@given(SIZES, SIZES, SIZES, SEEDS, st.floats(1e-3, 0.5))
def test_escape_is_the_limit_of_small_vectors(
    c: int, w: int, d: int, seed: int, rate: float
) -> None:
    """Gradient descent by automatic differentiation, so near zero that only first order counts."""
    pairs = make_pairs(c, w, d, seed, scale=1e-5)
    inputs, outputs = escape_norms(pairs, rate, steps=6)
    assert inputs.shape == outputs.shape == (7,)
    gradient = torch.func.grad(lambda x: reference_loss(pairs, x))
    x = flat(pairs)
    for step in range(7):
        vectors = x.reshape(-1, d)
        assert inputs[step].item() == pytest.approx(vectors[:c].norm().item(), rel=1e-6)
        assert outputs[step].item() == pytest.approx(vectors[c:].norm().item(), rel=1e-6)
        x = x - rate * gradient(x)


def test_large_scores_do_not_overflow() -> None:
    one = torch.full((1, 1), 1e3, dtype=torch.float64)
    pairs = WordPairs(one, one, positive=torch.zeros(1, 1).double(), negative=one / 1e3)
    assert pairs.loss().item() == pytest.approx(1e6)
    assert pairs.bends.item() == 0


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """As outside of the tests, where annotations are not checked."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), (4, 2), (2, 4), (2, 4)), "outputs of shape 4 x 2: expected rows of 3 numbers"),
        (((2, 3), (4, 3), (4, 2), (2, 4)), "positive of shape 4 x 2: expected 2 x 4"),
        (((2, 3), (4, 3), (2, 4), (2, 5)), "negative of shape 2 x 5: expected 2 x 4"),
    ],
)
def test_shapes_that_do_not_fit(shapes: tuple[tuple[int, int], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WordPairs(*map(torch.ones, shapes))


def test_values_that_are_not_allowed() -> None:
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match="negative -1: expected counts of 0 or more"):
        WordPairs(one, one, one, -one)
    with pytest.raises(ValueError, match="positive nan: expected counts of 0 or more"):
        saddle_eigenvalues(math.nan * one, one, dimension=1)
    with pytest.raises(ValueError, match="dimension 0: expected 1 or more"):
        saddle_eigenvalues(one, one, dimension=0)
    pairs = WordPairs(one, one, one, one)
    with pytest.raises(ValueError, match=r"rate 0\.0: expected a number above 0"):
        escape_norms(pairs, rate=0.0, steps=1)
    with pytest.raises(ValueError, match="steps -1: expected 0 or more"):
        escape_norms(pairs, rate=1.0, steps=-1)
