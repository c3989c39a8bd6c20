"""Asking a model: scores and completions by their definitions; thinking aloud is generating with thoughts."""

import pytest
import torch
from byte_tokenizer import write_byte_tokenizer
from naive import tiny

from beyond.adaptive import some_think
from lib.asking import candidate, complete, score, think_aloud
from lib.tokenizer import load_tokenizer
from quiet_star import generate_with_thoughts


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(write_byte_tokenizer(tmp_path))


def quiet(**config):
    model = tiny(vocab=258, thought_len=2, n_true=1, **config)
    return model.float().eval()


@pytest.mark.parametrize("thinking", [False, True])
@torch.no_grad()
def test_a_score_is_the_sum_of_log_p_one_token_at_a_time(tokenizer, thinking):
    model, pairs = quiet(), [("ab", "cd"), ("a longer one", "!"), ("x", " yz")]
    greedy = model.with_settings(n_thoughts=1, thought_temperature=0.0)
    for (context, text), (got, is_greedy) in zip(
        pairs, score(candidate(model, thinking), tokenizer, pairs), strict=True
    ):
        log_p, likeliest = 0.0, True
        for n in range(len(context), len(context + text)):
            ids = torch.tensor([tokenizer.encode((context + text)[: n + 1])])
            h = model.model(ids[:, :-1])[0, -1]
            if thinking:
                thought = greedy.think(ids[:, :-1], positions=torch.tensor([[n - 1]]))
                h = greedy.talk(thought.h_base, thought.h_thought)[0].flatten()
            scores = model.model.logits(h).log_softmax(-1)
            log_p, likeliest = (
                log_p + float(scores[ids[0, -1]]),
                likeliest and scores.argmax() == ids[0, -1],
            )
        assert got == pytest.approx(log_p, abs=1e-4) and is_greedy == likeliest


def test_a_completion_ends_before_the_first_of_its_stops(tokenizer):
    model = candidate(quiet(), True)
    ((whole, thought),) = complete(model, tokenizer, ["ab"], new=20)
    assert len(thought) and len(whole) > 5
    begins = len(whole) - len(whole.lstrip())
    for stop in ([whole[begins + 4 : begins + 6]], [whole[begins + 5], whole[begins + 3]]):
        ((text, _),) = complete(model, tokenizer, ["ab"], stop, 20)
        assert text == whole[: min(whole.index(s, begins) for s in stop)]
    both = complete(model, tokenizer, ["ab", "abcdefgh"], new=20)
    assert both[0][0] == whole and both[1] == complete(model, tokenizer, ["abcdefgh"], new=20)[0]


@pytest.mark.parametrize("temperature, of_thoughts", [(0.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("some", [False, True])
def test_thinking_aloud_is_generating_with_thoughts(tokenizer, temperature, of_thoughts, some):
    model, asked = quiet(), []

    def how_long(h):  # one token of a thought, all of it, or none
        asked.append(h)
        return torch.where(
            h[:, 0] > h.mean(), 1 + (model.config.thought_len - 1) * (h[:, 1] > 0), -1
        )

    how_long = how_long if some else None

    options = temperature, of_thoughts
    said = list(think_aloud(model, tokenizer, "abc", 12, *options, seed=3, how_long=how_long))
    prompt, generator = torch.tensor([tokenizer.encode("abc")]), torch.Generator().manual_seed(3)
    tokens, thoughts, gates = generate_with_thoughts(
        model, prompt, 12, *options, generator, think=some_think(how_long)
    )
    ids = tokens[0, 3:].tolist()
    ends = next((n for n, i in enumerate(ids) if i in tokenizer.ends), len(ids))
    assert [token.id for token in said] == ids[:ends] and ends > 3
    assert [token.text for token in said] == tokenizer.words(ids[:ends])
    for token, thought, gate in zip(said, thoughts[0].tolist(), gates[0].tolist(), strict=False):
        assert token.gate == pytest.approx(gate, abs=1e-6)
        assert token.thought == (
            None if -1 in thought else "".join(tokenizer.words([x for x in thought if x >= 0]))
        )
    if some:
        assert {token.thought is None for token in said} == {False, True}


def test_it_can_speak_without_thoughts(tokenizer):
    model = quiet()
    said = list(think_aloud(model, tokenizer, "abc", 12, thinking=False))
    plain = model.model.generate(torch.tensor([tokenizer.encode("abc")]), 12, temperature=0)[
        0, 3:
    ].tolist()
    assert [token.id for token in said] == plain[: len(said)] and {
        token.thought for token in said
    } == {None}
    with pytest.raises(ValueError, match="is nothing"):
        next(think_aloud(model, tokenizer, ""))
