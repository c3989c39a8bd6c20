"""Where to think: hard positions, and the gain head in training and generation."""

import itertools

import pytest
import torch
from naive import CLOSE, count_forwards, gradients, ids, learn, naive_gain, tiny, uniform
from torch.testing import assert_close

from beyond.adaptive import GainHead, says_start, some_think, worth_its_price
from beyond.positions import hard_positions, start_positions, start_token
from lib.tokenizer import CharTokenizer
from quiet_star import generate_with_thoughts


def pays(quiet, nats):
    """Thinking only where a whole thought is expected to gain more nats than so many."""
    return some_think(worth_its_price(quiet, nats / (quiet.config.thought_len + 2)))


def test_the_gain_head_looks_on_and_changes_nothing():
    """Catches a model that learns to be predictable, and a head that learns from anything but the measured gains."""
    quiet = tiny(thought_len=2, n_thoughts=2, n_true=2)
    tokens = ids(2, 8)
    learned = learn(quiet, tokens, quiet.think(tokens))
    model, head = gradients(learned.loss, quiet), gradients(learned.gain_error, quiet)
    for name in model:
        assert (model if name.startswith("gain_head.") else head)[name].count_nonzero() == 0, name
    assert (
        head["gain_head.inner.weight"].abs().max() > 1e-3
        and model["model.output.weight"].abs().max() > 1e-3
    )
    assert GainHead(16)(torch.ones(3, 16)).tolist() == [0, 0, 0], "nothing is expected at step 0"


@pytest.mark.parametrize(
    "n_true, share, count", [(1, 0.25, 2), (3, 0.5, 4), (2, 0.01, 1), (2, 1.0, 9)]
)
def test_hard_positions_are_those_of_largest_entropy(n_true, share, count):
    """One position at a time: entropy by its definition; where n_true tokens follow; and in the text's order."""
    quiet = tiny(n_true=n_true)
    tokens = ids(2, 9 + n_true, seed=5)
    found = hard_positions(quiet, quiet.read_text(tokens).hidden, share)
    assert found.shape == (2, count) and (found.diff() > 0).all()
    for b in range(2):
        entropies = {}
        for i in range(9):
            p = (
                quiet.model.logits(quiet.model(tokens[b : b + 1, : i + 1]))[0, -1]
                .detach()
                .softmax(-1)
            )
            entropies[i] = -sum(float(x * x.log()) for x in p)
        assert sorted(sorted(entropies, key=entropies.get)[-count:]) == found[b].tolist()


def test_hard_positions_can_be_drawn_in_proportion_to_their_entropy():
    """One of each text: how often each position comes, of 20,000 draws."""
    quiet = tiny(n_true=1)
    with torch.no_grad():
        quiet.model.output.weight[:4] *= 8  # some predictions are sure
    h_text = quiet.read_text(ids(1, 7, seed=5)).hidden
    p = quiet.model.logits(h_text[0, :6]).detach().softmax(-1)
    wanted = -(p * p.log()).sum(-1)
    found = hard_positions(quiet, h_text.expand(20000, -1, -1), 1 / 6, uniform(20000, 6))
    share = found.flatten().bincount(minlength=6) / 20000
    assert wanted.max() > 1.5 * wanted.min()
    assert_close(share.double(), wanted / wanted.sum(), atol=0.015, rtol=0)


@pytest.mark.parametrize("thought_len, window", [(0, None), (2, None), (3, 3)])
def test_thinking_where_it_pays_is_thinking_where_the_gain_head_expects_more(thought_len, window):
    """Against the whole text read anew for each token of each row alone; rows think at different times. Counts the
    tokens read: of the thoughts, only those of rows that think."""
    quiet, tokens, new, read_tokens = (
        tiny(window, thought_len=thought_len, seed=11),
        ids(3, 4),
        8,
        [],
    )
    quiet.model.register_forward_hook(
        lambda _, inputs, output: read_tokens.append(output[..., 0].numel())
    )
    lengths = torch.tensor([4, 2, 3])
    read, thoughts, gates = generate_with_thoughts(
        quiet, tokens, new, 0, lengths=lengths, think=pays(quiet, 0.1)
    )
    counted, thinking = sum(read_tokens), 0
    greedy = quiet.with_settings(thought_temperature=0.0, n_thoughts=1, n_true=1)
    with torch.no_grad():
        for b, at in itertools.product(range(3), range(2, 4 + new)):
            h = quiet.model(read[b : b + 1, :at])[0, -1]
            thought, gate = [-1] * thought_len, h.new_zeros(())
            if naive_gain(quiet, h) > 0.1:
                thinking += 1
                found = greedy.think(read[b : b + 1, :at], positions=torch.tensor([[at - 1]]))
                thought = found.tokens.flatten().tolist()
                h, gate = (x.flatten(0, 3)[0] for x in greedy.talk(found.h_base, found.h_thought))
            assert thoughts[b, at - 2].tolist() == thought
            assert_close(gates[b, at - 2], gate, **CLOSE)
            word = tokens[b, at] if at < lengths[b] else (quiet.model.output.weight @ h).argmax()
            assert read[b, at] == word
    assert 3 < thinking < 3 * (new + 2) - 3
    assert counted == 3 * (2 + new + 1) + thinking * (thought_len + 2)


def test_thinking_above_the_least_gain_is_thinking_everywhere_and_above_the_most_nowhere():
    quiet, tokens = tiny(thought_len=2, seed=11), ids(2, 4)
    everywhere = generate_with_thoughts(
        quiet, tokens, 6, generator=torch.Generator().manual_seed(3)
    )
    above = generate_with_thoughts(
        quiet,
        tokens,
        6,
        generator=torch.Generator().manual_seed(3),
        think=pays(quiet, float("-inf")),
    )
    for ours, wanted in zip(above, everywhere, strict=True):
        assert_close(ours, wanted, **CLOSE)
    calls = count_forwards(quiet)
    read, thoughts, gates = generate_with_thoughts(
        quiet, tokens, 6, 0, think=pays(quiet, float("inf"))
    )
    assert len(calls) == 6 and (thoughts == -1).all() and (gates == 0).all()
    assert torch.equal(read, quiet.model.generate(tokens, 6, 0))


@pytest.mark.parametrize("think_above", [None, 0.1])
def test_a_given_text_is_read_as_it_would_be_written(think_above):
    """From `begin` on, against thinking at all its positions in parallel; the text stays as it is."""
    quiet, tokens, begin = tiny(thought_len=2, seed=11), ids(2, 12), 3
    think = None if think_above is None else pays(quiet, think_above)
    read, thoughts, gates = generate_with_thoughts(quiet, tokens, 1, 0, think=think, begin=begin)
    assert torch.equal(read[:, :12], tokens) and thoughts.shape == (2, 10, 2)
    greedy = quiet.with_settings(thought_temperature=0.0, n_thoughts=1, n_true=1)
    with torch.no_grad():
        found = greedy.think(read, positions=torch.arange(begin - 1, 12).expand(2, -1))
        _, gate = greedy.talk(found.h_base, found.h_thought)
        thinks = quiet.gain_head(found.h_base[:, 0, :, 0]) > (
            -torch.inf if think_above is None else think_above
        )
    assert thinks.any() and thinks.all() == (think_above is None)
    assert torch.equal(thoughts, found.tokens[:, 0].masked_fill(~thinks[..., None], -1))
    assert_close(gates, gate[:, 0, :, 0] * thinks, **CLOSE)
    for wrong, lengths in ((0, None), (13, None), (9, torch.tensor([12, 8]))):
        with pytest.raises(ValueError, match="begin must be"):
            generate_with_thoughts(quiet, tokens, 1, begin=wrong, lengths=lengths)


def test_thinking_where_it_pays_stops_when_all_rows_have_ended():
    quiet, tokens = tiny(thought_len=2, seed=11), ids(2, 4)
    read, thoughts, gates = generate_with_thoughts(
        quiet, tokens, 8, 0, think=pays(quiet, 0.1), stop=lambda new: len(new) > 2
    )
    assert read.shape == (2, 7) and thoughts.shape == (2, 3, 2) and gates.shape == (2, 3)
    whole = generate_with_thoughts(quiet, tokens, 8, 0, think=pays(quiet, 0.1))[0]
    assert torch.equal(read, whole[:, :7])


def test_start_positions_are_those_where_the_model_is_likeliest_to_say_the_start():
    """One position at a time; and in generation, where it would say it with more than a probability."""
    quiet, token = tiny(n_true=2), 3
    tokens = ids(2, 11, seed=5)
    likeliest = start_positions(
        quiet, ids(2, 11, seed=5), quiet.read_text(tokens).hidden, 0.1, token
    )
    tokens[:, int(likeliest.max()) + 1] = token  # here the text says it
    found = start_positions(quiet, tokens, quiet.read_text(tokens).hidden, 0.35, token)
    assert found.shape == (2, 3) and (found.diff() > 0).all()
    for b in range(2):
        states = [quiet.model(tokens[b : b + 1, : i + 1])[0, -1] for i in range(9)]
        p = [quiet.model.logits(h).softmax(-1)[token].item() for h in states]
        left_out = [i for i in range(9) if tokens[b, i + 1] != token]
        assert sorted(sorted(left_out, key=p.__getitem__)[-3:]) == found[b].tolist()
        middle = sorted(p)[4]
        says = says_start(quiet, token, middle * (1 + 1e-9))(torch.stack(states))
        assert says.tolist() == [4 if x > middle else -1 for x in p]


def test_a_start_of_several_tokens_is_refused():
    tokenizer = CharTokenizer("ab")
    assert start_token(tokenizer, "b") == 1
    with pytest.raises(ValueError, match="one token, and 'ab' is 2"):
        start_token(tokenizer, "ab")
