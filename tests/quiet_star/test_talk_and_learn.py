"""The mix and the loss against Algorithm 1 in loops."""

import itertools

import naive
import pytest
import torch
from naive import CLOSE, assert_same_gradients, gradients, ids, learn, think, tiny, uniform
from torch.testing import assert_close

from quiet_star import QuietSTaR, QuietSTaRConfig

TWO = dict(thought_len=2, n_thoughts=2, n_true=2)


def test_a_new_mixing_head_changes_nothing_and_can_learn():
    """Catches a gate that harms the model at step 0, or that is dead (no gradient out of its
    zeros)."""
    quiet, tokens = tiny(**TWO), ids(2, 8)
    torch.nn.init.zeros_(quiet.mixing_head.last.weight)
    got = think(quiet, tokens)
    h_mixed, gate = quiet.talk(got.h_base, got.h_thought)
    assert torch.equal(gate, torch.zeros(2, 2, 6, 2, dtype=torch.float64))
    assert torch.equal(h_mixed, got.h_base.expand_as(h_mixed))
    learned = learn(quiet, tokens, got)
    for i, j in itertools.product(range(6), (1, 2)):
        base = learned.nll_base[:, None, i + j - 1].expand(2, 2)
        assert_close(learned.nll_mixed[:, :, i, j - 1], base, rtol=0, atol=1e-13)
    assert gradients(learned.loss, quiet)["mixing_head.last.weight"].abs().max() > 1e-3
    assert QuietSTaR(quiet.model, QuietSTaRConfig()).mixing_head.last.weight.count_nonzero() == 0


def assert_learned_is_naive(quiet, tokens, thoughts, positions, documents=None):
    """Every number, the loss and its gradient. Returns what was learned (see `learn`)."""
    loss, reinforce, wanted = naive.naive_learn(quiet, tokens, thoughts, positions, documents)
    gain_error = 0.0
    if quiet.config.gain_head:
        gain_error = naive.naive_gain_error(quiet, tokens, positions, wanted)
    got = learn(quiet, tokens, think(quiet, tokens, thoughts, positions), documents)
    for name, entries in wanted.items():
        assert entries or not quiet.config.thought_len, name
        for index, number in entries.items():
            number = torch.as_tensor(number, dtype=torch.float64)
            assert_close(getattr(got, name)[index], number, **CLOSE, msg=f"{name} {index}")
    counted = {(b, s, j) for b, _, s, j in wanted["nll_mixed"]}
    assert {tuple(index) for index in got.valid.nonzero().tolist()} == counted
    assert {tuple(index) for index in got.valid_base.nonzero().tolist()} == set(wanted["nll_base"])
    assert_close(got.loss, loss, **CLOSE)
    assert_close(got.reinforce, torch.as_tensor(reinforce, dtype=torch.float64), **CLOSE)
    assert_close(got.gain_error, torch.as_tensor(gain_error, dtype=torch.float64), **CLOSE)
    assert_same_gradients(quiet, got.loss + got.gain_error, loss + gain_error)
    return got


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("reward_on", ["mixed", "thought"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_learn_equals_loops_with_documents_and_padding(reward_on, clamp, temperature):
    """Catches a wrong target, baseline, clamp, branch, temperature or mask, and a reward that is
    differentiated."""
    how = dict(reward_on=reward_on, clamp_advantage=clamp, log_prob_temperature=temperature)
    quiet = tiny(thought_len=2, n_thoughts=3, n_true=3, reinforce_weight=0.7, **how)
    thoughts = ids(3, 3, 5, 2, seed=3)
    where = naive.POSITIONS, naive.DOCUMENTS
    got = assert_learned_is_naive(quiet, ids(3, 9), thoughts, *where)
    assert (got.advantage < 0).any() != clamp


@pytest.mark.parametrize("gain_head", [False, True])
@pytest.mark.parametrize("a, N, m", [(1, 2, 2), (3, 1, 1), (2, 2, 4), (2, 2, 0)])
def test_learn_equals_loops_on_one_document_at_all_positions(a, N, m, gain_head):
    """Catches what shows only without documents: the default positions, one thought alone, one true
    token, and a "pause" (start, end alone) that pays for tokens that it does not have."""
    quiet = tiny(window=4, gain_head=gain_head, thought_len=m, n_thoughts=N, n_true=a)
    tokens, positions, thoughts = ids(2, 8), torch.arange(8 - a), ids(2, N, 8 - a, m, seed=3)
    got = assert_learned_is_naive(quiet, tokens, thoughts, positions.expand(2, -1))
    loss, metrics = quiet(tokens, thoughts)  # at the default positions
    assert_close(loss, got.loss + got.gain_error, **CLOSE)
    assert_close(metrics["loss"], got.loss + got.gain_error, **CLOSE)
    assert_close(metrics.get("gain_error", 0 * loss), got.gain_error, **CLOSE)
    assert_close(metrics["nll_mixed"], got.nll_mixed.mean(), **CLOSE)
    assert_close(metrics["reward"], got.reward.mean(), **CLOSE)
    if m:
        assert_close(metrics["thought_nll"], -got.log_prob.mean(), **CLOSE)
    assert not any(value.requires_grad for value in metrics.values())


ENDED = dict(fast=True, thought_kind="ended", end_id=3, vocab=5)


@pytest.mark.parametrize("kind", [{}, ENDED])
def test_sampling_and_learning_is_learning_from_the_same_thoughts_given(kind):
    """Catches a graph that is cut where sampling went step by step: gradients would miss a part.
    And another mask or other positions where thoughts end."""
    quiet = tiny(thought_len=3, n_thoughts=2, n_true=2, clamp_advantage=False, **kind)
    tokens, noise = ids(2, 8, vocab=5), uniform(2, 2, 6, 3)
    thoughts = think(quiet, tokens, noise=noise).tokens
    assert (thoughts[..., :-1] == 3).any(), "some end early"
    sampled, given = quiet(tokens, noise=noise)[0], quiet(tokens, thoughts)[0]
    assert_close(sampled, given, **CLOSE)
    assert_same_gradients(quiet, sampled, given)


def test_a_text_of_padding_alone_costs_nothing():
    """Catches a division by zero valid tokens: nan in the loss or in any gradient."""
    quiet = tiny(**TWO)
    loss, metrics = quiet(ids(1, 6), documents=torch.full((1, 6), -1))
    assert loss == 0 and all(value == 0 for value in metrics.values())
    assert all((grad == 0).all() for grad in gradients(loss, quiet).values())
