"""Ways to choose where training thinks: one position at a time."""

import pytest
import torch
from naive import ids, tiny, uniform
from torch.testing import assert_close

from beyond.positions import rank_in_document, think_where


def test_wrong_positions_are_those_where_the_likeliest_token_is_not_the_true_one():
    quiet, tokens, chance = tiny(n_true=2), ids(2, 22, seed=5), uniform(2, 20)
    with torch.no_grad():  # make it right at some places
        h = quiet.read_text(tokens).hidden
        tokens[:, 3:20:2] = quiet.model.logits(h).argmax(-1)[:, 2:19:2]
    h = quiet.read_text(tokens).hidden
    for share in (0.2, 0.9):
        found = think_where(quiet, "wrong", share, tokens, chance)(h)
        assert found.shape == (2, round(20 * share)) and (found.diff() > 0).all()
        for b in range(2):
            said = [
                int(quiet.model.logits(quiet.model(tokens[b : b + 1, : i + 1]))[0, -1].argmax())
                for i in range(20)
            ]
            wrong = [i for i in range(20) if said[i] != tokens[b, i + 1]]
            assert 4 < len(wrong) < 18
            wanted = sorted(range(20), key=lambda i: (i in wrong, chance[b, i]))[-found.shape[1] :]
            assert sorted(wanted) == found[b].tolist()


def test_each_document_gets_one_position_before_any_gets_two():
    end, tokens = 0, torch.tensor([[5, 6, 0, 7, 0, 8, 9, 8, 9, 0, 4], [1] * 11])
    chance = uniform(
        2, 10
    )  # documents of 3, 2, 5 tokens (and one that begins where nobody thinks); one document
    rank = rank_in_document(tokens, chance, end)
    documents = [[(0, 3), (3, 5), (5, 10)], [(0, 10)]]
    for b, parts in enumerate(documents):
        for first, last in parts:
            places = sorted(range(first, last), key=lambda i: -float(chance[b, i]))
            assert [int(rank[b, i]) for i in places] == list(range(last - first))
    found = think_where(tiny(), "each_document", 0.3, tokens, chance, document_end=end)(None)
    assert [sum(first <= i < last for i in found[0].tolist()) for first, last in documents[0]] == [
        1,
        1,
        1,
    ]
    assert found[1].tolist() == sorted(chance[1].topk(3).indices.tolist())
    with pytest.raises(ValueError, match="names the token that ends a document"):
        rank_in_document(tokens, chance, None)


def test_aloud_positions_are_drawn_in_proportion_to_the_probability_of_the_start():
    """One of each text: how often each position comes, of 20,000 draws."""
    quiet, tokens, token = tiny(n_true=1), ids(1, 7, seed=5), 3
    h = quiet.read_text(tokens).hidden
    p = quiet.model.logits(h[0, :6]).detach().softmax(-1)[:, token]
    where = think_where(quiet, "aloud", 1 / 6, tokens, uniform(20000, 6), start=token)
    share = where(h.expand(20000, -1, -1)).flatten().bincount(minlength=6) / 20000
    assert p.max() > 1.5 * p.min()
    assert_close(share.double(), p / p.sum(), atol=0.015, rtol=0)


def test_random_positions_and_all():
    chance = uniform(3, 10)
    found = think_where(tiny(), "random", 0.4, ids(3, 11), chance)(None)
    assert found.tolist() == [sorted(row.topk(4).indices.tolist()) for row in chance]
    assert think_where(tiny(), "all", 0.4, ids(3, 11), chance) is None
