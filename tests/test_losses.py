"""Losses: hand-worked numbers, float64 references, gradients, ragged rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from calib_core.training.losses import answer_nll_nats, ece_loss, sequence_nll_nats

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return 4 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values)


def close(found: torch.Tensor, expected: object) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-6, atol=1e-6)


def test_answer_nll_of_hand_worked_logits() -> None:
    # e^0 : e^ln3 : e^ln4 = 1 : 3 : 4, so the answer's share is 3/8 in the first row, 1/8 in the second.
    found = answer_nll_nats(tensor([[0, LN3, LN4], [0, LN3, LN4]]), tensor([1, 0]))
    close(found, [math.log(8 / 3), math.log(8)])


def test_answer_nll_is_over_the_whole_vocabulary() -> None:
    # Four equal tokens of which two are letters: ln 4, not the letters' ln 2. More elsewhere makes it worse.
    close(answer_nll_nats(tensor([[0.0, 0, 0, 0], [0.0, 0, 0, LN2]]), tensor([1, 1])), [LN4, math.log(5)])


def test_answer_nll_agrees_with_float64() -> None:
    logits, answers = drawn(7, 300), tensor([0, 5, 299, 17, 17, 4, 100])
    expected = -log_softmax(logits.double().numpy(), axis=1)[np.arange(7), answers.numpy()]
    close(answer_nll_nats(logits, answers), expected)


def test_sequence_nll_is_a_mean_over_the_questions_tokens_and_the_answers_own() -> None:
    # Row 0: question tokens of p = 1/2, 1/4 and an answer of 1/2: (ln 2 + ln 4) / 2 + ln 2 = 2.5 ln 2.
    # Row 1: a question token of 1/4 and an answer of 1/4: ln 4 + ln 4 = 4 ln 2.
    half, quarter = [LN3, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]  # 3 : 1 : 1 : 1 gives 3/6
    logits, ids = tensor([half, quarter, half, quarter, quarter]), tensor([0, 2, 0, 3, 1])
    close(sequence_nll_nats(logits, ids, tensor([3, 2])), [2.5 * LN2, 4 * LN2])


def test_sequence_nll_agrees_with_float64() -> None:
    lengths = [5, 2, 9, 3]
    logits, ids = drawn(19, 50), torch.arange(19) * 7 % 50
    nll = -log_softmax(logits.double().numpy(), axis=1)[np.arange(19), ids.numpy()]
    parts = np.split(nll, np.cumsum(lengths)[:-1])
    found = sequence_nll_nats(logits, ids, tensor(lengths))
    close(found, [part[:-1].mean() + part[-1] for part in parts])


def test_gradient_of_sequence_nll_is_shared_by_a_questions_tokens_and_the_answers_is_whole() -> None:
    # d/dz of -log softmax(z)_y is softmax(z) - onehot(y), divided by the number of the question's tokens.
    logits, ids = drawn(5, 6).requires_grad_(), tensor([2, 4, 1, 0, 3])
    sequence_nll_nats(logits, ids, tensor([3, 2])).sum().backward()
    expected = softmax(logits.detach().double().numpy(), axis=1) - np.eye(6)[ids.numpy()]
    close(logits.grad, expected / np.array([[2], [2], [1], [1], [1]]))


def test_ece_loss_of_hand_worked_logits() -> None:
    # p = (1/2, 1/4, 1/4) against t = (0.7, 0.2, 0.1): 0.2^2 + 0.05^2 + 0.15^2 = 0.04 + 0.0025 + 0.0225.
    # p = (1/4, 3/4) against t = (0.5, 0.5), a third column that isn't an option: 2 * 0.25^2 = 0.125.
    logits = tensor([[LN2, 0, 0], [0, LN3, 50.0]])
    target = tensor([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]])
    close(ece_loss(logits, target, tensor([3, 2])), [0.065, 0.125])


def test_ece_loss_reaches_its_bounds() -> None:
    certain = tensor([[100.0, 0.0]])
    close(ece_loss(certain, tensor([[0.0, 1.0]]), tensor([2])), [2.0])
    close(ece_loss(certain, tensor([[1.0, 0.0]]), tensor([2])), [0.0])


def ece_float64(logits: np.ndarray, target: np.ndarray, n_options: np.ndarray) -> np.ndarray:
    """The same loss row by row, in numpy."""
    rows = zip(logits, target, n_options, strict=True)
    return np.array([((softmax(z[:k]) - t[:k]) ** 2).sum() for z, t, k in rows])


def ragged(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n_options = tensor([2, 5, 3, 4])
    own = np.arange(5) < n_options.numpy()[:, None]
    target = softmax(np.where(own, drawn(4, 5, seed=seed).numpy(), -np.inf), axis=1)
    return drawn(4, 5, seed=seed + 1) / 4, torch.from_numpy(target), n_options


def test_ece_loss_agrees_with_float64() -> None:
    logits, target, n_options = ragged()
    close(
        ece_loss(logits, target, n_options), ece_float64(logits.double().numpy(), target.numpy(), n_options)
    )


def test_gradient_of_ece_loss_agrees_with_finite_differences() -> None:
    logits, target, n_options = ragged()
    logits.requires_grad_()
    ece_loss(logits, target, n_options).sum().backward()
    base, step = logits.detach().double().numpy(), 1e-5
    for row, column in np.ndindex(*base.shape):
        above, below = base.copy(), base.copy()
        above[row, column] += step
        below[row, column] -= step
        difference = ece_float64(above, target.numpy(), n_options) - ece_float64(
            below, target.numpy(), n_options
        )
        assert logits.grad[row, column].item() == pytest.approx(difference.sum() / (2 * step), abs=1e-6)
        if column >= n_options[row]:
            assert logits.grad[row, column] == 0


def test_target_of_ece_loss_takes_no_gradient() -> None:
    logits, target, n_options = ragged()
    target.requires_grad_()
    loss = ece_loss(logits.requires_grad_(), target, n_options).sum()
    loss.backward()
    assert logits.grad.abs().sum() > 0
    assert target.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inside_is_float32(dtype: torch.dtype) -> None:
    logits = drawn(4, 40).to(dtype)
    ids = tensor([1, 2, 3, 4])
    target = ragged()[1]
    for loss in (
        lambda x: answer_nll_nats(x, ids),
        lambda x: sequence_nll_nats(x, ids, tensor([2, 2])),
        lambda x: ece_loss(x[:, :5], target, tensor([2, 5, 3, 4])),
    ):
        assert loss(logits).dtype == torch.float32
        close(loss(logits), loss(logits.float()).numpy())
