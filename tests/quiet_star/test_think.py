"""Thinking in parallel against thinking at one position at a time."""

import itertools

import pytest
import torch
from naive import (
    CLOSE,
    VOCAB,
    assert_thoughts_are_the_naive_ones,
    ids,
    naive_policy,
    think,
    tiny,
    uniform,
)
from torch.testing import assert_close

from model import sample


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("n_thoughts", [1, 3])
@pytest.mark.parametrize("n_true", [1, 3])
@pytest.mark.parametrize("thought_len", [0, 1, 2, 4])
def test_parallel_thoughts_equal_one_at_a_time(thought_len, n_true, n_thoughts, window):
    """Catches leaks between thoughts, restarting position ids, look-ahead off by one, mixed-up
    axes: nearly all."""
    quiet = tiny(window, thought_len=thought_len, n_true=n_true, n_thoughts=n_thoughts)
    tokens, S = ids(2, 7), 7 - n_true
    with torch.no_grad():
        sampled = think(quiet, tokens, noise=uniform(2, n_thoughts, S, thought_len))
        given = think(quiet, tokens, ids(2, n_thoughts, S, thought_len, seed=3))
        for got in (sampled, given):
            assert got.positions.tolist() == [list(range(S))] * 2
            assert got.h_policy.shape == (2, n_thoughts, S, thought_len, 16)
            assert got.h_thought.shape == (2, n_thoughts, S, n_true, 16)
            assert_thoughts_are_the_naive_ones(quiet, tokens, got)
        assert torch.equal(given.tokens, ids(2, n_thoughts, S, thought_len, seed=3))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("thought_len", [0, 2])
def test_chosen_positions_equal_one_at_a_time(thought_len, window):
    """Catches code that takes the s-th position for position s, or one text's positions for all
    texts'."""
    quiet = tiny(window, thought_len=thought_len, n_true=3, n_thoughts=2)
    tokens = ids(3, 8)
    for positions in (
        [[0, 3, 6], [5, 1, 2], [4, 4, 0]],
        [[7, 0], [2, 6], [3, 7]],
    ):  # any order, up to the last token
        positions = torch.tensor(positions)
        shape = 3, 2, positions.shape[1], thought_len
        with torch.no_grad():
            for got in (
                think(quiet, tokens, positions=positions, noise=uniform(*shape)),
                think(quiet, tokens, ids(*shape, seed=3), positions=positions),
            ):
                assert torch.equal(got.positions, positions)
                assert_thoughts_are_the_naive_ones(quiet, tokens, got)


@pytest.mark.parametrize("temperature", [1.0, 1.7, 0.0])
def test_sampled_tokens_are_those_that_the_noise_dictates(temperature):
    """Catches noise of another thought or step, an ignored temperature, and "greedy" thoughts that
    are samples."""
    quiet = tiny(thought_len=3, n_thoughts=2, n_true=1, thought_temperature=temperature)
    tokens, noise = ids(2, 6), uniform(2, 2, 5, 3)
    with torch.no_grad():
        got = think(quiet, tokens, noise=noise).tokens
        for b, n, i in itertools.product(range(2), range(2), range(5)):
            thought = tokens.new_empty(0)
            for s in range(3):
                logits = quiet.model.output.weight @ naive_policy(
                    quiet, tokens[b, : i + 1], thought
                )
                new = (
                    logits.argmax()
                    if temperature == 0
                    else sample(logits, temperature, noise[b, n, i, s])
                )
                thought = torch.cat((thought, new[None]))
            assert got[b, n, i].tolist() == thought.tolist()
    assert (got[:, 0] == got[:, 1]).all() == (temperature == 0)
    assert len(got.unique()) > 3


def test_without_noise_the_thoughts_of_a_position_differ():
    """Catches one draw shared by all N thoughts: no difference, no advantage, nothing learned."""
    torch.manual_seed(0)
    got = think(tiny(thought_len=3, n_thoughts=2), ids(2, 8)).tokens
    assert (got[:, 0] != got[:, 1]).any(-1).float().mean() > 0.5


def test_later_text_changes_nothing_before_it():
    """Catches a thought that peeks at the text it is to predict."""
    quiet = tiny(thought_len=2, n_thoughts=2, n_true=3)
    tokens, noise, k = ids(1, 9), uniform(1, 2, 6, 2), 3
    changed = tokens.clone()
    changed[:, k + 1 :] = (changed[:, k + 1 :] + 1) % VOCAB  # every token after x_k
    with torch.no_grad():
        one, two = think(quiet, tokens, noise=noise), think(quiet, changed, noise=noise)
    assert torch.equal(one.tokens[:, :, : k + 1], two.tokens[:, :, : k + 1])
    h_text = [quiet.read(x).hidden[:, : k + 1] for x in (tokens, changed)]
    assert_close(*h_text, **CLOSE)
    assert_close(one.h_policy[:, :, : k + 1], two.h_policy[:, :, : k + 1], **CLOSE)
    for i, j in itertools.product(range(6), range(3)):  # depth j has read x_0 .. x_{i+j}
        difference = (one.h_thought[0, :, i, j] - two.h_thought[0, :, i, j]).abs().max()
        assert difference < 1e-9 if i + j <= k else difference > 1e-3


def test_a_thought_changes_nothing_but_itself():
    """Catches thoughts that leak into the text, into a neighbour, or into another thought of the
    same position."""
    quiet = tiny(thought_len=3, n_thoughts=3, n_true=2)
    tokens, thoughts = ids(2, 8), ids(2, 3, 6, 3, seed=3)
    changed = thoughts.clone()
    changed[0, 1, 2] = (changed[0, 1, 2] + 1) % VOCAB
    with torch.no_grad():
        one, two = think(quiet, tokens, thoughts), think(quiet, tokens, changed)
    assert_close(one.h_base, two.h_base, **CLOSE)
    other = torch.ones(2, 3, 6, dtype=torch.bool)
    other[0, 1, 2] = False
    assert_close(one.h_thought[other], two.h_thought[other], **CLOSE)
    assert_close(one.h_policy[other], two.h_policy[other], **CLOSE)
    assert (one.h_thought - two.h_thought)[0, 1, 2].abs().amax(-1).min() > 1e-3
    assert_close(
        one.h_policy[0, 1, 2, 0], two.h_policy[0, 1, 2, 0], **CLOSE
    )  # about to say t_1: has not read it
    assert (one.h_policy - two.h_policy)[0, 1, 2, 1:].abs().amax(-1).min() > 1e-3
