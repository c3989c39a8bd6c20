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
