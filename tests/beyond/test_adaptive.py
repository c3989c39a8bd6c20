"""The gain head, and thinking where, and as long as, it pays: against one row and one token at a
time."""

import pytest
import torch
from naive import CLOSE, assert_speech_is_naive, count_forwards, ids, likeliest_thought, tiny
from torch.testing import assert_close

from beyond.adaptive import GainHead, says_start, think_some, worth_its_price
from quiet_star import generate_with_thoughts

ANY_LENGTH = [("any_length", 3, price) for price in (0.02, 0.15, -0.3)]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kind, m, price", [("sampled", 2, 0.03), ("sampled", 0, 0.0), *ANY_LENGTH])
def test_rows_think_where_and_as_long_as_it_pays(kind, m, price, window):
    """Against the whole text read anew for each token of each row alone. Catches a row that sees
    the thought of another, one that stops too late, and a thought that stays in the cache."""
    quiet = tiny(window, thought_kind=kind, thought_len=m, n_true=1, gain_head=True, seed=13)
    some, lengths = think_some(worth_its_price(quiet, price)), set()

    def thought_of(text, h_base):
        gains = quiet.gain_head(h_base).view(-1).tolist()
        possible = range(m + 1) if kind == "any_length" else [m]
        net = {s: gain - price * (s + 2) for s, gain in zip(possible, gains, strict=True)}
        length = max(net, key=net.get)
        lengths.add(length if net[length] > 0 else -1)
        return likeliest_thought(quiet, text, length) if net[length] > 0 else None

    assert_speech_is_naive(quiet, ids(3, 4), 8, thought_of, think=some)
    assert len(lengths) > 1, "all think alike: the test shows nothing"


def test_thinking_at_any_price_is_thinking_everywhere_and_at_none_nowhere():
    """Catches a draw that is made twice, and a pass for thoughts that nobody thinks."""
    quiet, tokens = tiny(thought_len=2, seed=11, gain_head=True), ids(2, 4)
    everywhere, above = (
        generate_with_thoughts(quiet, tokens, 6, 0, think=think)
        for think in (None, think_some(worth_its_price(quiet, float("-inf"))))
    )
    for ours, wanted in zip(above, everywhere, strict=True):
        assert_close(ours, wanted, **CLOSE)
    calls, nowhere = count_forwards(quiet), worth_its_price(quiet, float("inf"))
    read, thoughts, gates = generate_with_thoughts(quiet, tokens, 6, 0, think=think_some(nowhere))
    assert len(calls) == 6 and (thoughts == -1).all() and (gates == 0).all()
    assert torch.equal(read, quiet.model.generate(tokens, 6, 0))


def test_without_a_gain_head_a_price_is_refused_and_a_start_can_be_said():
    """Catches a price that nobody looks at or that no gain head knows of, a new gain head that
    expects something, and log(0)."""
    assert GainHead(16)(torch.ones(3, 16)).tolist() == [0, 0, 0]
    quiet, h = tiny(), torch.randn(5, 16, dtype=torch.float64)
    with pytest.raises(ValueError, match="gain_head"):
        worth_its_price(quiet, 0.1)
    p = quiet.model.logits(h).softmax(-1)[:, 3]
    middle = p.median().item()
    wanted = [4 if x > middle else -1 for x in p.tolist()]
    assert says_start(quiet, 3, middle * (1 + 1e-9))(h).tolist() == wanted
    assert [says_start(quiet, 3, p)(h).tolist() for p in (0, 1)] == [[4] * 5, [-1] * 5]
    quiet = tiny(thought_kind="any_length", thought_len=2, n_true=1, gain_head=True)
    with pytest.raises(ValueError, match="thought_len"):
        worth_its_price(quiet.with_settings(thought_len=3), 0.0)
