"""Speaking with thoughts, from a cache or not, against thinking in loops for each token."""

import itertools

import naive
import pytest
import torch
from naive import CLOSE, count_forwards, ids, think, tiny
from torch.testing import assert_close

from model import sample
from quiet_star import generate_with_thoughts


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("thought_len, opened", [(0, 1), (1, 1), (3, 1), (3, 0.05), (1, 0)])
def test_speaking_equals_thinking_in_loops(thought_len, opened, window, fast):
    """Catches a cache off by one, thoughts that stay in it, and the gate or token of another step.
    From a cache a token takes m + 1 forward passes, else m + 3."""
    quiet, new = tiny(window, thought_len=thought_len, seed=11, fast=fast), 5
    with torch.no_grad():
        quiet.mixing_head.last.weight *= opened
    tokens, calls = ids(2, 4), count_forwards(quiet)
    read, thoughts, gates = generate_with_thoughts(quiet, tokens, new, temperature=0)
    assert len(calls) == (thought_len + 1 + 2 * (not fast)) * new
    assert read.shape == (2, 4 + new) and thoughts.shape == (2, new, thought_len)
    assert gates.shape == (2, new) and torch.equal(read[:, :4], tokens)
    with torch.no_grad():
        for b, k in itertools.product(range(2), range(new)):
            text = read[b, : 4 + k]
            thought = naive.likeliest_thought(quiet, text, thought_len)
            h_base = quiet.model(text[None])[0, -1]
            h_thought = naive.naive_thought(quiet, text, 3 + k, thought)[1][0]
            w = naive.naive_gate(quiet, h_base, h_thought)
            word = (quiet.model.output.weight @ ((1 - w) * h_base + w * h_thought)).argmax()
            assert thoughts[b, k].tolist() == thought.tolist()
            assert_close(gates[b, k], w, **CLOSE)
            assert read[b, 4 + k] == word
    assert len(read[:, 4:].unique()) > 2 and (gates.std() > 0.01 or opened < 1)


@pytest.mark.parametrize("fast", [False, True])
def test_sampling_with_thoughts_is_drawing_from_each_whole_text_anew(fast):
    """At temperature 1, of three rows. Catches rows that share a draw, or draws of the thoughts'
    generator."""
    quiet, tokens, new = tiny(thought_len=2, seed=11, fast=fast), ids(3, 4), 12
    with torch.no_grad():
        quiet.mixing_head.last.weight *= 0.1
    one, other = (torch.Generator().manual_seed(5) for _ in range(2))
    read, *_ = generate_with_thoughts(quiet, tokens, new, 1.0, 0.8, generator=one)
    quiet = quiet.with_settings(thought_temperature=0.8, n_thoughts=1)
    for at in range(4, 4 + new):
        of_thoughts, last = torch.rand(3, 1, 1, 2, generator=other), torch.full((3, 1), at - 1)
        thoughts = think(quiet, read[:, :at], positions=last, noise=of_thoughts)
        h_mixed, _ = quiet.talk(thoughts.h_base, thoughts.h_thought)
        noise = torch.rand(3, generator=other)
        drawn = sample(quiet.model.logits(h_mixed[:, 0, 0, 0]), noise=noise)
        assert drawn.tolist() == read[:, at].tolist()
