"""Settings, refusals, and the start and end of a thought."""

import pytest
import torch
from naive import ids, think, tiny
from torch.testing import assert_close

from beyond.kinds import ThinkingConfig
from quiet_star import ThoughtTokens

BAD = dict(thought_len=-1, n_thoughts=0, n_true=0, reward_on="x", baseline="x")
BAD |= dict(thought_temperature=-1.0, log_prob_temperature=0.0, embedding_scale=0.0)


@pytest.mark.parametrize("field, value", BAD.items())
def test_bad_settings_are_refused_by_name(field, value):
    """Catches a typo in a config that trains for hours as something else."""
    with pytest.raises(ValueError, match=field):
        ThinkingConfig(**{field: value})


@pytest.mark.parametrize("shape", [(2, 2, 6, 3), (2, 2, 5, 2), (3, 2, 6, 2), (2, 6, 2)])
def test_thoughts_of_a_wrong_shape_are_refused(shape):
    """Catches thoughts that broadcast silently over the wrong axis; (2, 2, 6, 2) is right here."""
    quiet = tiny(thought_len=2, n_true=2, n_thoughts=2)
    think(quiet, ids(2, 8), ids(2, 2, 6, 2))
    with pytest.raises(ValueError, match="thoughts"):
        think(quiet, ids(2, 8), ids(*shape))


@pytest.mark.parametrize("length, positions", [(8, [0, -1]), (8, [0, 8]), (2, None), (3, None)])
def test_positions_out_of_the_text_are_refused(length, positions):
    """Catches -1 taken for the last token, and a mean over nothing (n_true = 3 wants 4 tokens)."""
    quiet = tiny(n_true=3)
    think(quiet, ids(1, 4))
    with pytest.raises(ValueError, match="positions"):
        think(quiet, ids(1, length), positions=positions and torch.tensor([positions]))


def test_start_and_end_move_faster_by_the_scale():
    """Catches a speed-up by scaled gradients, which Adam undoes."""
    tokens = ThoughtTokens(6, scale=50.0).double()
    before = tokens()[0].detach().clone()
    (tokens()[0].sum() + tokens()[1].sum()).backward()
    torch.optim.Adam(tokens.parameters(), lr=1e-3).step()
    wanted = torch.full((6,), 50 * 1e-3, dtype=torch.float64)
    assert_close(before - tokens()[0], wanted, rtol=1e-4, atol=0)


def test_with_settings_shares_weights_and_leaves_the_original_alone():
    """Catches a copy of the weights (stale after the next step) and settings that leak back into
    training."""
    quiet = tiny(thought_len=2, n_true=2, n_thoughts=2)
    changed = {"thought_temperature": 0.0, "n_thoughts": 1}
    other = quiet.with_settings(**changed)
    assert (quiet.config.thought_temperature, quiet.config.n_thoughts) == (1.0, 2)
    assert vars(other.config) == vars(quiet.config) | changed
    assert all(x is y for x, y in zip(quiet.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match="n_true"):
        quiet.with_settings(n_true=0)
