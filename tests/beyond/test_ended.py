"""Thoughts that end where they say so, against thoughts that are cut there and read one by one."""

import itertools

import naive
import pytest
import torch
from naive import CLOSE, assert_same_gradients, ids, learn, naive_learn, think, tiny
from torch.testing import assert_close

END = 3  # the token that ends a thought


def ended(window=None, **settings):
    return tiny(window, fast=True, thought_kind="ended", end_id=END, **settings)


def cut(thought):
    """A thought (m,) up to the first END, and with it."""
    ends = (thought == END).nonzero()
    return thought[: ends[0, 0] + 1] if len(ends) else thought


class Cut:
    """Thoughts (B, N, S, m) that naive_learn finds cut."""

    def __init__(self, thoughts):
        self.thoughts = thoughts

    def __getitem__(self, key):
        return [cut(thought) for thought in self.thoughts[key]]


@pytest.mark.parametrize("window, m, a", [(None, 4, 1), (3, 4, 3), (4, 2, 2), (None, 0, 1)])
def test_a_step_is_that_of_thoughts_that_are_cut(window, m, a):
    """Catches a token behind the end that is seen, counted or reinforced, and positions with a
    gap."""
    quiet = ended(window, thought_len=m, n_thoughts=3, n_true=a, clamp_advantage=False)
    tokens, thoughts = ids(2, 9), ids(2, 3, 9 - a, m, vocab=5, seed=4)
    lengths = {len(cut(x)) for x in thoughts.flatten(0, 2)}
    assert len(lengths) == max(1, m), "the thoughts are too much alike"
    positions = torch.arange(9 - a).expand(2, -1)
    wanted, *_ = naive_learn(quiet, tokens, Cut(thoughts), positions)
    loss, _ = quiet(tokens, thoughts)
    assert_close(loss, wanted, **CLOSE)
    assert_same_gradients(quiet, loss, wanted)


def test_reinforce_is_in_expectation_the_gradient_of_the_expected_reward():
    """Catches log p of tokens behind the end, and of an end that is left out."""
    config = dict(n_thoughts=2, thought_len=2, n_true=1, clamp_advantage=False)
    quiet, position = ended(vocab=4, n_layers=1, **config), torch.tensor([[1]])
    tokens = ids(1, 4, vocab=4)
    every = torch.tensor(list(itertools.product(range(4), repeat=2)))  # all that can be drawn
    log_p, rewards, different = [], [], {}
    for thought in every:
        *_, numbers = naive_learn(quiet, tokens, Cut(thought.view(1, 1, 1, 2)), position)
        log_p.append(sum(numbers["log_prob"].values()))
        rewards.append(numbers["reward"][0, 0, 0])
        different[tuple(cut(thought).tolist())] = log_p[-1], rewards[-1]
    exact = -sum(p.exp() * reward for p, reward in different.values())
    assert_close(sum(p.exp() for p, _ in different.values()).item(), 1.0)
    drawn = torch.stack([naive_probability(quiet, tokens[0, :2], x) for x in every]).detach()
    expected = 0.0
    for i, j in itertools.product(range(16), repeat=2):
        got = think(quiet, tokens, every[[i, j]].view(1, 2, 1, 2), position)
        expected += drawn[i] * drawn[j] * learn(quiet, tokens, got).reinforce
    assert_same_gradients(quiet, expected, exact, rtol=1e-8, atol=1e-11)


def naive_probability(quiet, text, thought):
    """p of all tokens that are drawn, those behind the end included."""
    p = 1.0
    for s, token in enumerate(thought):
        logits = quiet.model.output.weight @ naive.naive_policy(quiet, text, thought[:s])
        p = p * logits.softmax(0)[token]
    return p


@pytest.mark.parametrize("window", [None, 3])
def test_speaking_equals_loops(window):
    """Catches a row that goes on with another row's thought, and an end at a wrong place."""
    quiet, tokens = ended(window, thought_len=3, seed=11, vocab=6), ids(3, 4, vocab=6)

    def thought_of(text, h_base):
        return cut(naive.likeliest_thought(quiet, text, 3))

    _, thoughts, _ = naive.assert_speech_is_naive(quiet, tokens, 6, thought_of)
    assert len((thoughts >= 0).sum(-1).unique()) > 1, "all are equally long: the test shows nothing"
