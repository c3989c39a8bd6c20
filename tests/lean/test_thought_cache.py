"""The fast attention of parallel thoughts is the mask that defines it."""

import pytest
from naive import CLOSE, gradients, ids, tiny, uniform
from torch.testing import assert_close


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("thought_len, n_true, n_thoughts", [(3, 2, 2), (1, 1, 3), (0, 3, 2)])
def test_the_fast_form_equals_the_explicit_mask(thought_len, n_true, n_thoughts, window):
    """Catches any difference between the fast attention and the mask that defines it, backward pass included."""
    config = dict(
        thought_len=thought_len, n_true=n_true, n_thoughts=n_thoughts, reward_on="thought"
    )
    quiet, tokens = tiny(window, **config), ids(2, 8)
    noise = uniform(2, n_thoughts, 8 - n_true, thought_len)
    losses = [
        quiet.with_settings(explicit_mask=explicit)(tokens, noise=noise)[0]
        for explicit in (False, True)
    ]
    assert_close(*losses, **CLOSE)
    fast, explicit = (gradients(loss, quiet) for loss in losses)
    for name in fast:
        assert_close(fast[name], explicit[name], **CLOSE, msg=name)
        assert fast[name].abs().max() > 0, name
