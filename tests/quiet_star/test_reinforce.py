"""REINFORCE, by enumerating every thought there is."""

import itertools

import pytest
import torch
from naive import CLOSE, gradients, ids, learn, naive_learn, think, tiny
from torch.testing import assert_close

from quiet_star import thought_advantage


def enumerated(quiet, tokens, i, m):
    """For every thought of m tokens at position i: the thoughts (V^m, m), log p through the naive
    forward (V^m,), and the reward of each as a fixed number."""
    thoughts = torch.tensor(list(itertools.product(range(quiet.model.config.vocab_size), repeat=m)))
    positions = torch.tensor([[i]])
    log_p, rewards = [], []
    for thought in thoughts:
        fields, *_ = naive_learn(quiet, tokens, thought.view(1, 1, 1, m), positions, None)
        log_p.append(sum(fields["log_prob"].values()))
        rewards.append(fields["reward"][0, 0, 0])
    return thoughts, torch.stack(log_p), torch.tensor(rewards, dtype=torch.float64)


def expected_reinforce(quiet, tokens, i, thoughts, log_p, N):
    """The exact expectation of Learned.reinforce over N independent thoughts; its weights are not
    differentiated."""
    p, total = log_p.detach().exp(), 0.0
    for chosen in itertools.product(range(len(thoughts)), repeat=N):
        chosen = list(chosen)
        given = think(quiet, tokens, thoughts[chosen].view(1, N, 1, -1), torch.tensor([[i]]))
        total = total + p[chosen].prod() * learn(quiet, tokens, given).reinforce
    return total


@pytest.mark.parametrize(
    "N, m, reward_on", [(2, 2, "mixed"), (2, 1, "thought"), (3, 1, "mixed"), (1, 2, "mixed")]
)
def test_reinforce_is_in_expectation_the_gradient_of_the_expected_reward(N, m, reward_on):
    """Catches every bias: a baseline that includes the thought itself, a wrong sign, a log p of the
    wrong tokens."""
    config = dict(n_thoughts=N, thought_len=m, n_true=1, clamp_advantage=False, reward_on=reward_on)
    quiet = tiny(vocab=4, n_layers=1, **config)
    tokens, i = ids(1, 4, vocab=4), 1
    thoughts, log_p, rewards = enumerated(quiet, tokens, i, m)
    assert_close(log_p.exp().sum(), torch.tensor(1.0, dtype=torch.float64), **CLOSE)
    assert rewards.std() > 0.01
    ours = gradients(expected_reinforce(quiet, tokens, i, thoughts, log_p, N), quiet)
    exact = gradients((log_p.exp() * rewards).sum(), quiet)
    for name in exact:
        assert_close(ours[name], -exact[name], rtol=1e-8, atol=1e-11, msg=name)
    assert exact["model.layers.0.attention.wq.weight"].abs().max() > 1e-5
    assert exact["thought_tokens.start"].abs().max() > 1e-5


def test_clamped_reinforce_is_its_own_formula_and_another_direction():
    """Catches a clamp that keeps the wrong side, or that is silently off."""
    quiet = tiny(vocab=4, n_layers=1, n_thoughts=2, thought_len=2, n_true=1, clamp_advantage=True)
    tokens, i = ids(1, 4, vocab=4), 1
    thoughts, log_p, rewards = enumerated(quiet, tokens, i, 2)
    ours = gradients(expected_reinforce(quiet, tokens, i, thoughts, log_p, 2), quiet)
    p, formula = log_p.detach().exp(), 0.0
    for t, u in itertools.product(
        range(16), repeat=2
    ):  # thought t earns by how much it beats an independent u
        formula = formula - p[t] * p[u] * max(0.0, float(rewards[t] - rewards[u])) * log_p[t]
    formula, exact = gradients(formula, quiet), gradients(-(log_p.exp() * rewards).sum(), quiet)
    for name in formula:
        assert_close(ours[name], formula[name], rtol=1e-8, atol=1e-11, msg=name)
    a, b = (torch.cat([grad.flatten() for grad in grads.values()]) for grads in (ours, exact))
    assert torch.cosine_similarity(a, b, dim=0) < 0.999


def test_equal_rewards_give_no_policy_gradient():
    """Catches a baseline over other positions (whose difficulty would leak in) or none at all."""
    quiet = tiny(thought_len=2, n_thoughts=2, n_true=2, clamp_advantage=False)
    tokens = ids(2, 8)
    thoughts = ids(2, 1, 6, 2, seed=3).expand(-1, 2, -1, -1)  # both of a position say the same
    learned = learn(quiet, tokens, think(quiet, tokens, thoughts))
    assert learned.reward.std() > 0.01
    assert learned.advantage.abs().max() < 1e-13
    for grad in gradients(learned.reinforce, quiet).values():
        assert grad.abs().max() < 1e-13


def test_advantage_by_hand():
    """Catches a baseline over the wrong axis, one that includes the thought itself, and a clamp of
    the wrong sign."""
    reward = torch.tensor([[[1.0, 10.0], [4.0, 10.0], [7.0, 40.0]]])  # (1, N = 3, S = 2)
    assert thought_advantage(reward, False).tolist() == [[[-4.5, -15.0], [0.0, -15.0], [4.5, 30.0]]]
    assert thought_advantage(reward, True).tolist() == [[[0.0, 0.0], [0.0, 0.0], [4.5, 30.0]]]
    assert thought_advantage(reward[:, :1], False).tolist() == [[[1.0, 10.0]]]
    assert thought_advantage(reward, False, "all").tolist() == [
        [[-3.0, -10.0], [0.0, -10.0], [3.0, 20.0]]
    ]
    assert thought_advantage(reward, True, "none").tolist() == reward.tolist()


@pytest.mark.parametrize("reward_on", ["mixed", "thought"])
def test_reinforce_does_not_reach_the_mixing_head(reward_on):
    """Catches a reward that is differentiated: the gate would be pushed to make thoughts look
    good."""
    quiet = tiny(thought_len=2, n_thoughts=2, n_true=2, clamp_advantage=False, reward_on=reward_on)
    tokens = ids(2, 8)
    learned = learn(quiet, tokens, think(quiet, tokens, ids(2, 2, 6, 2, seed=3)))
    assert not learned.reward.requires_grad and not learned.advantage.requires_grad
    grads = gradients(learned.reinforce, quiet)
    assert all((grad == 0).all() for name, grad in grads.items() if name.startswith("mixing_head"))
    assert (
        grads["thought_tokens.end"].count_nonzero() == 0
    )  # no thought token is sampled after reading `end`
    assert grads["thought_tokens.start"].abs().max() > 0
