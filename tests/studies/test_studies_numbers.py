"""Numbers that are predicted as wholes, after a thought and without: against one number at a time."""

import math

import numpy as np
import pytest
import torch
from naive import log_softmax, naive_gate, naive_policy, naive_thought, tiny

from studies import numbers
from studies.numbers import Text, arithmetic, compare, read_numbers

MARK, AMONG, A = (
    3,
    [5, 6, 7, 8],
    3,
)  # "<<"; what a number can hold; the longest number and what stands behind it


def texts():
    rng = np.random.default_rng(0)
    places = [(2, 2), (7, 1)], [], [(5, 2)], [(1, 1), (4, 2), (8, 1)]
    return [Text(rng.integers(0, 11, 10 + n), pairs) for n, pairs in enumerate(places)]


def naive_number(quiet, text, first, size, thoughts):
    """(nll, exact) of one number, the mean of its predictions after some thoughts; without any, if there are none."""
    tokens, head = torch.from_numpy(text.ids), quiet.model.output.weight
    tokens = torch.cat((tokens, torch.zeros(A, dtype=torch.long)))  # behind the text's end
    h_text, nll, exact = quiet.model(tokens[None])[0], 0.0, True
    for k in range(size + 1):
        p = 0.0
        for thought in thoughts or [None]:
            h = h_text[first + k - 1]
            if thought is not None:
                h_thought = naive_thought(
                    quiet.with_settings(n_true=A), tokens, first - 1, thought
                )[1][k]
                h = h + naive_gate(quiet, h, h_thought) * (h_thought - h)
            scores = head @ h
            scores[MARK] = -math.inf if k == 0 else scores[MARK]
            p = p + scores.softmax(-1) / len(thoughts or [None])
        if k < size:
            nll -= p[tokens[first + k]].log().item()
            exact &= AMONG[int(p[AMONG].argmax())] == tokens[first + k]
        else:
            exact &= int(p.argmax()) not in AMONG
    return nll, exact


@pytest.mark.parametrize("n_thoughts", [1, 2])
@torch.no_grad()
def test_numbers_after_thoughts_are_those_of_one_number_at_a_time(n_thoughts, monkeypatch):
    quiet, found = tiny(thought_len=2, n_true=1), []
    p_mark = [
        log_softmax(
            quiet.model.output.weight @ quiet.model(torch.from_numpy(text.ids)[None])[0, first - 1]
        )[MARK].exp()
        for text in texts()
        for first, _ in text.numbers
    ]
    above = float(sum(sorted(p_mark)[2:4]) / 2)
    monkeypatch.setattr(numbers, "THINK_ABOVE", above)  # it thinks at three of the six
    given = np.random.default_rng(1).integers(0, 11, (6, n_thoughts, 2))
    got = read_numbers(quiet, texts(), AMONG, MARK, thoughts=given, n_thoughts=n_thoughts, batch=2)
    for text in texts():
        for first, size in text.numbers:
            thoughts = (
                list(torch.from_numpy(given[len(found)])) if p_mark[len(found)] > above else []
            )
            found.append(naive_number(quiet, text, first, size, thoughts))
    assert got["thinks"].sum() == 3
    np.testing.assert_allclose(got["nll"], [nll for nll, _ in found], rtol=1e-5)
    assert got["exact"].tolist() == [exact for _, exact in found]
    plain = read_numbers(quiet.model, texts(), AMONG, MARK, tau=1.0)
    wanted = [naive_number(quiet, text, *pair, [])[0] for text in texts() for pair in text.numbers]
    np.testing.assert_allclose(plain["nll"], wanted, rtol=1e-5)


@torch.no_grad()
def test_own_thoughts_are_greedy_ones_of_each_number():
    quiet, found = tiny(thought_len=2, n_true=1), []
    for text in texts():
        for first, _ in text.numbers:
            thought = torch.zeros(0, dtype=torch.long)
            for _ in range(2):
                h = naive_policy(quiet, torch.from_numpy(text.ids[:first]), thought)
                thought = torch.cat((thought, quiet.model.logits(h).argmax()[None]))
            found.append(thought.tolist())
    assert read_numbers(quiet, texts(), AMONG, MARK)["thoughts"][:, 0].tolist() == found


@pytest.mark.parametrize(
    "thought, calculation, number, wanted",
    [
        ("48/2=24>>24 clips", "48/2=24", "24", (True, True, True, True)),
        ("2*24=48>>48 clips", "24*2=48", "48", (True, True, True, True)),
        ("48/2=26>>26", "48/2=24", "24", (True, False, True, False)),
        ("20+4=24>>24", "48/2=24", "24", (True, True, False, True)),
        ("80,000*1.5=120,000>>", "80000*1.5=120000", "120,000", (True, True, True, True)),
        ("(3+4)*2=14>>", "(3+4)*2=14", "14", (True, True, True, True)),
        ("10/3=3.33>>3.33", "10/3=3.33", "3.33", (True, True, True, True)),
        ("clips, and 2*3=6", "2*3=6", "6", (False, False, False, False)),
        ("9**9**9=1", "2*3=6", "6", (True, False, False, False)),
        ("1/0=5>>", "2*3=6", "5", (True, False, False, True)),
        ("2*(3=6>>", "2*3=6", "6", (True, False, True, True)),
    ],
)
def test_what_a_thought_calculates(thought, calculation, number, wanted):
    assert arithmetic(thought, calculation, number) == wanted


def test_an_interval_takes_numbers_of_one_document_together():
    """Each document three times over says no more than once; p is that of a mean of so many standard errors."""
    rng = np.random.default_rng(0)
    once = rng.normal(0.3, 1, 40)
    one = compare(np.zeros(40), once, np.arange(40))
    three = compare(np.zeros(120), np.repeat(once, 3), np.repeat(np.arange(40), 3))
    assert one == pytest.approx(three)
    error = once.std() / 40**0.5
    assert one["mean"] == pytest.approx(once.mean()) and one["high"] - one["low"] == pytest.approx(
        2 * 1.96 * error
    )
    assert one["p"] == pytest.approx(math.erfc(once.mean() / error / 2**0.5))
