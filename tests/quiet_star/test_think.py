"""Thinking in parallel against thinking at one position at a time."""

import itertools

import pytest
import torch
from naive import CLOSE, ids, naive_policy, naive_thought, think, tiny, uniform
from torch.testing import assert_close

from model import sample


def assert_thoughts_are_the_naive_ones(quiet, tokens, got):
    """h_text, h_base, h_policy, h_thought of every text, thought, position and depth."""
    L, N = tokens.shape[1], got.tokens.shape[1]
    for b, text in enumerate(tokens):
        h_text = quiet.model(text[None])[0]
        assert_close(got.text.hidden[b], h_text, **CLOSE)
        for s, i in enumerate(got.positions[b].tolist()):
            depths = min(quiet.config.n_true, L - i)  # the rest would read beyond the text
            assert_close(got.h_base[b, 0, s, :depths], h_text[i : i + depths], **CLOSE)
            for n in range(N):
                h_policy, h_thought = naive_thought(quiet, text, i, got.tokens[b, n, s])
                assert len(h_thought) == depths
                assert_close(got.h_policy[b, n, s], h_policy, **CLOSE)
                assert_close(got.h_thought[b, n, s, :depths], h_thought, **CLOSE)


SIZES = [(m, a, N) for m in (0, 1, 2, 4) for a in (1, 3) for N in (1, 3)]
CHOSEN = [[0, 3, 6], [5, 1, 2], [4, 4, 0]], [[7, 0], [2, 6], [3, 7]]  # up to the last token


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(
    "m, a, N, positions",
    [(*sizes, None) for sizes in SIZES] + [(m, 3, 2, at) for m in (0, 2) for at in CHOSEN],
)
def test_parallel_thoughts_equal_one_at_a_time(m, a, N, positions, window):
    """Catches leaks between thoughts or from later text, restarting position ids, look-ahead off by
    one, the s-th position taken for position s, one text's positions taken for all texts'."""
    quiet, tokens = tiny(window, thought_len=m, n_true=a, n_thoughts=N), ids(3, 8)
    wanted = torch.arange(8 - a).expand(3, -1) if positions is None else torch.tensor(positions)
    shape = (3, N, wanted.shape[1], m)
    chosen = None if positions is None else wanted
    with torch.no_grad():
        sampled = think(quiet, tokens, positions=chosen, noise=uniform(*shape))
        given = think(quiet, tokens, ids(*shape, seed=3), chosen)
    for got in (sampled, given):
        assert torch.equal(got.positions, wanted)
        assert got.h_policy.shape == (*shape, 16) and got.h_thought.shape == (*shape[:3], a, 16)
        with torch.no_grad():
            assert_thoughts_are_the_naive_ones(quiet, tokens, got)
    assert torch.equal(given.tokens, ids(*shape, seed=3))


@pytest.mark.parametrize("temperature", [1.0, 1.7, 0.0])
def test_sampled_tokens_are_those_that_the_noise_dictates(temperature):
    """Catches noise of another thought or step, an ignored temperature, and "greedy" thoughts that
    are samples."""
    quiet = tiny(thought_len=3, n_thoughts=2, n_true=1, thought_temperature=temperature)
    tokens, noise, output = ids(2, 6), uniform(2, 2, 5, 3), quiet.model.output.weight
    with torch.no_grad():
        got = think(quiet, tokens, noise=noise).tokens
        for b, n, i in itertools.product(range(2), range(2), range(5)):
            thought = tokens.new_empty(0)
            for s in range(3):
                logits = output @ naive_policy(quiet, tokens[b, : i + 1], thought)
                new = sample(logits, temperature, noise[b, n, i, s])
                thought = torch.cat((thought, new[None]))
            assert got[b, n, i].tolist() == thought.tolist()
    assert (got[:, 0] == got[:, 1]).all() == (temperature == 0)
    assert len(got.unique()) > 3


def test_without_noise_the_thoughts_of_a_position_differ():
    """Catches one draw shared by all N thoughts: no difference, no advantage, nothing learned."""
    torch.manual_seed(0)
    got = think(tiny(thought_len=3, n_thoughts=2), ids(2, 8)).tokens
    assert (got[:, 0] != got[:, 1]).any(-1).float().mean() > 0.5
