"""The mask that defines the method, by eye and by counting."""

import pytest
from naive import thought_layout

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
