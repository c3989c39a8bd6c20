"""Where training thinks, if not everywhere."""

import pytest
import torch
from naive import ids, tiny, uniform
from torch.testing import assert_close

from beyond.positions import one_token, think_where
from lib.tokenizer import CharTokenizer


def probabilities(quiet, text):
    """What the model predicts after each token of a text: (L, V), one forward pass for each."""
    rows = [quiet.model(text[None, : i + 1])[0, -1] for i in range(len(text))]
    return torch.stack([quiet.model.logits(h).detach().softmax(-1) for h in rows])


@pytest.mark.parametrize("at", ["hard", "aloud"])
def test_positions_are_drawn_in_proportion_to_their_weight(at):
    """Catches a draw of the highest, or of a position that has too few true tokens after it: how
    often each position comes, of 20,000 draws of one."""
    quiet, tokens, token = tiny(n_true=2), ids(1, 8, seed=5), 3
    with torch.no_grad():
        quiet.model.output.weight[:4] *= 4  # some predictions are sure
    p = probabilities(quiet, tokens[0])[:6]
    weight = p[:, token] if at == "aloud" else -(p * p.log()).sum(-1)
    positions = think_where(quiet, at, 1 / 6, tokens, uniform(20000, 6), start=token)
    drawn = positions(quiet.read(tokens).hidden.expand(20000, -1, -1))
    share = drawn.flatten().bincount(minlength=6) / 20000
    assert weight.max() > 1.5 * weight.min()
    assert_close(share.double(), weight / weight.sum(), atol=0.015, rtol=0)


def test_start_is_where_the_model_is_likeliest_to_say_it_and_the_text_does_not():
    """Catches a thought where the text spells its steps out, and positions out of order."""
    quiet, token = tiny(n_true=2), 3
    tokens = ids(2, 11, seed=5)
    tokens[0, 4] = token  # here the text says it
    chosen = think_where(quiet, "start", 0.35, tokens, None, start=token)(quiet.read(tokens).hidden)
    assert chosen.shape == (2, 3) and (chosen.diff() > 0).all()
    for text, row in zip(tokens, chosen.tolist(), strict=True):
        p = probabilities(quiet, text)[:9, token].tolist()
        may_think = [i for i in range(9) if text[i + 1] != token]
        assert sorted(sorted(may_think, key=p.__getitem__)[-3:]) == row


def test_random_positions_and_all():
    """Catches a share of the wrong number, and the same positions in every text."""
    chance, quiet = uniform(3, 10), tiny()
    hidden = quiet.read(ids(3, 11)).hidden
    chosen = think_where(quiet, "random", 0.4, ids(3, 11), chance)(hidden)
    assert chosen.tolist() == [sorted(row.topk(4).indices.tolist()) for row in chance]
    assert think_where(quiet, "all", 0.4, ids(3, 11), chance) is None


def test_a_start_of_several_tokens_is_refused():
    """Catches the first token of a start_text taken for all of it."""
    tokenizer = CharTokenizer("ab")
    assert one_token(tokenizer, "b", "start_text") == 1
    with pytest.raises(ValueError, match="start_text"):
        one_token(tokenizer, "ab", "start_text")
