"""How long to think: choices, costs and their judges, by hand and by loops."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from naive import ids, naive_gate, naive_thought, tiny

from lib.tokenizer import CharTokenizer
from studies.astray import spoken
from studies.length import (
    at,
    best,
    cheapest,
    curve,
    digits,
    expected_online,
    fit_online,
    measure_lengths,
    shuffled,
    stop_online,
)


def test_the_best_length_is_that_which_gains_most_beyond_its_price():
    gain = np.array([[0.1, 0.5, 0.75], [0.0, 0.1, 0.3], [0.9, 0.9, 0.9]])
    assert best(gain, 0.1, range(3)).tolist() == [2, -1, 0]
    assert best(gain, 0.3, range(3)).tolist() == [-1, -1, 0]
    assert best(gain[:, 2:], 0.1, [2]).tolist() == [2, -1, 2]


def test_what_is_predicted_at_lengths_and_what_it_costs():
    found = SimpleNamespace(
        right=np.array([[[0, 1, 1], [0, 0, 1]]], bool),
        right_base=np.array([[1, 0]], bool),
        gain=np.zeros((1, 2, 3)),
    )
    assert (
        at(found, np.array([[-1, 2]])).tolist() == [[True, True]]
        and at(found, np.array([[0, 1]])).sum() == 0
    )
    lengths = np.array([[-1, 2]])
    (points,) = curve(lambda price: (found, lengths), np.array([[True, True]]), [slice(0, 1)])
    assert set(map(tuple, points)) == {(2.0, 1.0)}, (
        "4 tokens, start and end included, at two positions"
    )


def test_the_cheapest_that_is_enough_is_judged_on_the_other_half():
    points, judged = [(3, 0.9), (2, 0.85), (1, 0.5)], [(3, 0.8), (2, 0.7), (1, 0.4)]
    assert cheapest(points, judged, 0.8) == (2, 0.7, 1) and cheapest(points, judged, 0.95) == (
        3,
        0.8,
        0,
    )


def test_random_lengths_are_the_same_ones_at_the_same_places():
    lengths = np.random.default_rng(0).integers(-1, 4, (20, 30))
    mixed = shuffled(lengths)
    assert ((mixed < 0) == (lengths < 0)).all() and sorted(mixed.flat) == sorted(lengths.flat)
    assert (mixed != lengths).any()


def test_how_many_digits_the_sum_before_an_answer_has():
    tokenizer = CharTokenizer("0123456789+-*=—\n")
    text = "9\n374=4\n51=—56—6\n"
    spans = np.array([tokenizer.encode(text)])
    answers = np.zeros((1, len(text) - 1), bool)
    answers[0, [text.index("=4"), text.index("=—")]] = True
    assert digits(spans, answers, tokenizer)[answers].tolist() == [3, 2]


def test_the_online_stop_is_a_linear_map_for_each_token_and_stops_where_no_longer_thought_is_worth_it():
    rng = np.random.default_rng(0)
    states, maps = rng.normal(size=(8, 30, 2, 5)), rng.normal(size=(2, 6, 3))
    found = SimpleNamespace(states=states, gain=states[:, :, 1] @ maps[1, :-1] + maps[1, -1])
    fitted = fit_online(found)
    np.testing.assert_allclose(fitted[1], maps[1], atol=1e-3)
    online = expected_online(found, maps)
    found.expected, price = rng.normal(size=(8, 30, 3)), 0.2
    lengths = stop_online(found, online, price)
    for w in range(8):
        for t in range(30):
            wanted = -1
            if max(found.expected[w, t, s] - price * (s + 2) for s in range(3)) > 0:
                wanted = 0
                while wanted < 2:
                    net = [
                        states[w, t, wanted] @ maps[wanted, :-1, s]
                        + maps[wanted, -1, s]
                        - price * s
                        for s in range(3)
                    ]
                    if net[wanted] >= max(net[wanted + 1 :]):
                        break
                    wanted += 1
            assert lengths[w, t] == wanted
    assert {-1, 0, 1, 2} == set(lengths.flat)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_measured_is_one_thought_at_a_time(temperature):
    quiet = tiny(thought_kind="any_length", thought_len=2, n_thoughts=2).float()
    spans, among = ids(2, 6).numpy(), [1, 3, 4]
    found = measure_lengths(quiet, spans, among, temperature)
    head = quiet.model.output.weight
    with torch.no_grad():
        for w in range(2):
            text = torch.from_numpy(spans[w])
            thoughts = torch.from_numpy(found.thoughts[w])
            greedy = (
                quiet.with_settings(n_thoughts=1, thought_temperature=0.0)
                .think(text[None])
                .tokens[0, 0]
            )
            assert torch.equal(thoughts, greedy) == (temperature == 0)
            for t in range(5):
                h_base = quiet.model(text[None, : t + 1])[0, -1]
                base = (head @ h_base).log_softmax(-1)[text[t + 1]]
                assert np.isclose(found.nll_base[w, t], -base, atol=1e-5)
                np.testing.assert_allclose(found.expected[w, t], quiet.gain_head(h_base), atol=1e-5)
                for s in range(3):
                    h = naive_thought(quiet, text, t, thoughts[t, :s])[1][0]
                    h = h_base + naive_gate(quiet, h_base, h) * (h - h_base)
                    gain = (head @ h).log_softmax(-1)[text[t + 1]] - base
                    assert np.isclose(found.gain[w, t, s], gain, atol=1e-5)
                    assert found.right[w, t, s] == (
                        among[int((head[among] @ h).argmax())] == text[t + 1]
                    )


def test_how_long_those_thoughts_are_that_begin_with_a_letter():
    lengths, letters = np.array([[4, 1, -1, 2]]), np.array([[True, True, True, False]])
    assert spoken(lengths, letters) == 2.5 and spoken(lengths[:, 2:3], letters[:, 2:3]) is None
