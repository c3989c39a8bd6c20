"""The mask that defines the method, by eye and by counting."""

import pytest
import torch
from naive import thought_layout

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
    thought, step = [-1] * 3 + [0] * 6, [-1] * 3 + [0] * 3 + [1] * 3
    assert [x.tolist() for x in layout] == [[0, 1, 2] * 3, thought, step]
    assert thought_mask(layout, layout, window).int().tolist() == wanted


def test_thought_mask_keeps_the_thoughts_of_one_position_apart():
    """Catches a mask that compares positions only: two thoughts of one position would read each
    other."""
    layout = torch.tensor([[0] * 5, [-1, 0, 1, 0, 1], [-1, 0, 0, 1, 1]])
    wanted = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 1, 0, 1]]
    assert thought_mask(layout, layout).int().tolist() == wanted


@pytest.mark.parametrize("window", [None, 1, 3])
def test_of_text_alone_it_is_the_transformers_own_mask(window):
    """Catches a window that is counted otherwise for text than for thoughts."""
    position = torch.arange(7)
    text = position, torch.full((7,), -1), torch.full((7,), -1)
    assert torch.equal(thought_mask(text, text, window), causal_mask(position, position, window))
