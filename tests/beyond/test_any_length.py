"""Thoughts that can end anywhere: against one prefix at a time, in float64."""

import itertools

import pytest
import torch
from naive import (
    CLOSE,
    DOCUMENTS,
    POSITIONS,
    gradients,
    ids,
    learn,
    log_softmax,
    naive_gate,
    naive_policy,
    naive_thought,
    think,
    tiny,
    uniform,
)
from torch.testing import assert_close

from beyond.any_length import at_length, depth, prefix_mask

OWN = [  # start, t_1, t_2, end_0, end_1, end_2
    [1, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 0],
    [1, 0, 0, 1, 0, 0],
    [1, 1, 0, 0, 1, 0],
    [1, 1, 1, 0, 0, 1],
]


def any_length(window=None, **config):
    return tiny(window, **{"thought_kind": "any_length", "thought_len": 2, **config})


def test_prefix_mask_is_the_picture():
    """Catches an end that sees another one, and a window that counts ends as later than they are. A
    thought of position 1 beside text tokens 0, 1, 2; and another one, which it never sees."""
    position = torch.tensor([0, 1, 2] + [1] * 12)
    thought = torch.tensor([-1] * 3 + [0] * 6 + [1] * 6)
    layout = position, thought, torch.tensor([-1] * 3 + list(range(6)) * 2)
    mask = prefix_mask(layout, layout, 2).int()
    assert mask[3:9, 3:9].tolist() == mask[9:, 9:].tolist() == OWN
    assert mask[3:9, 9:].count_nonzero() == mask[:3, 3:].count_nonzero() == 0
    assert mask[3:9, :3].tolist() == [[1, 1, 0]] * 6
    assert depth(torch.arange(6), 2).tolist() == [0, 1, 2, 1, 2, 3], "end_s is where t_{s+1} is"
    # text 1 has id 1, start 2, t_1 and end_0 3
    near = prefix_mask(layout, layout, 2, sliding_window=2).int()
    assert near[3:9, :3].tolist() == [[0, 1, 0]] + [[0, 0, 0]] * 5
    assert near[8, 3:9].tolist() == [0, 0, 1, 0, 0, 1]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("m, N", [(0, 2), (1, 1), (3, 2)])
def test_each_read_out_is_that_of_a_thought_which_ended_there(m, N, window):
    """Catches an end that sees a token too many, and one that stands in the wrong place."""
    quiet = any_length(window, thought_len=m, n_thoughts=N)
    tokens, shape = ids(2, 6), (2, N, 5, m)
    with torch.no_grad():
        sampled = think(quiet, tokens, noise=uniform(*shape))
        given = think(quiet, tokens, ids(*shape, seed=3))
        for got in (sampled, given):
            assert got.h_thought.shape == (2, N, 5, m + 1, 16)
            for b, n, i, s in itertools.product(range(2), range(N), range(5), range(m + 1)):
                thought = got.tokens[b, n, i, :s]
                after = naive_thought(quiet, tokens[b], i, thought)[1][0]
                assert_close(got.h_thought[b, n, i, s], after, **CLOSE)
                if s < m:
                    policy = naive_policy(quiet, tokens[b, : i + 1], thought)
                    assert_close(got.h_policy[b, n, i, s], policy, **CLOSE)


def naive_gains(quiet, text, i, thought, true):
    """After 0, 1, .. tokens of a thought: log p of the true token, the gate, and log p of each
    token of the thought."""
    head, h_base, after, gates = quiet.model.output.weight, quiet.model(text[None])[0, i], [], []
    for s in range(len(thought) + 1):
        h = naive_thought(quiet, text, i, thought[:s])[1][0]
        gates.append(naive_gate(quiet, h_base, h))
        after.append(log_softmax(head @ (h_base + gates[-1] * (h - h_base)))[true])
    log_p = [
        log_softmax(head @ naive_policy(quiet, text[: i + 1], thought[:s]))[thought[s]]
        for s in range(len(thought))
    ]
    return torch.stack(after), torch.stack(gates), torch.stack(log_p)


@pytest.mark.parametrize("clamp", [False, True])
def test_learning_equals_loops_over_lengths_and_tokens(clamp):
    """The loss, the credit of each token, and the error of the expected gains; with documents and
    padding."""
    quiet = any_length(n_thoughts=2, clamp_advantage=clamp, gain_head=True)
    tokens, thoughts = ids(3, 9), ids(3, 2, 5, 2, seed=3)
    got = learn(quiet, tokens, think(quiet, tokens, thoughts, POSITIONS), DOCUMENTS)
    texts, reinforces, errors = [], [], []
    for b in range(3):
        mixed, policy, error = [], [], []
        for s, i in enumerate(POSITIONS[b].tolist()):
            if i == 8 or DOCUMENTS[b, i] != DOCUMENTS[b, i + 1] or DOCUMENTS[b, i] < 0:
                continue
            head = quiet.model.output.weight
            base = log_softmax(head @ quiet.model(tokens[b : b + 1])[0, i])[
                tokens[b, i + 1]
            ].detach()
            found = [
                naive_gains(quiet, tokens[b], i, thoughts[b, n, s], tokens[b, i + 1])
                for n in range(2)
            ]
            gains = [(after.detach() - base).tolist() for after, _, _ in found]
            for n, (after, gates, log_p) in enumerate(found):
                assert_close(got.gate[b, n, s], gates, **CLOSE)
                assert_close(
                    got.reward[b, n, s],
                    torch.tensor(sum(gains[n]) / 3, dtype=torch.float64),
                    **CLOSE,
                )
                mixed.append(-after.mean())
                for k in (1, 2):  # t_k is in the prefixes of k, .. 2 tokens
                    mine, other = (sum(g[k:]) / 3 for g in (gains[n], gains[1 - n]))
                    advantage = max(0.0, mine - other) if clamp else mine - other
                    policy.append(-advantage * log_p[k - 1])
            expected = quiet.gain_head(quiet.model(tokens[b : b + 1])[0, i])
            error.append(
                sum((expected[s] - (gains[0][s] + gains[1][s]) / 2) ** 2 for s in range(3)) / 3
            )
        texts.append(sum(mixed) / len(mixed))
        reinforces.append(sum(policy) / (len(policy) / 2))
        errors.append(sum(error) / len(error))
    reinforce = sum(reinforces) / 3
    assert_close(got.reinforce, reinforce, **CLOSE)
    wanted = 0.5 * sum(texts) / 3 + quiet.config.reinforce_weight * reinforce
    base = sum(row[mask].mean() for row, mask in zip(got.nll_base, got.valid_base, strict=True)) / 3
    assert_close(got.loss, 0.5 * base + wanted, **CLOSE)
    assert_close(got.gain_error, sum(errors) / 3, **CLOSE)
    for ours, naive in ((got.loss, 0.5 * base + wanted), (got.gain_error, sum(errors) / 3)):
        ours, naive = gradients(ours, quiet), gradients(naive, quiet)
        for name in naive:
            assert_close(ours[name], naive[name], **CLOSE, msg=name)


def whole_and_to_come(quiet, tokens, i):
    """By enumerating all pairs of thoughts: the exact gradient of the expected mean gain; that
    which REINFORCE has on average; and the variance of REINFORCE with each token's own credit, and
    with the whole reward for all of them."""
    V, m = quiet.model.config.vocab_size, quiet.config.thought_len
    thoughts = torch.tensor(list(itertools.product(range(V), repeat=m)))
    found = [naive_gains(quiet, tokens[0], i, thought, tokens[0, i + 1]) for thought in thoughts]
    base = log_softmax(quiet.model.output.weight @ quiet.model(tokens)[0, i])[
        tokens[0, i + 1]
    ].detach()
    log_p = torch.stack([x[2].sum() for x in found])
    rewards = torch.stack([(x[0] - base).mean() for x in found]).detach()
    exact = flat(gradients((log_p.exp() * rewards).sum(), quiet))
    p, ours, squares = log_p.detach().exp(), 0.0, [0.0, 0.0]
    for pair in itertools.product(range(len(thoughts)), repeat=2):
        pair = list(pair)
        got = learn(
            quiet,
            tokens,
            think(quiet, tokens, thoughts[pair].view(1, 2, 1, m), torch.tensor([[i]])),
        )
        mine = -flat(gradients(got.reinforce, quiet))
        advantage = rewards[pair] - rewards[pair].flip(0)
        whole = flat(gradients((advantage * log_p[pair]).mean(), quiet))
        ours = ours + p[pair].prod() * mine
        squares = [
            x + p[pair].prod() * (y**2).sum() for x, y in zip(squares, (mine, whole), strict=True)
        ]
    return exact, ours, *(x - (exact**2).sum() for x in squares)


def flat(grads):
    return torch.cat([x.flatten() for x in grads.values()])


def test_the_credit_of_prefixes_is_unbiased_and_varies_less():
    """All 9 x 9 pairs of thoughts."""
    quiet = any_length(vocab=3, n_layers=1, n_thoughts=2, clamp_advantage=False)
    exact, ours, variance, of_whole = whole_and_to_come(quiet, ids(1, 4, vocab=3), 1)
    assert exact.abs().max() > 1e-5
    assert_close(ours, exact, rtol=1e-8, atol=1e-11)
    assert variance < of_whole


@pytest.mark.parametrize("recompute", [False, True])
def test_in_parts_it_is_the_same_gradient(recompute):
    """Catches lengths that are counted by the part."""
    sizes = dict(n_thoughts=2, gain_head=True)
    one, other = any_length(**sizes), any_length(how=dict(at_once=3, recompute=recompute), **sizes)
    tokens, noise = ids(2, 8), uniform(2, 2, 7, 2)
    loss, metrics = one(tokens, noise=noise)
    loss.backward()
    in_parts, found = other(tokens, noise=noise)
    in_parts.backward()
    assert metrics.keys() == found.keys()
    for name in metrics:
        assert_close(found[name], metrics[name], **CLOSE, msg=name)
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert_close(q.grad, p.grad, **CLOSE, msg=name)


def test_shorter_settings_read_out_at_fewer_lengths():
    """Catches with_settings that changes the thoughts and not their ends."""
    quiet = any_length(thought_len=3)
    tokens, noise = ids(2, 6), uniform(2, 4, 5, 3)
    full = quiet.predict(tokens, noise=noise)
    short = quiet.with_settings(thought_len=1).predict(tokens, noise=noise[..., :1])
    assert_close(short.h_mixed, full.h_mixed[:, :, :, :2], **CLOSE)
    with pytest.raises(ValueError, match="n_true"):
        quiet.with_settings(n_true=2)
    lengths = torch.tensor([[-1, 0, 1, 0, -1]] * 2)
    h = at_length(short.h_mixed[:, 0], short.h_base[:, 0, :, 0], lengths)
    for b, i in itertools.product(range(2), range(5)):
        length = int(lengths[b, i])
        base, after = short.h_base[b, 0, i, 0], short.h_mixed[b, 0, i]
        assert torch.equal(h[b, i], base if length < 0 else after[length])
