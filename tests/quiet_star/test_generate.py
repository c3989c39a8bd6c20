"""Speaking with thoughts, from a cache or not, against thinking in loops for each token."""

import pytest
import torch
from naive import assert_speech_is_naive, count_forwards, ids, likeliest_thought, think, tiny

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
    generate_with_thoughts(quiet, tokens, new, temperature=0)
    assert len(calls) == (thought_len + 1 + 2 * (not fast)) * new

    def thought_of(text, h_base):
        return likeliest_thought(quiet, text, thought_len)

    read, _, gates = assert_speech_is_naive(quiet, tokens, new, thought_of)
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
