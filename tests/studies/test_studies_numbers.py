"""The study of numbers: one number at a time."""

import json

import numpy as np
import pytest
import torch
from byte_tokenizer import write_byte_tokenizer
from naive import likeliest_thought, naive_gate, naive_thought, tiny
from tiny_runs import SHAPE, go

from beyond.kinds import ThinkingConfig, thinking_model, with_gate
from data.gsm8k_steps.prepare import GSM8KStepsConfig, write_texts
from lib.runs import set_start_and_end
from lib.tokenizer import load_tokenizer
from studies import numbers as study
from studies.numbers import Text, compare, numbers_in, questions_of, read_numbers, read_text
from studies.runs import StudyConfig

MARK, AMONG, A = 3, [5, 6, 7, 8], 3  # "<<"; what a number can hold; the longest number, and behind


def texts():
    rng, places = np.random.default_rng(0), [[(2, 2), (7, 1)], [(5, 2)], [(1, 1), (4, 2), (8, 1)]]
    ids = [torch.from_numpy(rng.integers(0, 11, 10 + n)) for n in range(3)]
    return [Text(x, *torch.tensor(pairs).T) for x, pairs in zip(ids, places, strict=True)]


def naive_number(quiet, text, first, size, thoughts):
    """(nll, exact) of one number: the mean probability after thoughts, of which None is none."""
    tokens, head = torch.cat((text.ids, torch.zeros(A, dtype=torch.long))), quiet.model.output
    h_text, nll, exact = quiet.model(tokens[None])[0], 0.0, True
    for k in range(size + 1):
        p = 0.0
        for thought in thoughts:
            h = h_text[first + k - 1]
            if thought is not None:
                after = quiet.with_settings(n_true=A)
                h_thought = naive_thought(after, tokens, first - 1, thought)[1][k]
                h = h + naive_gate(quiet, h, h_thought) * (h_thought - h)
            scores = head(h)
            scores[MARK] = -torch.inf if k == 0 else scores[MARK]
            p = p + scores.softmax(-1) / len(thoughts)
        if k < size:
            nll -= p.log()[tokens[first + k]].item()
            exact &= AMONG[int(p[AMONG].argmax())] == tokens[first + k]
        else:
            exact &= int(p.argmax()) not in AMONG or p.argmax() == tokens[first + k]
    return nll, exact


@pytest.mark.parametrize("thoughts", ["none", "own", "given", "two"])
@torch.no_grad()
def test_numbers_after_thoughts_are_those_of_one_number_at_a_time(thoughts, monkeypatch):
    """Catches a prediction one token off, a "<<" that is predicted, a thought where none is due, or
    another number's or text's, and a mean of anything but probabilities."""
    monkeypatch.setattr(study, "BATCH", 2)
    quiet = tiny(thought_len=2, n_true=1)
    numbers = [(x, *y) for x in texts() for y in zip(*x[1:], strict=True)]
    marks = [
        quiet.model.logits(quiet.model(text.ids[None]))[0, first - 1].softmax(-1)[MARK]
        for text, first, _ in numbers
    ]
    monkeypatch.setattr(study, "THINK_ABOVE", float(sum(sorted(marks)[2:4]) / 2))
    own = [likeliest_thought(quiet, text.ids[:first], 2) for text, first, _ in numbers]
    own = torch.stack(own)[:, None]  # (n, 1, m)
    wanted = {"given": own.roll(1, 0), "two": torch.cat((own, own.roll(1, 0)), 1)}.get(thoughts)
    model = quiet.model if thoughts == "none" else quiet
    found = read_numbers(model, texts(), AMONG, MARK, wanted)
    for i, (text, first, size) in enumerate(numbers):
        thinks = thoughts != "none" and marks[i] > study.THINK_ABOVE
        read = own[i] if wanted is None else wanted[i]
        nll, exact = naive_number(quiet, text, first, size, read if thinks else [None])
        assert found["nll"][i] == pytest.approx(nll, rel=1e-4) and found["exact"][i] == exact
        if thoughts != "none":
            assert found["thinks"][i] == thinks
            assert found["thoughts"][i].tolist() == read.tolist()


def test_an_interval_takes_numbers_of_one_document_together():
    """Catches numbers that count as independent: each document three times says no more."""
    once = np.random.default_rng(0).normal(0.3, 1, 40)
    one = compare(once, np.zeros(40), np.arange(40))
    three = compare(np.repeat(once, 3), np.zeros(120), np.repeat(np.arange(40), 3))
    assert one == pytest.approx(three) and one["mean"] == pytest.approx(once.mean())
    assert one["spread"] == pytest.approx(1.96 * once.std() / 40**0.5)


@torch.no_grad()
def test_a_written_calculation_is_read_as_text_is(monkeypatch):
    """Catches a gate, a mask or positions by which what is written is read otherwise than text."""
    monkeypatch.setattr(study, "THINK_ABOVE", 0.0)
    model, end = tiny().model, 4
    how = {"thought_kind": "ended", "end_id": end, "thought_len": 3}
    written = with_gate(thinking_model(model, ThinkingConfig(**how)).double(), 1.0)
    set_start_and_end(written, *model.tok_embeddings.weight[[MARK, end]])
    found = read_numbers(written, texts(), AMONG, MARK)
    numbers = [(x, *y) for x in texts() for y in zip(*x[1:], strict=True)]
    for i, (text, first, size) in enumerate(numbers):
        thought = found["thoughts"][i, 0].tolist()
        thought = thought[: thought.index(end) + 1] if end in thought else thought
        calculation = torch.tensor([MARK, *thought, end])
        ids = torch.cat((text.ids[:first], calculation, text.ids[first : first + size]))
        logits = model.logits(model(ids[None]))[0, -size - 1 : -1]
        logits[0, MARK] = -torch.inf
        nll = -logits.log_softmax(-1).gather(-1, ids[-size:, None]).sum()
        assert found["nll"][i] == pytest.approx(float(nll), rel=1e-6)


def word_problems(folder):
    """A dataset of bytes, "<<" and ">>", of 120 problems; and its tokenizer."""
    path = write_byte_tokenizer(folder)
    content = json.loads(path.read_text())
    content["model"]["vocab"] |= {"<<": 258, ">>": 259}
    content["model"]["merges"] = ["< <", "> >"]
    path.write_text(json.dumps(content))
    config = GSM8KStepsConfig(out=str(folder), tokenizer=str(path), copies=1, dev_documents=1)
    lines = [{"question": f"{n} + 5", "answer": f"<<{n}+5={n + 5}>>{n + 5}"} for n in range(120)]
    write_texts(config, lines[40:], lines[:40])
    return load_tokenizer(path)


def test_a_thought_is_right_if_its_result_is_the_number(tmp_path, monkeypatch):
    """Catches a number that stands elsewhere in the thought, or is only a part of the result."""
    tokenizer = word_problems(tmp_path)
    texts = study.texts_of(tmp_path, 8)[:5]
    assert [numbers_in(text, tokenizer) for text in texts] == [["5"], ["6"], ["7"], ["8"], ["9"]]
    said = "0+5=5>>.", "1+5=16>>", "7-7=0>>7", ",8>>8.5.", "9-0+5=9."
    thoughts = np.array([[tokenizer.encode(f"{text:.<9}")[:8]] for text in said])
    monkeypatch.setattr(study, "read_numbers", lambda *_: {"thoughts": thoughts})
    found = read_text(tokenizer, tmp_path, texts, None)
    assert found["right"].tolist() == [1, 0, 0, 1, 0]


def test_star_is_asked_what_is_left_out_of_the_training_text(tmp_path):
    """Catches held-out questions, and such whose calculation the text gives away."""
    tokenizer = word_problems(tmp_path)
    text = tokenizer.decode(study.open_dataset(tmp_path, "train").tokens.tolist())
    left_out = {n for n in range(40, 120) if f"Q: {n} + 5\nA: {n + 5}" in text}
    asked = {tokenizer.decode(x.prompt): x.answer for x in questions_of(tmp_path, tokenizer)}
    assert asked == {f"Q: {n} + 5\nA: <<": str(n + 5) for n in left_out} and 20 < len(asked) < 60


@pytest.mark.slow
def test_the_study_trains_and_measures_all_its_rows(tmp_path):
    """Catches pieces that do not fit together."""
    word_problems(tmp_path / "data")
    config = StudyConfig(out=str(tmp_path), seeds="1,2", jobs=1, steps=1, texts=8)
    go(tmp_path, *SHAPE, "--objective=lm", "--init_from=", "--out=out/base/0", "--max_steps=1")
    base = tmp_path / "out" / "base" / "0"
    found = study.study(str(tmp_path / "data"), config, tmp_path / "out", base)
    taught = "base, taught by STaR, written"
    assert {"base, written", "heads, random", taught, "reinforce, left out"} < found.keys()
    minus = found["reinforce_minus"]["without_reinforce"]["exact"]
    assert minus["mean"] - minus["spread"] <= 0
    assert (tmp_path / "out.png").exists()
