"""The mask that defines the method, by eye and by counting."""

import pytest
import torch
from naive import CLOSE, ids, start_and_end, think, thought_layout, tiny
from torch.testing import assert_close

from model import causal_mask
from quiet_star import thought_mask

#          a  b  c  a' b' c' a" b" c"
PICTURE = [
    [1, 0, 0, 0, 0, 0, 0, 0, 0],  # a
    [1, 1, 0, 0, 0, 0, 0, 0, 0],  # b
    [1, 1, 1, 0, 0, 0, 0, 0, 0],  # c
    [1, 0, 0, 1, 0, 0, 0, 0, 0],  # a'
    [1, 1, 0, 0, 1, 0, 0, 0, 0],  # b'
    [1, 1, 1, 0, 0, 1, 0, 0, 0],  # c'
    [1, 0, 0, 1, 0, 0, 1, 0, 0],  # a"
    [1, 1, 0, 0, 1, 0, 0, 1, 0],  # b"
    [1, 1, 1, 0, 0, 1, 0, 0, 1],  # c"
]


#  with a window of 2 by position ids: a 0, b 1, c 2, a' 1, b' 2, c' 3, a" 2, b" 3, c" 4
WINDOW_OF_TWO = [
    [1, 0, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0, 0, 0, 0],
    [0, 1, 1, 0, 0, 0, 0, 0, 0],
    [1, 0, 0, 1, 0, 0, 0, 0, 0],
    [0, 1, 0, 0, 1, 0, 0, 0, 0],
    [0, 0, 1, 0, 0, 1, 0, 0, 0],
    [0, 0, 0, 1, 0, 0, 1, 0, 0],
    [0, 0, 0, 0, 1, 0, 0, 1, 0],
    [0, 0, 0, 0, 0, 1, 0, 0, 1],
]


@pytest.mark.parametrize("window, wanted", [(None, PICTURE), (2, WINDOW_OF_TWO)])
def test_thought_mask_is_the_picture(window, wanted):
    """Catches a thought that sees a neighbour's, text that sees thoughts, and a window that counts
    the wrong ids."""
    layout = thought_layout(3, 2)
    assert [x.tolist() for x in layout] == [
        [0, 1, 2] * 3,
        [-1] * 3 + [0] * 6,
        [-1] * 3 + [0] * 3 + [1] * 3,
    ]
    assert thought_mask(layout, layout, window).int().tolist() == wanted


def test_thought_mask_keeps_the_thoughts_of_one_position_apart():
    """Catches a mask that compares positions only: two thoughts of one position would read each
    other."""
    layout = (
        torch.tensor([0, 0, 0, 0, 0]),
        torch.tensor([-1, 0, 1, 0, 1]),
        torch.tensor([-1, 0, 0, 1, 1]),
    )
    wanted = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 1, 0, 1]]
    assert thought_mask(layout, layout).int().tolist() == wanted


@pytest.mark.parametrize("window", [None, 4])
def test_one_packed_forward_under_the_mask_is_think(window):
    """Catches a mask that is drawn right but does not define what `think` computes (position ids,
    order, window)."""
    quiet = tiny(window, thought_len=3, n_thoughts=1, n_true=2)
    tokens, T, m, a = ids(2, 8), 6, 3, 2
    thoughts = ids(2, 1, T, m, seed=3)
    got = think(quiet, tokens, thoughts)
    embed, (start, end) = quiet.model.tok_embeddings, start_and_end(quiet)
    steps = [
        start.expand(2, T, -1),
        *(embed(thoughts[:, 0, :, s]) for s in range(m)),
        end.expand(2, T, -1),
    ]
    packed = torch.cat((embed(tokens[:, :T]), *steps, embed(tokens[:, 1 : T + 1])), dim=1)
    position, thought, step = thought_layout(T, m + 2 + a - 1)
    mask = thought_mask((position, thought, step), (position, thought, step), window)
    h = quiet.model(packed, position + 1 + step, mask).unflatten(1, (-1, T))  # (B, 1 + steps, T, C)
    assert_close(quiet.read(tokens).hidden[:, :T], h[:, 0], **CLOSE)
    assert_close(got.h_policy[:, 0], h[:, 1 : 1 + m].transpose(1, 2), **CLOSE)
    assert_close(got.h_thought[:, 0], h[:, -a:].transpose(1, 2), **CLOSE)


@pytest.mark.parametrize("window", [None, 1, 3])
def test_of_text_alone_it_is_the_transformers_own_mask(window):
    """Catches a window that is counted otherwise for text than for thoughts."""
    position = torch.arange(7)
    text = position, torch.full((7,), -1), torch.full((7,), -1)
    assert torch.equal(thought_mask(text, text, window), causal_mask(position, position, window))
