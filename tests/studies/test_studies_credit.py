"""Credit for thoughts: the exact gradient by autograd, and estimators whose mean is known."""

import torch
from naive import ids, tiny
from torch.testing import assert_close

from studies.credit import enumerate_thoughts, judge_credits, score_functions


def place(V=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = [
        torch.randn(*shape, generator=generator, dtype=torch.double) for shape in ((V,), (V, V))
    ]
    reward = torch.randn(V * V, generator=generator, dtype=torch.double)
    return [x.log_softmax(-1) for x in logits], reward, (reward > 0.5).double()


def test_score_functions_are_the_gradients_of_log_p():
    (log_p1, log_p2), *_ = place()
    logits = torch.cat((log_p1, log_p2.flatten())).requires_grad_()
    for t, u in ((0, 0), (1, 3), (3, 2)):
        log_p = logits[:4].log_softmax(-1)[t] + logits[4:].view(4, 4).log_softmax(-1)[t, u]
        (wanted,) = torch.autograd.grad(log_p, logits)
        assert_close(score_functions(log_p1, log_p2)[4 * t + u], wanted)


def test_unbiased_credit_is_found_unbiased_and_scaled_credit_scaled():
    """The mean gradient is estimated by many groups: to about a hundredth."""
    (log_p1, log_p2), reward, right = place()
    found = judge_credits(log_p1, log_p2, reward, right, torch.Generator().manual_seed(0))
    for N in (2, 4, 8):
        assert found[f"others, {N}"]["cosine"] > 0.99 and found[f"others, {N}"]["bias"] < 0.1
        assert found[f"none, {N}"]["bias"] < 1e-9, "its mean is exact"
        assert abs(found[f"all, {N}"]["bias"] - 1 / N) < 0.1, "it is (N - 1) / N of the gradient"
        assert found[f"clamped, {N}"]["cosine"] < 0.99
    assert found["others, 8"]["noise"] < found["others, 2"]["noise"]


def test_enumerated_thoughts_are_all_there_are_with_their_rewards():
    quiet, rows = tiny(vocab=5, thought_len=3, n_true=1), ids(2, 6, vocab=5)
    log_p1, log_p2, reward, right = enumerate_thoughts(quiet, rows, 5)
    assert_close(log_p1.exp().sum(-1), torch.ones(2, dtype=torch.double))
    assert_close(log_p2.exp().sum(-1), torch.ones(2, 5, dtype=torch.double))
    two = quiet.with_settings(thought_len=2, n_thoughts=1)
    for w in range(2):
        for t, u in ((0, 1), (4, 2)):
            thoughts = two.think(rows[w : w + 1], torch.tensor([[[[t, u]]]]), torch.tensor([[4]]))
            log_p = [
                quiet.model.logits(thoughts.h_policy[0, 0, 0, s]).log_softmax(-1) for s in (0, 1)
            ]
            assert_close(log_p1[w, t], log_p[0][t].detach())
            assert_close(log_p2[w, t, u], log_p[1][u].detach())
            h = two.talk(thoughts.h_base, thoughts.h_thought)[0][0, 0, 0, 0]
            after, base = (
                quiet.model.logits(x).log_softmax(-1)[rows[w, 5]]
                for x in (h, thoughts.h_base[0, 0, 0, 0])
            )
            assert_close(reward[w, 5 * t + u], (after - base).detach())
            assert right[w, 5 * t + u] == (quiet.model.logits(h).argmax() == rows[w, 5])
