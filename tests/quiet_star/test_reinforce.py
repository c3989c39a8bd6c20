"""REINFORCE, by enumerating every thought there is."""

import itertools

import pytest
import torch
from naive import CLOSE, assert_same_gradients, gradients, ids, learn, naive_learn, think, tiny
from torch.testing import assert_close

from quiet_star import thought_advantage


@pytest.mark.parametrize(
    "N, m, reward_on", [(2, 2, "mixed"), (2, 1, "thought"), (3, 1, "mixed"), (1, 2, "mixed")]
)
def test_reinforce_is_in_expectation_the_gradient_of_the_expected_reward(N, m, reward_on):
    """Catches every bias: a baseline that includes the thought itself, a wrong sign, a log p of the
    wrong tokens."""
    config = dict(n_thoughts=N, thought_len=m, n_true=1, clamp_advantage=False, reward_on=reward_on)
    quiet = tiny(vocab=4, n_layers=1, **config)
    tokens, position = ids(1, 4, vocab=4), torch.tensor([[1]])

    # log p and reward of every thought there is, by loops
    thoughts = torch.tensor(list(itertools.product(range(4), repeat=m)))
    log_p, rewards = [], []
    for thought in thoughts:
        *_, numbers = naive_learn(quiet, tokens, thought.view(1, 1, 1, m), position)
        log_p.append(sum(numbers["log_prob"].values()))
        rewards.append(numbers["reward"][0, 0, 0])
    log_p, rewards = torch.stack(log_p), torch.tensor(rewards, dtype=torch.float64)
    p = log_p.exp().detach()
    assert_close(p.sum(), torch.tensor(1.0, dtype=torch.float64), **CLOSE)
    assert rewards.std() > 0.01

    # the expectation over N independent thoughts
    expected = 0.0
    for chosen in map(list, itertools.product(range(len(thoughts)), repeat=N)):
        got = think(quiet, tokens, thoughts[chosen].view(1, N, 1, m), position)
        expected += p[chosen].prod() * learn(quiet, tokens, got).reinforce
    exact = -(log_p.exp() * rewards).sum()
    assert_same_gradients(quiet, expected, exact, rtol=1e-8, atol=1e-11)
    for name in ("model.layers.0.attention.wq.weight", "thought_tokens.start"):
        assert gradients(exact, quiet)[name].abs().max() > 1e-5


def test_advantage_by_hand():
    """Catches a baseline over the wrong axis, one that includes the thought itself, and a clamp of
    the wrong sign."""
    reward = torch.tensor([[[1.0, 10.0], [4.0, 10.0], [7.0, 40.0]]])  # (1, N = 3, S = 2)
    for clamp, baseline, wanted in (
        (False, "others", [[-4.5, -15.0], [0.0, -15.0], [4.5, 30.0]]),
        (True, "others", [[0.0, 0.0], [0.0, 0.0], [4.5, 30.0]]),
        (False, "all", [[-3.0, -10.0], [0.0, -10.0], [3.0, 20.0]]),
        (True, "none", reward[0].tolist()),
    ):
        assert thought_advantage(reward, clamp, baseline).tolist() == [wanted]
    assert thought_advantage(reward[:, :1], False).tolist() == [[[1.0, 10.0]]], "one thought alone"
