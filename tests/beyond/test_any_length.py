"""Thoughts that can end anywhere: against one prefix at a time, in float64."""

import itertools

import naive
import pytest
import torch
from naive import CLOSE, DOCUMENTS, POSITIONS, ids, learn, log_softmax, mean, think, tiny, uniform
from test_fast import assert_the_same_step
from torch.testing import assert_close


def any_length(window=None, **config):
    return tiny(window, **{"thought_kind": "any_length", "thought_len": 2, **config})


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("m, N", [(0, 2), (1, 1), (3, 2)])
def test_each_read_out_is_that_of_a_thought_which_ended_there(m, N, window):
    """Catches an end that sees a token too many, another end or another thought, one that stands in
    the wrong place, and a window that counts ends as later than they are."""
    quiet = any_length(window, thought_len=m, n_thoughts=N)
    tokens, shape = ids(2, 6), (2, N, 5, m)
    with torch.no_grad():
        sampled = think(quiet, tokens, noise=uniform(*shape))
        given = think(quiet, tokens, ids(*shape, seed=3))
        for got in (sampled, given):
            assert got.h_thought.shape == (2, N, 5, m + 1, 16)
            for b, n, i, s in itertools.product(range(2), range(N), range(5), range(m + 1)):
                prefix = got.tokens[b, n, i, :s]
                _, (h_thought,) = naive.naive_thought(quiet, tokens[b], i, prefix)
                assert_close(got.h_thought[b, n, i, s], h_thought, **CLOSE)
                if s < m:
                    h_policy = naive.naive_policy(quiet, tokens[b, : i + 1], prefix)
                    assert_close(got.h_policy[b, n, i, s], h_policy, **CLOSE)


def naive_lengths(quiet, text, i, thought):
    """After 0, 1, .. m tokens of a thought: log p of the true token (m + 1,), and the gate. And log
    p of each token of the thought (m,); and of the true token without a thought."""
    head, h_base, mixed, gates = quiet.model.output.weight, quiet.model(text[None])[0, i], [], []
    for s in range(len(thought) + 1):
        h = naive.naive_thought(quiet, text, i, thought[:s])[1][0]
        gates.append(naive.naive_gate(quiet, h_base, h))
        mixed.append(log_softmax(head @ (h_base + gates[-1] * (h - h_base)))[text[i + 1]])
    h_policy = naive.naive_thought(quiet, text, i, thought)[0]
    log_p = [log_softmax(head @ h)[token] for h, token in zip(h_policy, thought, strict=True)]
    base = log_softmax(head @ h_base)[text[i + 1]].detach()
    return torch.stack(mixed), torch.stack(gates), torch.stack(log_p), base


@pytest.mark.parametrize("clamp", [False, True])
def test_learning_equals_loops_over_lengths_and_tokens(clamp):
    """The loss, the credit of each token, and the error of the expected gains; with documents and
    padding. Catches a token that is paid for what came before it."""
    quiet = any_length(n_thoughts=2, clamp_advantage=clamp, gain_head=True)
    tokens, thoughts = ids(3, 9), ids(3, 2, 5, 2, seed=3)
    got = learn(quiet, tokens, think(quiet, tokens, thoughts, POSITIONS), DOCUMENTS)
    texts = []  # of each: loss of true tokens, REINFORCE, error of the expected gains
    for b, text in enumerate(tokens):
        nll, policy, errors = [], [], []
        for s, i in enumerate(POSITIONS[b].tolist()):
            if i == 8 or DOCUMENTS[b, i] != DOCUMENTS[b, i + 1] or DOCUMENTS[b, i] < 0:
                continue
            lengths = [naive_lengths(quiet, text, i, thoughts[b, n, s]) for n in range(2)]
            gains = [mixed.detach() - base for mixed, _, _, base in lengths]
            for n, (mixed, gates, log_p, _) in enumerate(lengths):
                assert_close(got.gate[b, n, s], gates, **CLOSE)
                assert_close(got.reward[b, n, s], gains[n].mean(), **CLOSE)
                nll.append(-mixed.mean())
                difference = gains[n] - gains[1 - n]
                # t_k is in the prefixes of k, .. 2 tokens, of three lengths
                advantage = torch.stack([difference[k:].sum() / 3 for k in (1, 2)])
                policy.append(-((advantage.relu() if clamp else advantage) * log_p).sum())
            expected = quiet.gain_head(quiet.model(text[None])[0, i])
            errors.append(((expected - sum(gains) / 2) ** 2).mean())
        texts.append([mean(nll), mean(policy), mean(errors)])
    nll, reinforce, error = (mean(parts) for parts in zip(*texts, strict=True))
    base = mean([row[mask].mean() for row, mask in zip(got.nll_base, got.valid_base, strict=True)])
    loss = 0.5 * base + 0.5 * nll + quiet.config.reinforce_weight * reinforce
    assert_close(got.reinforce, reinforce, **CLOSE)
    for ours, wanted in ((got.loss, loss), (got.gain_error, error)):
        assert_close(ours, wanted, **CLOSE)
        naive.assert_same_gradients(quiet, ours, wanted)


def test_in_parts_it_is_the_same_gradient():
    """Catches lengths that are counted by the part."""
    sizes = dict(n_thoughts=2, gain_head=True)
    in_parts = any_length(how=dict(at_once=3), **sizes)
    assert_the_same_step(any_length(**sizes), in_parts, ids(2, 8), noise=uniform(2, 2, 7, 2))
    assert all(weight.grad is not None for weight in in_parts.parameters())


def test_shorter_settings_read_out_at_fewer_lengths():
    """Catches with_settings that changes the thoughts and not their ends."""
    quiet = any_length(thought_len=3)
    tokens, noise = ids(2, 6), uniform(2, 4, 5, 3)
    full = quiet.predict(tokens, noise=noise)
    short = quiet.with_settings(thought_len=1).predict(tokens, noise=noise[..., :1])
    assert_close(short.h_mixed, full.h_mixed[:, :, :, :2], **CLOSE)
    with pytest.raises(ValueError, match="n_true"):
        quiet.with_settings(n_true=2)


def flat(gradients):
    return torch.cat([x.flatten() for x in gradients.values()])


def test_the_credit_of_prefixes_is_unbiased_and_varies_less():
    """By all 9 x 9 pairs of thoughts: the average gradient of REINFORCE is that of the expected
    reward, and its variance is below that with the whole reward as the credit of each token."""
    quiet = any_length(vocab=3, n_layers=1, n_thoughts=2, clamp_advantage=False)
    tokens, i = ids(1, 4, vocab=3), 1
    thoughts = torch.tensor(list(itertools.product(range(3), repeat=2)))
    found = [naive_lengths(quiet, tokens[0], i, thought) for thought in thoughts]
    log_p = torch.stack([log_p.sum() for _, _, log_p, _ in found])
    rewards = torch.stack([(mixed - base).mean() for mixed, _, _, base in found]).detach()
    exact = flat(naive.gradients((log_p.exp() * rewards).sum(), quiet))
    p, average, by_prefix, by_thought = log_p.detach().exp(), 0.0, 0.0, 0.0
    for pair in itertools.product(range(len(thoughts)), repeat=2):
        pair = list(pair)
        given = thoughts[pair].view(1, 2, 1, 2)
        got = learn(quiet, tokens, think(quiet, tokens, given, torch.tensor([[i]])))
        ours = -flat(naive.gradients(got.reinforce, quiet))
        advantage = rewards[pair] - rewards[pair].flip(0)
        plain = flat(naive.gradients((advantage * log_p[pair]).mean(), quiet))
        average = average + p[pair].prod() * ours
        by_prefix = by_prefix + p[pair].prod() * (ours**2).sum()
        by_thought = by_thought + p[pair].prod() * (plain**2).sum()
    assert exact.abs().max() > 1e-5
    assert_close(average, exact, rtol=1e-8, atol=1e-11)
    assert by_prefix < by_thought
