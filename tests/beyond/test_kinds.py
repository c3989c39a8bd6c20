"""Thoughts without tokens, and other credit: against plain forwards and formulas by hand."""

import itertools

import pytest
import torch
from naive import CLOSE, assert_same_gradients, ids, learn, start_and_end, think, tiny, uniform
from test_fast import assert_the_same_step
from torch.testing import assert_close

from quiet_star import QuietSTaRConfig, generate_with_thoughts

VECTORS = dict(n_thoughts=1, reinforce_weight=0.0, n_true=2, thought_len=3)
THREE = dict(n_true=2, n_thoughts=3, thought_len=2)


def naive_vectors(quiet, text, i, n_true):
    """What is read and predicted at position i of a text (L,), by plain causal forwards: h_policy,
    h_thought."""
    table, head = quiet.model.tok_embeddings.weight, quiet.model.output.weight
    start, end = start_and_end(quiet)
    read = [*table[text[: i + 1]], start]
    for _ in range(quiet.config.thought_len):
        h = quiet.model(torch.stack(read)[None])[0, -1]
        mean = sum(p * row for p, row in zip((head @ h).softmax(0), table, strict=True))
        read.append({"soft": mean, "latent": h}[quiet.config.thought_kind])
    h = quiet.model(torch.stack([*read, end, *table[text[i + 1 : i + n_true]]])[None])[0]
    return h[i + 1 : i + 1 + quiet.config.thought_len], h[-n_true:]


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("kind", ["soft", "latent"])
def test_thoughts_of_vectors_equal_one_at_a_time_with_their_gradient(kind, window):
    """Catches a vector that is not the right one, or that no gradient flows through."""
    quiet, tokens = tiny(window, thought_kind=kind, **VECTORS), ids(2, 6)
    got, ours, wanted = think(quiet, tokens), 0.0, 0.0
    weight = torch.randn(16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for b, i in itertools.product(range(2), range(4)):
        h_policy, h_thought = naive_vectors(quiet, tokens[b], i, 2)
        assert_close(got.h_policy[b, 0, i], h_policy, **CLOSE)
        assert_close(got.h_thought[b, 0, i], h_thought, **CLOSE)
        ours += (got.h_thought[b, 0, i] @ weight).sum()
        wanted += (h_thought @ weight).sum()
    assert_same_gradients(quiet, ours, wanted)


@pytest.mark.parametrize("kind", ["soft", "latent"])
def test_thoughts_of_vectors_learn_in_parts_and_speak(kind):
    """Catches a gradient that does not flow through the whole thought, and speech by tokens."""
    quiet, tokens = tiny(thought_kind=kind, how=dict(at_once=2), **VECTORS), ids(2, 8)
    plain = tiny(thought_kind=kind, **VECTORS)
    assert_the_same_step(plain, quiet, tokens, noise=uniform(2, 1, 6, 3))
    assert quiet.thought_tokens.start.grad.abs().max() > 1e-4
    read, _, _ = generate_with_thoughts(quiet, tokens, 3, 0)
    with torch.no_grad():
        for text, at in itertools.product(read, range(8, 11)):
            h_base = quiet.model(text[None, :at])[0, -1]
            h_thought = naive_vectors(quiet, text[:at], at - 1, 1)[1][0]
            assert text[at] == quiet.model.logits(quiet.talk(h_base, h_thought)[0]).argmax()


SOFT = dict(thought_kind="soft", **VECTORS)


def test_settings_are_obeyed_or_refused():
    """Catches a setting that with_settings loses, and given thoughts that are not thought."""
    quiet, tokens = tiny(credit="posterior", **THREE), ids(2, 6)
    other = quiet.with_settings(credit="star")
    got = learn(other, tokens, think(other, tokens, ids(2, 3, 4, 2, seed=3)))
    assert set(got.advantage.flatten().tolist()) <= {0.0, 1.0}
    with pytest.raises(ValueError, match="given"):
        think(tiny(thought_kind="latent", **VECTORS), ids(2, 6), ids(2, 1, 4, 3))
    with pytest.raises(TypeError, match="mixing"):  # the paper's settings have no such field
        QuietSTaRConfig(mixing="none")


CHANGES = [({}, {"credit": "star"}), (dict(fast=True), {"credit": "star"})]
CHANGES += [(THREE, {"thought_kind": "soft"}), (THREE, {"gain_head": True})]
CHANGES += [(dict(thought_kind="any_length"), {"n_true": 2})]
CHANGES += [(SOFT, {"n_thoughts": 2}), ({**SOFT, "reinforce_weight": 1.0}, {"n_thoughts": 1})]
CHANGES += [({**SOFT, "n_thoughts": 2}, {"n_thoughts": 2})]
CHANGES += [(dict(thought_kind="any_length", credit="star"), {"credit": "star"})]


@pytest.mark.parametrize("settings, changes", CHANGES)
def test_what_makes_no_sense_or_cannot_change_is_refused_by_name(settings, changes):
    """Catches a setting that is taken and not obeyed, by with_settings or from the start."""
    with pytest.raises(ValueError, match=next(iter(changes))):
        tiny(**settings).with_settings(**changes)


def test_star_keeps_thoughts_after_which_all_true_tokens_are_the_likeliest():
    """Catches a filter by one true token of several, or by one of another document."""
    quiet = tiny(credit="star", **THREE)
    tokens, documents = ids(4, 9), torch.tensor([[0] * 5 + [1] * 4] * 4)
    given, counted = ids(4, 3, 7, 2, seed=3), 0

    def logits(thoughts):
        return quiet.model.logits(quiet.talk(thoughts.h_base, thoughts.h_thought)[0])

    with torch.no_grad():  # make some tokens what would be said before them
        likeliest = logits(think(quiet, tokens, given)).argmax(-1)[:, 0]
        tokens[:, 8], tokens[:2, 4] = likeliest[:, 6, 1], likeliest[:2, 3, 0]
    thoughts = think(quiet, tokens, given)
    right, got = logits(thoughts).argmax(-1), learn(quiet, tokens, thoughts, documents)
    for b, n, i in itertools.product(range(4), range(3), range(7)):
        depths = [j for j in (1, 2) if documents[b, i] == documents[b, i + j]]
        all_right = all(right[b, n, i, j - 1] == tokens[b, i + j] for j in depths)
        assert got.advantage[b, n, i] == float(bool(depths) and all_right), (b, n, i)
        counted += bool(depths) and all_right
    assert 0 < counted < 60


@pytest.mark.parametrize("credit", ["star", "posterior"])
def test_credit_is_what_reinforce_weighs_and_the_rest_stays(credit):
    """Catches other credit that changes more than REINFORCE, and a posterior over another axis."""
    tokens, thoughts = ids(2, 6), ids(2, 3, 4, 2, seed=3)
    quiet, plain = tiny(credit=credit, **THREE), tiny(**THREE)
    got, wanted = (learn(x, tokens, think(x, tokens, thoughts)) for x in (quiet, plain))
    assert_close(got.reinforce, -(got.advantage * got.log_prob.sum(-1)).mean(), **CLOSE)
    assert_close(got.loss - got.reinforce, wanted.loss - wanted.reinforce, **CLOSE)
    if credit == "posterior":
        p = (-got.nll_mixed.detach().sum(-1)).exp()  # (B, N, S)
        by_hand = [3 * p[:, n] / (p[:, 0] + p[:, 1] + p[:, 2]) - 1 for n in range(3)]
        assert_close(got.advantage, torch.stack(by_hand, dim=1), atol=1e-12, rtol=0)


def test_without_mixing_the_thought_stands_alone():
    """Catches a setting that with_settings loses."""
    quiet, tokens = tiny(mixing="none", n_true=2, n_thoughts=2), ids(2, 8)
    thoughts = think(quiet, tokens)
    for form in (quiet, quiet.with_settings(n_thoughts=1)):
        h, gate = form.talk(thoughts.h_base, thoughts.h_thought)
        assert torch.equal(h, thoughts.h_thought) and (gate == 1).all()
