"""Questions on a bad day: a text is read to its end, nobody is right by chance, and no answer is asked for twice."""

import json

import pytest
import torch
from byte_tokenizer import write_byte_tokenizer
from test_questions import CSQA, GSM8K, call, listed, rigged, tiny_thinker
from test_questions import work as work  # a fixture: runs and questions

from lib import questions
from lib.asking import write_answers
from lib.questions import QuestionsConfig, load_questions
from lib.tokenizer import load_tokenizer

END = 256  # the byte tokenizer's id that ends a text


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(write_byte_tokenizer(tmp_path / "tokenizer"))


class Ending:
    """Encodes "␄" as the end of a text."""

    def __init__(self, tokenizer):
        self.__dict__ |= vars(tokenizer)
        self.tokenizer = tokenizer
        self.decode, self.words = tokenizer.decode, tokenizer.words

    def encode(self, text, bos=False):
        parts = [self.tokenizer.encode(part) for part in text.split("␄")]
        return [i for n, part in enumerate(parts) for i in ([END] if n else []) + part]


def test_what_is_written_after_the_end_of_a_text_is_not_read(tokenizer):
    """A model that goes on after its end: 18 is not 185, and with a chain of thought the answer is not 7."""
    ending, asked = Ending(tokenizer), [{"question": "How many?", "answer": "18"}]
    direct = "Q: How many?\nA: 18␄5 apples cost $7\n"
    chain = "Q: How many?\nA: Let's think step by step. 18.␄5 apples cost $7\n"
    for text, config, metric in (
        (direct, {}, "greedy"),
        (chain, {"cot": True, "max_new_tokens": 30}, "vote"),
    ):
        who = rigged([text], ending, 50.0)
        found = questions.ask_gsm8k(who, asked, ending, QuestionsConfig(**config), "")
        assert found[0][metric] == 1.0 and "7" not in str(found[0]["written"])
    q = {"question": "Where?", "choices": ["up", "bank", "down", "here", "there"], "answer": "B"}
    choices = "".join(f"\n({choice['label']}) {choice['text']}" for choice in listed(q))
    who = rigged([f"Q: Where?{choices}\nA: B␄ecause\n"], ending, 50.0)
    found = questions.ask_commonsense_qa(who, [q], ending, QuestionsConfig(), "")
    assert found[0]["greedy"] == 1.0 and found[0]["written"] == " B"


@pytest.mark.parametrize("thinking", [False, True])
def test_generation_stops_where_all_have_ended(tokenizer, thinking):
    """Not after max_new_tokens."""
    from lib.asking import candidate

    quiet, calls = tiny_thinker(tokenizer), []
    torch.nn.init.zeros_(quiet.model.output.weight)
    with torch.no_grad():  # whatever is read, an end follows
        quiet.model.output.weight[END] = 1.0
        quiet.model.norm.weight.fill_(1.0)
    who = candidate(quiet, thinking)
    generate = who.generate
    who.generate = lambda *args: calls.append(out := generate(*args)) or out
    with torch.no_grad():
        for p in (quiet.model.output.weight,):
            p[END] = quiet.model(torch.tensor([tokenizer.encode("ab")]))[0, -1]
    written = write_answers(
        who, [tokenizer.encode("ab")], tokenizer, 50, 0.0, 0, lambda ids: False, 3, "cpu", ""
    )
    assert written[0][0] == "" and calls[0][0].shape[1] == 3, "one token, the end"


@pytest.mark.parametrize(
    "kind, line, message",
    [
        ("gsm8k", {"question": "q", "answer": "eighteen"}, "holds no number"),
        ("gsm8k", {"question": "q"}, "no 'answer'"),
        ("gsm8k", {"question": None, "answer": "1"}, "must be str"),
        ("gsm8k", ["q", "1"], "must be dict"),
        ("commonsense_qa", {**CSQA[0], "choices": ["a", "b", "c", "d", ""]}, "not empty"),
        ("commonsense_qa", {**CSQA[0], "choices": ["a", "b", "c", "d"]}, "five choices"),
        ("commonsense_qa", {**CSQA[0], "answer": "F"}, "one of A to E"),
        ("commonsense_qa", {**CSQA[0], "answer": ""}, "one of A to E"),
        ("commonsense_qa", {**CSQA[0], "choices": ["a", "b", "c", "d", 5]}, "must be str"),
    ],
)
def test_questions_without_an_answer_that_could_be_right_are_refused_before_any_work(
    tmp_path, kind, line, message
):
    good = GSM8K[0] if kind == "gsm8k" else CSQA[0]
    (tmp_path / "questions.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(line)}\n")
    with pytest.raises(ValueError, match=f"questions.jsonl .*line 2.*{message}") as error:
        load_questions(kind, tmp_path, 0)
    assert "\n" not in str(error.value)
    (tmp_path / "questions.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds none"):
        load_questions(kind, tmp_path, 0)


@pytest.mark.parametrize("written", ["--5", "-$-5", "", "$", "5" * 5000, "=", "٣"])
def test_no_answer_stops_an_evaluation(tokenizer, written):
    who = rigged([f"Q: How many?\nA: {written}\n"], tokenizer, 50.0)
    asked = [{"question": "How many?", "answer": "18"}]
    found = questions.ask_gsm8k(who, asked, tokenizer, QuestionsConfig(), "")
    assert found[0]["greedy"] == 0.0


def test_each_models_answers_are_kept_as_soon_as_they_are_there(work, monkeypatch):
    """The third of four models stops it all; the same command asks only the two that are left."""
    source = f"--source={work / 'gsm8k.jsonl'}"
    call("data/gsm8k/prepare.py", monkeypatch, source, "--any_hash", f"--out={work / 'data'}")
    paths = {"run": "thinks", "base": "base", "control": "base", "data": "data", "out": "out"}
    flags = ["gsm8k", *(f"--{key}={work / name}" for key, name in paths.items())]
    flags += ["--n=3", "--max_new_tokens=3", "--device=cpu"]
    ask, asked = questions.ask_gsm8k, []

    def counted(who, some, tokenizer, config, name):
        asked.append(name)
        if len(asked) == 3:
            raise MemoryError
        return ask(who, some, tokenizer, config, name)

    monkeypatch.setattr(questions, "ask_gsm8k", counted)
    with pytest.raises(SystemExit, match="memory"):
        call("eval.py", monkeypatch, *flags)
    assert (
        len(list((work / "out").glob("*.part.json"))) == 2
        and not (work / "out" / "gsm8k_n3.json").exists()
    )
    asked += [""]  # the fourth call is not stopped
    call("eval.py", monkeypatch, *flags)
    assert asked[:3] == ["not_thinking", "quiet_star", "base"] and asked[4:] == ["base", "control"]
    assert (work / "out" / "gsm8k_n3.json").exists() and not list(
        (work / "out").glob("*.part.json")
    )


def test_gains_on_fewer_texts_do_not_overwrite_those_on_more(work, monkeypatch, tmp_path):
    (work / "some.txt").write_text("some text or other, and more of it. " * 20)
    flags = [
        "gains",
        f"--run={work / 'thinks'}",
        f"--text={work / 'some.txt'}",
        f"--out={work / 'gains'}",
        "--span=32",
    ]
    flags += [f"--base={work / 'base'}", "--device=cpu"]
    call("eval.py", monkeypatch, *flags, "--texts=8")
    before = (work / "gains" / "results.json").read_bytes()
    with pytest.raises(SystemExit, match="has results with texts=8, not 2: choose another --out"):
        call("eval.py", monkeypatch, *flags, "--texts=2")
    (work / "some.txt").write_text("another text under the same name, of as much length. " * 20)
    with pytest.raises(SystemExit, match="checksum"):
        call("eval.py", monkeypatch, *flags, "--texts=8")
    assert (work / "gains" / "results.json").read_bytes() == before


def test_numbers_that_are_none_do_not_stop_the_page(tmp_path):
    """JSON has no NaN: the page's script would stop at it."""
    import numpy as np

    from eval import Measured
    from lib.page import write_page
    from lib.tokenizer import CharTokenizer

    nan, ids = np.full((1, 2), np.nan), np.array([[0, 1, 0]])
    measured = Measured(
        nan, nan > 0, 0.0, nan, nan > 0, nan, ids[:, :2, None], None, ids[:, :2], ids[:, :2]
    )
    write_page(
        tmp_path / "gains.html", "$\\frac$ & <caption>", ids, measured, [0], CharTokenizer("ab")
    )
    page = (tmp_path / "gains.html").read_text()
    assert "NaN" not in page and "null" in page and "$\\frac$ &amp; &lt;caption&gt;" in page
