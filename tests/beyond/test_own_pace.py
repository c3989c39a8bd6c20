"""Each row at its own pace: the same as all rows together, in fewer tokens."""

import pytest
import torch
from naive import CLOSE, ids, tiny
from torch.testing import assert_close

from beyond.adaptive import some_think, worth_its_price
from beyond.own_pace import generate_at_own_pace
from quiet_star import generate_with_thoughts


def both(quiet, tokens, new, price, **options):
    """(tokens, thoughts, gates) of rows that wait for one another, and at their own pace; and the shapes that are read
    in the second."""
    how_long, shapes = worth_its_price(quiet, price), []
    wanted = generate_with_thoughts(quiet, tokens, new, 0, think=some_think(how_long), **options)
    with torch.no_grad():
        hook = quiet.model.register_forward_hook(
            lambda _, inputs, output: shapes.append(tuple(output.shape[:2]))
        )
        found = generate_at_own_pace(quiet, tokens, new, how_long, 0, **options)
        hook.remove()
    return wanted, found, shapes


@pytest.mark.parametrize(
    "any_length, window, thought_len",
    [(False, None, 0), (False, 3, 2), (True, None, 3), (True, 4, 2)],
)
@pytest.mark.parametrize("price", [-0.3, 0.02, 0.1, float("inf")])
def test_it_is_generation_with_rows_that_wait(any_length, window, thought_len, price):
    """Rows of different prompts; and each reads what it must, and nothing for others."""
    kind = "any_length" if any_length else "sampled"
    quiet, tokens = tiny(window, thought_len=thought_len, thought_kind=kind, seed=11), ids(3, 4)
    wanted, found, shapes = both(quiet, tokens, 8, price, lengths=torch.tensor([4, 2, 3]))
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
    assert_close(found[2], wanted[2], **CLOSE)
    thinks = found[1][..., 0] != -1 if thought_len else found[2] != 0
    thought_tokens = (found[1] >= 0).sum() + 2 * thinks.sum()
    assert sum(rows * length for rows, length in shapes) == 3 * (2 + 9) + thought_tokens
    assert len(shapes) == 10 + int(((found[1] >= 0).sum(-1) + 2 * thinks).sum(1).max()), (
        "no row waits for another"
    )


def test_some_rows_think_and_some_do_not():
    quiet = tiny(thought_len=2, seed=11)
    _, (_, thoughts, _), _ = both(quiet, ids(3, 4), 8, 0.1 / 4)
    assert 0.1 < (thoughts[..., 0] >= 0).float().mean() < 0.9


def test_a_row_that_has_ended_repeats_its_last_token():
    quiet, tokens, lengths = tiny(thought_len=2, seed=11), ids(3, 4), torch.tensor([4, 2, 3])
    wanted, found, _ = both(quiet, tokens, 8, 0.02, lengths=lengths)
    last = {row.tolist()[n + 1] for row, n in zip(wanted[0][:2], lengths, strict=False)}

    def stop(new):
        return len(new) > 1 and new[-1] in last

    _, found, _ = both(quiet, tokens, 8, 0.02, lengths=lengths, stop=stop)
    for row, whole, n in zip(found[0], wanted[0], lengths.tolist(), strict=True):
        end = next((i for i in range(n + 1, 13) if stop(whole[n:i].tolist())), 12)
        assert torch.equal(row[:end], whole[:end]) and (row[end:] == row[end - 1]).all()
    assert found[0].shape[1] == found[1].shape[1] + 2 == found[2].shape[1] + 2


def test_a_given_text_is_read_as_it_would_be_written():
    quiet, tokens = tiny(thought_len=2, seed=11), ids(2, 12)
    wanted, found, _ = both(quiet, tokens, 1, 0.02, begin=3)
    for x, y in zip(found, wanted, strict=True):
        assert_close(x, y, **CLOSE)
    with pytest.raises(ValueError, match="begin from 1 to the shortest prompt's 12"):
        generate_at_own_pace(quiet, tokens, 1, worth_its_price(quiet, 0.0), begin=13)
