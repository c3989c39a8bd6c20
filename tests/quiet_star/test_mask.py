"""The mask that defines the method, by eye."""

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


def test_thought_mask_is_the_picture():
    """Catches a thought that sees a neighbour's, and text that sees thoughts."""
    layout = thought_layout(3, 2)
    thought, step = [-1] * 3 + [0] * 6, [-1] * 3 + [0] * 3 + [1] * 3
    assert [x.tolist() for x in layout] == [[0, 1, 2] * 3, thought, step]
    assert thought_mask(layout, layout).int().tolist() == PICTURE
