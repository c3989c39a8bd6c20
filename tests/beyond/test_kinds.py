"""Thoughts without tokens, and other credit: against plain forwards and formulas by hand."""

import math

import pytest
import torch
from naive import CLOSE, gradients, ids, learn, start_and_end, think, tiny
from torch.testing import assert_close

from beyond.adaptive import WithGainHead
from beyond.any_length import AnyLength
from beyond.kinds import SoftThoughts
from fast import FastQuietSTaR
from quiet_star import QuietSTaR, generate_with_thoughts, thought_advantage

VECTORS = dict(n_thoughts=1, reinforce_weight=0.0, n_true=2, thought_len=3)


def naive_vectors(quiet, text, i, n_true):
    """What is read and predicted at position i of a text (L,), by plain causal forwards: h_policy,
    h_thought."""
    table, head, (start, end) = (
        quiet.model.tok_embeddings.weight,
        quiet.model.output.weight,
        start_and_end(quiet),
    )
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
    quiet, tokens = tiny(window, thought_kind=kind, **VECTORS), ids(2, 6)
    got, ours, wanted = think(quiet, tokens), 0.0, 0.0
    weight = torch.randn(16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for b in range(2):
        for i in range(4):
            h_policy, h_thought = naive_vectors(quiet, tokens[b], i, 2)
            assert_close(got.h_policy[b, 0, i], h_policy, **CLOSE)
            assert_close(got.h_thought[b, 0, i], h_thought, **CLOSE)
            ours, wanted = (
                ours + (got.h_thought[b, 0, i] @ weight).sum(),
                wanted + (h_thought @ weight).sum(),
            )
    ours, wanted = gradients(ours, quiet), gradients(wanted, quiet)
    for name in wanted:
        assert_close(ours[name], wanted[name], **CLOSE, msg=name)


@pytest.mark.parametrize("kind", ["soft", "latent"])
def test_thoughts_of_vectors_learn_in_parts_and_speak(kind):
    quiet, tokens = tiny(thought_kind=kind, how=dict(at_once=2), **VECTORS), ids(2, 8)
    plain = tiny(thought_kind=kind, **VECTORS)
    wanted = gradients(plain(tokens)[0], plain)
    quiet(tokens)[0].backward()
    for name, p in quiet.named_parameters():
        assert_close(
            torch.zeros_like(p) if p.grad is None else p.grad, wanted[name], **CLOSE, msg=name
        )
    assert wanted["thought_tokens.start"].abs().max() > 1e-4, (
        "a gradient flows through the whole thought"
    )
    read, _, _ = generate_with_thoughts(quiet, tokens, 3, 0)
    with torch.no_grad():
        for b in range(2):
            for at in range(8, 11):
                text = read[b, :at]
                h_base, h = (
                    quiet.model(text[None])[0, -1],
                    naive_vectors(quiet, text, at - 1, 1)[1][0],
                )
                assert read[b, at] == quiet.model.logits(quiet.talk(h_base, h)[0]).argmax()


def test_what_makes_no_sense_is_refused_in_one_line():
    for wrong in (dict(reinforce_weight=1.0), dict(n_thoughts=2)):
        with pytest.raises(ValueError, match="n_thoughts=1"):
            tiny(thought_kind="soft", **VECTORS | wrong)
    with pytest.raises(ValueError, match="given"):
        think(tiny(thought_kind="latent", **VECTORS), ids(2, 6), ids(2, 1, 4, 3))
    with pytest.raises(ValueError, match="credit"):
        tiny(thought_kind="any_length", credit="star")


def test_star_keeps_thoughts_after_which_all_true_tokens_are_the_likeliest():
    quiet = tiny(credit="star", n_true=2, n_thoughts=3, thought_len=2)
    tokens, documents = ids(4, 9), torch.tensor([[0] * 5 + [1] * 4] * 4)
    given = ids(4, 3, 7, 2, seed=3)
    with torch.no_grad():  # make some tokens what would be said before them
        thoughts = think(quiet, tokens, given)
        likeliest = quiet.model.logits(quiet.talk(thoughts.h_base, thoughts.h_thought)[0]).argmax(
            -1
        )[:, 0]
        tokens[:, 8], tokens[:2, 4] = likeliest[:, 6, 1], likeliest[:2, 3, 0]
    thoughts = think(quiet, tokens, given)
    logits = quiet.model.logits(quiet.talk(thoughts.h_base, thoughts.h_thought)[0])
    got = learn(quiet, tokens, thoughts, documents)
    counted = 0
    for b in range(4):
        for n in range(3):
            for i in range(7):
                depths = [j for j in (1, 2) if documents[b, i] == documents[b, i + j]]
                right = [logits[b, n, i, j - 1].argmax() == tokens[b, i + j] for j in depths]
                assert got.advantage[b, n, i] == float(bool(right) and all(right)), (b, n, i)
                counted += bool(right) and all(right)
    assert 0 < counted < 60


def test_posterior_credit_by_hand():
    quiet = tiny(credit="posterior", n_true=2, n_thoughts=3, thought_len=2)
    tokens = ids(2, 6)
    got = learn(quiet, tokens, think(quiet, tokens, ids(2, 3, 4, 2, seed=3)))
    for b in range(2):
        for i in range(4):
            p = [math.exp(-float(got.nll_mixed[b, n, i].detach().sum())) for n in range(3)]
            for n in range(3):
                assert float(got.advantage[b, n, i]) == pytest.approx(
                    3 * p[n] / sum(p) - 1, abs=1e-12
                )


def test_credit_is_what_reinforce_weighs_and_the_rest_stays():
    """star and posterior change REINFORCE alone."""
    tokens, thoughts = ids(2, 6), ids(2, 3, 4, 2, seed=3)
    for credit in ("star", "posterior"):
        quiet = tiny(credit=credit, n_true=2, n_thoughts=3, thought_len=2)
        got = learn(quiet, tokens, think(quiet, tokens, thoughts))
        plain = tiny(n_true=2, n_thoughts=3, thought_len=2)
        wanted = learn(plain, tokens, think(plain, tokens, thoughts))
        assert_close(got.reinforce, -(got.advantage * got.log_prob.sum(-1)).mean(), **CLOSE)
        assert_close(got.loss - got.reinforce, wanted.loss - wanted.reinforce, **CLOSE)


def test_without_mixing_the_thought_stands_alone():
    quiet, tokens = tiny(mixing="none", n_true=2, n_thoughts=2), ids(2, 8)
    thoughts = think(quiet, tokens)
    h, gate = quiet.talk(thoughts.h_base, thoughts.h_thought)
    assert torch.equal(h, thoughts.h_thought) and (gate == 1).all()
    other = quiet.with_settings(n_thoughts=1)
    assert torch.equal(other.talk(thoughts.h_base, thoughts.h_thought)[0], thoughts.h_thought)


def test_any_function_of_the_position_alone_cancels_from_the_advantage():
    """RLP compares a thought with an exponential average of the model, without a thought. With the
    baseline "others" that, or anything else that is the same for all thoughts of a position, makes
    no difference."""
    reward, of_position = (
        torch.randn(2, 4, 5, dtype=torch.float64),
        100 * torch.randn(2, 1, 5, dtype=torch.float64),
    )
    for clamp in (False, True):
        with_it = thought_advantage(reward - of_position, clamp)
        assert_close(with_it, thought_advantage(reward, clamp), atol=1e-12, rtol=0)
    assert not torch.allclose(thought_advantage(reward - of_position, False, "none"), reward)


def test_settings_are_obeyed_or_refused():
    """Catches with_settings that changes a number which nobody looks at."""
    quiet = tiny(credit="posterior", n_thoughts=3)
    tokens, thoughts = ids(2, 6), ids(2, 3, 5, 4, seed=3)
    other = quiet.with_settings(credit="star")
    got = learn(other, tokens, think(other, tokens, thoughts))
    assert set(got.advantage.flatten().tolist()) <= {0.0, 1.0}
    with pytest.raises(ValueError, match="thought_kind"):
        quiet.with_settings(thought_kind="soft")
    with pytest.raises(ValueError, match="gain_head"):
        quiet.with_settings(gain_head=True)
    with pytest.raises(ValueError, match="n_thoughts"):
        tiny(thought_kind="soft", **VECTORS).with_settings(n_thoughts=2)


def test_the_class_is_chosen_by_the_settings():
    """Catches a setting of the paper's that loses the form of quiet_star.py."""
    assert type(tiny()) is QuietSTaR and type(tiny(fast=True)) is FastQuietSTaR
    for kind, wanted in (("soft", SoftThoughts), ("any_length", AnyLength)):
        more = VECTORS if kind == "soft" else {}
        quiet = tiny(thought_kind=kind, **more)
        assert type(quiet) is wanted and type(quiet.with_settings(thought_len=1)) is wanted
    assert isinstance(tiny(thought_kind="any_length", gain_head=True), WithGainHead)
