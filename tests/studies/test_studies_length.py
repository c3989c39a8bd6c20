"""How long to think: choices, costs and their judges, by hand and by loops."""

import numpy as np
import torch
from naive import ids, naive_gate, naive_thought, tiny

from lib.tokenizer import CharTokenizer
from studies.length import PRICES, beside_one_length, choose, judge, measure_lengths, ways_to_choose
from studies.tables import questions_in


def test_by_price_the_choice_gains_most_beyond_it():
    """Catches start and end that cost nothing, and a base prediction that is not a choice."""
    gain = np.array([[[0, 0.1, 0.5, 0.75], [0, 0.0, 0.1, 0.3], [0, 0.9, 0.9, 0.9]]])
    right = np.array([[[0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0]]], bool)
    answers = np.ones((1, 3), bool)
    for price, wanted, tokens in ((0.1, [3, 0, 1], 6 / 3), (0.3, [0, 0, 1], 2 / 3)):
        choice = choose(gain, price)
        assert choice.tolist() == [wanted]
        accuracy = np.mean([right[0, t, k] for t, k in enumerate(wanted)])
        assert judge(right, choice, answers) == {"tokens": tokens, "accuracy": accuracy}


def test_a_thought_ends_at_its_dash_and_who_is_told_the_digits_expects_their_mean_gain():
    """Catches a dash that counts as a token of the thought, a length where none pays, and the true
    gain of each position in place of the mean."""
    rng, dash = np.random.default_rng(0), 7
    gain, expected = rng.normal(size=(2, 1, 4, 8))
    expected[0, 3] = [0, *[-1] * 7]
    thoughts = np.array([[[1, 2, dash, 1, dash, 1], [dash] * 6, [1] * 6, [dash] * 6]])
    digits = np.array([[2, 2, 0, 1]])
    ways = ways_to_choose(gain, expected, thoughts, digits, dash)
    assert ways["own end"](-9).tolist() == [[3, 1, 7, 1]]
    assert ways["own end"](0)[0, 3] == 0
    told = ways["told the digits"](0)[0]
    assert told[0] == told[1] == gain[0, :2].mean(0).argmax() and told[2] == 0
    assert told[3] == gain[0, 3].argmax()


def test_beside_the_best_single_length_prices_are_of_the_other_half():
    """Catches a price that is chosen where it is judged, and a gain over nothing."""
    n = len(PRICES)

    def points(accuracies, tokens):
        return [{"accuracy": a, "tokens": x} for a, x in zip(accuracies, tokens, strict=True)]

    at_last = [0.25]  # at the last price nobody thinks
    poor = points([0.5] * (n - 1) + at_last, [9.0] * n)
    half = {f"{m} or none": poor for m in range(1, 6)}
    half["6 or none"] = points([0.75] * 3 + [0.5] * (n - 4) + at_last, [8.0] * n)
    half["any length"] = points([0.75, 0.745, 0.7] + [0.3] * (n - 4) + at_last, [5.0] * n)
    half["oracle"] = points([0.2] * (n - 1) + at_last, [1.0] * n)
    other = {name: list(x) for name, x in half.items()}
    other["any length"] = points([0.1, 0.65] + [0.9] * (n - 2), [3.0, 2.0] + [1.0] * (n - 2))
    assert beside_one_length(half, other, "any length") == {"gain": 0.8, "tokens": 0.25}
    assert beside_one_length(half, other, "oracle") == {"gain": None, "tokens": None}


def test_the_question_before_an_answer():
    """Catches steps, "=" or the line before that count as digits of the question."""
    tokenizer = CharTokenizer("0123456789+-*=—\n")
    text = "9\n374=4\n51=—56—6\n"
    spans = np.array([tokenizer.encode(text)])
    answers = np.zeros((1, len(text) - 1), bool)
    answers[0, [text.index("=4"), text.index("=—")]] = True
    found = list(questions_in(spans, answers, tokenizer))
    assert found == [(0, text.index("=4"), "374"), (0, text.index("=—"), "51")]


@torch.no_grad()
def test_what_is_measured_is_one_thought_at_a_time():
    """Catches a prefix that is read out one token off, and a gain against another prediction."""
    settings = dict(thought_kind="any_length", thought_len=2, n_thoughts=2, gain_head=True)
    quiet, spans, among = tiny(**settings).float(), ids(2, 6).numpy(), torch.tensor([1, 3, 4])
    right, gain, gains_expected, longest = measure_lengths(quiet, spans, among)
    greedy = quiet.with_settings(n_thoughts=1, thought_temperature=0.0)
    thoughts = greedy.predict(torch.from_numpy(spans)).thoughts[:, 0]
    assert np.array_equal(longest, thoughts)
    head = quiet.model.output.weight
    for w in range(2):
        text = torch.from_numpy(spans[w])
        for t in range(5):
            h_base = quiet.model(text[None, : t + 1])[0, -1]
            expected = np.concatenate(([0], quiet.gain_head(h_base)))
            np.testing.assert_allclose(gains_expected[w, t], expected, atol=1e-5)
            for choice in range(4):
                h = h_base
                if choice:
                    h = naive_thought(quiet, text, t, thoughts[w, t, : choice - 1])[1][0]
                    h = h_base + naive_gate(quiet, h_base, h) * (h - h_base)
                log_p = [(head @ x).log_softmax(-1)[text[t + 1]] for x in (h, h_base)]
                assert np.isclose(gain[w, t, choice], log_p[0] - log_p[1], atol=1e-5)
                assert right[w, t, choice] == (among[(head[among] @ h).argmax()] == text[t + 1])
