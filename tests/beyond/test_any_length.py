"""Thoughts that can end anywhere: against one prefix at a time, in float64."""

import itertools

import naive
import pytest
import torch
from naive import CLOSE, DOCUMENTS, POSITIONS, ids, learn, log_softmax, mean, think, tiny, uniform
from test_fast import assert_the_same_step
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


def test_the_credit_of_prefixes_is_unbiased_and_varies_less():
    """By enumerating 9 x 9 pairs of thoughts: on average REINFORCE is the exact gradient of the
    expected reward, and it varies less than with the same credit for all tokens of a thought."""
    quiet, tokens = any_length(vocab=3, n_layers=1, n_thoughts=2, clamp_advantage=False), ids(1, 4)
    tokens, position = tokens % 3, torch.tensor([[1]])

    def gradient(loss):
        return torch.cat([x.flatten() for x in naive.gradients(loss, quiet).values()])

    thoughts = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    lengths = [naive_lengths(quiet, tokens[0], 1, thought) for thought in thoughts]
    log_p = torch.stack([x[2].sum() for x in lengths])
    rewards = torch.stack([(x[0] - x[3]).mean() for x in lengths]).detach()
    p, exact = log_p.detach().exp(), gradient((log_p.exp() * rewards).sum())
    average, square, square_of_all = 0.0, 0.0, 0.0
    for pair in map(list, itertools.product(range(9), repeat=2)):
        got = think(quiet, tokens, thoughts[pair].view(1, 2, 1, 2), position)
        ours = -gradient(learn(quiet, tokens, got).reinforce)
        advantage = rewards[pair] - rewards[pair].flip(0)
        for_all = gradient((advantage * log_p[pair]).mean())
        average += p[pair].prod() * ours
        square += p[pair].prod() * (ours**2).sum()
        square_of_all += p[pair].prod() * (for_all**2).sum()
    assert exact.abs().max() > 1e-5
    assert_close(average, exact, rtol=1e-8, atol=1e-11)
    assert square < square_of_all


@pytest.mark.parametrize("recompute", [False, True])
def test_in_parts_it_is_the_same_gradient(recompute):
    """Catches lengths that are counted by the part."""
    sizes = dict(n_thoughts=2, gain_head=True)
    in_parts = any_length(how=dict(at_once=3, recompute=recompute), **sizes)
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
    lengths = torch.tensor([[-1, 0, 1, 0, -1]] * 2)
    h = at_length(short.h_mixed[:, 0], short.h_base[:, 0, :, 0], lengths)
    for (b, i), length in zip(
        itertools.product(range(2), range(5)), lengths.flatten(), strict=True
    ):
        base, after = short.h_base[b, 0, i, 0], short.h_mixed[b, 0, i]
        assert torch.equal(h[b, i], base if length < 0 else after[length])
