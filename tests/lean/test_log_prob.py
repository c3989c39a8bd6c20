"""Log-probabilities in chunks are those of all logits at once."""

import itertools

import torch
from naive import CLOSE, ids, log_softmax, uniform
from torch.testing import assert_close

from lean.log_prob import token_log_prob


def test_token_log_prob_in_chunks_is_the_same():
    """Catches a chunk that is dropped, doubled or put in the wrong place, also in the recomputed backward pass."""
    head, wanted = torch.nn.Linear(5, 7, bias=False).double(), []
    hidden, tokens = uniform(2, 3, 4, 5).requires_grad_(), ids(2, 3, 4, vocab=7)
    for index in itertools.product(range(2), range(3), range(4)):
        wanted.append(log_softmax(head.weight @ hidden[index] / 1.5)[tokens[index]])
    wanted, weights = torch.stack(wanted).view(2, 3, 4), uniform(2, 3, 4, seed=5)
    for chunk_numbers in (1, 35, 70, 10**6):
        got = token_log_prob(head, hidden, tokens, 1.5, chunk_numbers=chunk_numbers)
        assert_close(got, wanted, **CLOSE)
        for one, two in zip(
            torch.autograd.grad((got * weights).sum(), (hidden, head.weight)),
            torch.autograd.grad((wanted * weights).sum(), (hidden, head.weight), retain_graph=True),
            strict=True,
        ):
            assert_close(one, two, **CLOSE)


def test_a_result_that_is_known_is_kept_and_its_gradient_is_the_same():
    """The logsumexp of a row is then made from it. Rows whose gradient is 0 drop out."""
    head, hidden, tokens = (
        torch.nn.Linear(5, 7, bias=False).double(),
        uniform(6, 5).requires_grad_(),
        ids(6, vocab=7),
    )
    weights = torch.tensor([0.3, 0.0, -1.0, 2.0, 0.0, 0.5], dtype=torch.float64)
    wanted = token_log_prob(head, hidden, tokens, 1.5)
    for chunk_numbers in (1, 12, 10**6):
        got = token_log_prob(
            head, hidden, tokens, 1.5, known=wanted.detach(), chunk_numbers=chunk_numbers
        )
        assert torch.equal(got, wanted)
        for one, two in zip(
            torch.autograd.grad((got * weights).sum(), (hidden, head.weight)),
            torch.autograd.grad((wanted * weights).sum(), (hidden, head.weight), retain_graph=True),
            strict=True,
        ):
            assert_close(one, two, **CLOSE)


def test_in_bfloat16_it_is_plain_cross_entropy_in_bfloat16():
    """As near to float64 as full logits under autocast are; and a frozen head costs no gradient."""
    torch.manual_seed(0)
    head, hidden, tokens = (
        torch.nn.Linear(32, 50, bias=False),
        torch.randn(40, 32, requires_grad=True),
        ids(40, vocab=50),
    )
    exact = token_log_prob(head.double(), hidden.double(), tokens)
    wanted = torch.autograd.grad(exact.sum(), hidden)[0]
    head.float().requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        plain = -torch.nn.functional.cross_entropy(head(hidden).float(), tokens, reduction="none")
        got = token_log_prob(head, hidden, tokens, chunk_numbers=100)
        known = token_log_prob(head, hidden, tokens, known=got.detach(), chunk_numbers=100)
    error = (plain - exact).abs().max()
    assert 0 < error < 0.05 and (got - exact).abs().max() < 1.5 * error
    for x in (got, known):
        assert_close(torch.autograd.grad(x.sum(), hidden)[0], wanted, atol=0.02, rtol=0.05)
    assert head.weight.grad is None
