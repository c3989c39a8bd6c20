"""Questions: models that know the answers by heart, or nothing, score what they must."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from byte_tokenizer import write_byte_tokenizer
from naive import tiny

from fast import think_next
from lib import questions
from lib.answers import is_over
from lib.questions import QuestionsConfig, Respondent, ask_all, load_questions
from lib.tokenizer import CharTokenizer, load_tokenizer
from lib.weights import save_mistral
from model import KVCache
from quiet_star import generate_with_thoughts

SUMS = [(1, 1), (5, 5), (2, 30), (999, 7), (4, 100000), (3, 0)]
GSM8K = [{"question": f"What is {a} plus {10 * b}?", "answer": f"{a + 10 * b:,}"} for a, b in SUMS]
CHOICES = ["here", "far away", "up", "at sea", "nowhere"]
CSQA = [
    {"question": f"Where is {'very ' * i}it?", "choices": CHOICES, "answer": letter}
    for i, letter in enumerate("ABCDEBCAED")
]
LISTED = "\n(A) here\n(B) far away\n(C) up\n(D) at sea\n(E) nowhere"
END = 256  # the byte tokenizer's id that ends a text


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(write_byte_tokenizer(tmp_path / "tokenizer"))


class ByHeart:
    """In a Transformer's place: after the beginning of one of its texts (ids), the next id of that
    text has a logit of 50, and all else 0. Its hidden states are its logits."""

    def __init__(self, texts):
        self.texts = texts

    def parameters(self):
        return iter([torch.zeros(1)])

    def __call__(self, tokens):
        logits = torch.zeros(*tokens.shape, 258)
        for b, row in enumerate(tokens.tolist()):
            for t in range(len(row)):
                for text in self.texts:
                    if text[: t + 1] == row[: t + 1] and len(text) > t + 1:
                        logits[b, t, text[t + 1]] = 50.0
        return logits

    def logits(self, hidden):
        return hidden

    def stream(self, tokens, max_new_tokens, temperature):
        for _ in range(max_new_tokens):
            assert not (tokens == END).any(1).all(), "all texts have ended"
            new = self(tokens)[:, -1].argmax(-1)
            yield new
            tokens = torch.cat((tokens, new[:, None]), dim=1)


def knows(texts, tokenizer):
    """A respondent that has texts by heart. In them "␄" ends a text."""
    ids = [tokenizer.encode(text.replace("␄", "\x00"), bos=True) for text in texts]
    by_heart = [[END if i == 0 else i for i in row] for row in ids]
    return Respondent(ByHeart(by_heart), tokenizer, thinking=False)


def asked(respondent, some, path, **config):
    some = [{**q, "number": number} for number, q in enumerate(some)]
    return questions.records_of("model", respondent, some, QuestionsConfig(**config), path)


def thinker(vocab=258):
    return tiny(vocab=vocab, thought_len=2).float().eval()


TEXTS = {  # questions, what is known by heart, the number of ids that an answer's token is among
    "gsm8k": (GSM8K, [f"Q: {q['question']}\nA: {q['answer']}\n" for q in GSM8K], 11),
    "commonsense_qa": (CSQA, [f"Q: {q['question']}{LISTED}\nA: {q['answer']}\n" for q in CSQA], 6),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_who_knows_the_answers_scores_one_and_who_knows_nothing_chance(kind, tokenizer, tmp_path):
    """Catches a prompt, a shift, or a set of digits or letters that is off by one."""
    some, texts, among = TEXTS[kind]
    records = asked(knows(texts, tokenizer), some, tmp_path / "all", batch_size=4)
    assert [record["question"] for record in records] == [q["question"] for q in some]
    np.testing.assert_allclose([record["soft"] for record in records], 1.0)
    assert [record["greedy"] for record in records] == [1.0] * len(some)
    records = asked(knows([], tokenizer), some, tmp_path / "nothing", batch_size=4)
    tokens = [len(q["answer"].replace(",", "")) + 1 for q in some]  # commas do not count
    chance = [float(among) ** -n for n in tokens]
    np.testing.assert_allclose([record["soft"] for record in records], chance, rtol=1e-5)
    assert [record["greedy"] for record in records] == [0.0] * len(some)


def test_a_chain_of_thought_is_put_to_the_vote(tokenizer, tmp_path):
    """Catches votes that are counted for another question, an answer that is read in a question of
    the model's own or behind the end of its text, and generation that goes on then."""
    own = ["It is 11", "The answer is 50 + 5 = 55.", "2 + 300 = 302", "7"]
    texts = [f"Q: {q['question']}\nA: Let's think step by step." for q in GSM8K]
    further = ["␄5", "\n\nSo 5.", "\n\nQ: What is 7?\nA: 7", "␄"]
    texts = ["".join(parts) for parts in zip(texts, own, further, strict=False)]
    config = dict(cot=True, votes=3, max_new_tokens=60)
    records = asked(knows(texts, tokenizer), GSM8K[:4], tmp_path / "answers.jsonl", **config)
    assert [record["vote"] for record in records] == [1.0, 1.0, 1.0, 0.0]
    assert [record["written"] for record in records] == [[text] * 3 for text in own]


@pytest.mark.parametrize("thinking", [False, True])
@torch.no_grad()
def test_an_answer_is_read_as_if_its_tokens_came_one_by_one(tokenizer, thinking):
    """Catches a position that is off by one, and a thought of another row or position."""
    quiet, answers = thinker(), [" yes\n", " no!\n"]
    ids, logits = Respondent(quiet, tokenizer, thinking).read(["Q: a\nA:", "Q: b\nA:"], answers)
    for row, (prompt, answer) in enumerate(zip("ab", answers, strict=True)):
        text = torch.tensor([tokenizer.encode(f"Q: {prompt}\nA:{answer}", bos=True)])
        assert tokenizer.decode(ids[row].tolist()) == answer
        for k in range(len(answer)):
            before = text[:, : k - len(answer)]
            hidden = quiet.model(before)[0, -1]
            if thinking:
                hidden = think_next(quiet, before, KVCache(quiet.model.config, 1, 40))[0][0]
            alone = quiet.model.logits(hidden)
            torch.testing.assert_close(logits[row, k], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("thinking", [False, True])
def test_what_is_written_is_what_each_row_alone_is_continued_with(thinking):
    """Catches rows that are mixed up, and generation that goes on when all rows are over."""
    quiet, tokenizer, prompts = thinker(12), CharTokenizer("abcdefghijkl"), ["ab", "cd", "ef"]
    respondent = Respondent(quiet, tokenizer, thinking)
    texts = respondent.write(prompts, 20, 0.0, is_over=lambda text, seen: len(text) > 4)
    for prompt, text in zip(prompts, texts, strict=True):
        ids = torch.tensor([tokenizer.encode(prompt)])
        alone = quiet.model.generate(ids, 5, temperature=0.0)
        if thinking:
            alone, _, _ = generate_with_thoughts(quiet, ids, 5, temperature=0.0)
        assert prompt + text == tokenizer.decode(alone[0].tolist())


def test_tokens_of_several_characters_are_refused(tokenizer, monkeypatch):
    """Catches a score that leaves out a part of the answer, which looks like any other score."""
    pairs = SimpleNamespace(encode=lambda text: re.findall("..?", text, re.S), words=list)
    with pytest.raises(ValueError):
        questions.single_ids(pairs, "0123456789")
    monkeypatch.setattr(tokenizer, "encode", lambda text, bos: [len(text), 1, 2])
    with pytest.raises(ValueError):
        knows([], tokenizer).read(["A:"], [" 18"])


def test_an_empty_prompt_or_answer_is_refused():
    """Catches a RuntimeError of torch, and an answer that is judged by the end of its prompt."""
    respondent = Respondent(thinker(12), CharTokenizer("abcdefghijkl"), thinking=True)
    for call in (("read", [""], ["ab"]), ("read", ["ab"], [""]), ("write", [""], 5, 0.0, is_over)):
        with pytest.raises(ValueError):
            getattr(respondent, call[0])(*call[1:])


@pytest.fixture
def work(tmp_path, tokenizer):
    """Weights of a thinking model and of its base, and both sets of questions."""
    quiet = thinker()
    for name in ("base", "thinks"):
        save_mistral(quiet.model, tmp_path / name)
        tokenizer.save(tmp_path / name)
    weights = {name: x for name, x in quiet.state_dict().items() if not name.startswith("model.")}
    torch.save(weights, tmp_path / "thinks" / "quiet_star.pt")
    (tmp_path / "thinks" / "quiet_star.json").write_text(json.dumps(vars(quiet.config)))
    for kind, (some, _, _) in TEXTS.items():
        (tmp_path / kind).mkdir()
        lines = "".join(json.dumps(q) + "\n" for q in some)
        (tmp_path / kind / "questions.jsonl").write_text(lines)
    return tmp_path


def settings(work, kind, **changes):
    paths = {"run": "thinks", "base": "base", "data": kind, "out": "out"}
    paths = {name: str(work / folder) for name, folder in paths.items()}
    return QuestionsConfig(**{**paths, "n": 4, "max_new_tokens": 5, "device": "cpu", **changes})


@pytest.mark.parametrize(
    "kind, more", [("gsm8k", {}), ("gsm8k", {"cot": True, "votes": 2}), ("commonsense_qa", {})]
)
def test_all_models_are_asked_and_nothing_is_overwritten(work, capsys, kind, more):
    """Catches a model under another's name, a table that is not of its answers, and results of one
    setting beside those of another."""
    results = ask_all(kind, settings(work, kind, **more))
    table, path = capsys.readouterr().out, work / "out" / "results.json"
    rows = json.loads(path.read_text())["rows"]
    assert list(rows) == ["without_thoughts", "quiet_star", "base"] and results["n"] == 4
    assert rows["base"] == rows["without_thoughts"] and all(row in table for row in rows)
    assert more or rows["quiet_star"] != rows["base"]
    records = [json.loads(x) for x in (work / "out" / "answers.jsonl").read_text().splitlines()]
    assert len(records) == 3 * 4 and {"question", "answer"} <= records[0].keys()
    for row, scores in rows.items():
        for score, found in scores.items():
            answers = [record[score] for record in records if record["model"] == row]
            assert found["mean"] == pytest.approx(np.mean(answers))
    before = path.read_bytes()
    ask_all(kind, settings(work, kind, **more))
    for change in ({"seed": 5}, {"n": 3}, {"base": ""}):
        with pytest.raises(ValueError, match="results.json"):
            ask_all(kind, settings(work, kind, **more, **change))
    assert path.read_bytes() == before


def test_an_interrupted_evaluation_goes_on_where_it_stopped(work, monkeypatch):
    """Catches questions that are asked twice or never, and votes that are drawn otherwise."""
    config = dict(cot=True, votes=2, temperature=1.0, n=6, batch_size=2)
    uninterrupted = ask_all("gsm8k", settings(work, "gsm8k", **config, out=str(work / "whole")))
    ask, questions_asked = questions.ask_to_reason, []

    def ask_some(respondent, some, config):
        questions_asked.extend(q["number"] for q in some)
        if len(questions_asked) == 9:
            raise MemoryError
        return ask(respondent, some, config)

    monkeypatch.setattr(questions, "ask_to_reason", ask_some)
    with pytest.raises(MemoryError):
        ask_all("gsm8k", settings(work, "gsm8k", **config))
    with open(work / "out" / "answers.jsonl", "a") as file:
        file.write('{"model": "quiet')  # the disk was full
    results = ask_all("gsm8k", settings(work, "gsm8k", **config))
    assert len(questions_asked) == 1 + 3 * len(GSM8K), "the one that was interrupted, twice"
    assert results["rows"] == uninterrupted["rows"]
    one, other = [(work / out / "answers.jsonl").read_text() for out in ("whole", "out")]
    assert one == other


@pytest.mark.parametrize(
    "kind, line",
    [
        ("gsm8k", {"question": "q", "answer": "eighteen"}),
        ("gsm8k", {"question": "q", "answer": "10:30"}),
        ("gsm8k", {"question": None, "answer": "1"}),
        ("commonsense_qa", {**CSQA[0], "choices": CHOICES[:4]}),
        ("commonsense_qa", {**CSQA[0], "choices": [*CHOICES[:4], 5]}),
        ("commonsense_qa", {**CSQA[0], "answer": ""}),
    ],
)
def test_a_question_without_an_answer_that_could_be_right_is_named(tmp_path, kind, line):
    """Catches a question whose answer would count as right or wrong whatever was written."""
    path = tmp_path / "questions.jsonl"
    path.write_text(f"{json.dumps(TEXTS[kind][0][0])}\n{json.dumps(line)}\n")
    with pytest.raises(ValueError, match=r"questions.jsonl, line 2") as error:
        load_questions(kind, tmp_path)
    assert "\n" not in str(error.value)


def test_what_cannot_be_asked_is_refused_before_any_work(work):
    """Catches hours of work before an error that was there from the beginning."""
    (work / "questions.jsonl").write_text("")
    nowhere = str(work / "nowhere")
    for name, value in (("data", work), ("data", nowhere), ("n", 99), ("base", nowhere)):
        with pytest.raises(ValueError, match="nowhere|--n|questions.jsonl"):
            ask_all("gsm8k", settings(work, "gsm8k", **{name: value}))
    with pytest.raises(ValueError, match="--cot"):
        ask_all("commonsense_qa", settings(work, "commonsense_qa", cot=True))
    with pytest.raises(ValueError, match="--cot"):
        settings(work, "gsm8k", votes=2)
    assert not (work / "out").exists()
