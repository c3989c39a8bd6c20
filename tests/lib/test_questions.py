"""Questions: models that know the answers, or nothing, score what they must; answers are found where they stand."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from byte_tokenizer import write_byte_tokenizer
from tiny_runs import as_typed

from lib import asking, questions
from lib.asking import Candidate, batches, candidate
from lib.questions import QuestionsConfig, compare
from lib.runs import load_model
from lib.tokenizer import before_end, load_tokenizer
from lib.weights import save_mistral
from model import ModelConfig, Transformer
from quiet_star import QuietSTaR, QuietSTaRConfig

GSM8K = [{"question": f"What is {a} plus {10 * b}?", "answer": f"{a + 10 * b:,}"} for a, b in
         [(1, 1), (2, 30), (999, 7), (4, 100000), (5, 5), (3, 0)]]  # fmt: skip
CSQA = [
    {
        "question": f"Where is {'very ' * i}it?",
        "choices": ["here", "far away", "up", "at sea", "nowhere"],
        "answer": a,
    }
    for i, a in enumerate("ABCDEBCAED")
]

GSM8K_SCRIPT, CSQA_SCRIPT = "data/gsm8k/prepare.py", "data/commonsense_qa/prepare.py"


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(write_byte_tokenizer(tmp_path / "tokenizer"))


def rigged(texts, tokenizer, strength):
    """A model that has these texts by heart: it gives the next byte of the one it is in `strength` more than others."""
    known = [tokenizer.encode(text, True) for text in texts]

    def logits_after(ids):
        logits = torch.zeros(tokenizer.vocab_size)
        for text in known:
            if text[: len(ids)] == ids and len(text) > len(ids):
                logits[text[len(ids)]] += strength
        return logits

    def predict(tokens, positions):
        rows = zip(tokens.tolist(), positions.tolist(), strict=True)
        return torch.stack(
            [torch.stack([logits_after(row[: p + 1]) for p in places]) for row, places in rows]
        )

    def generate(tokens, lengths, new, temperature, generator, stop):
        rows = []
        for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True):
            row = row[:n]
            while len(row) < tokens.shape[1] + new:
                row.append(int(logits_after(row).argmax()))
            rows.append(row)
        return torch.tensor(rows), None

    return Candidate(predict, generate)


def with_choices(q):
    choices = "".join(f"\n({choice['label']}) {choice['text']}" for choice in listed(q))
    return f"Q: {q['question']}{choices}\nA:"


def listed(q):
    """The choices as the source has them."""
    return [
        {"label": label, "text": text} for label, text in zip("ABCDE", q["choices"], strict=True)
    ]


def scores(found, metric):
    return [record[metric] for record in found]


def test_who_knows_the_answers_of_gsm8k_scores_one_and_who_knows_nothing_chance(tokenizer):
    """A prompt, a shift or a set of digits that is off by one token would show in either."""
    knows = rigged([f"Q: {q['question']}\nA: {q['answer']}\n" for q in GSM8K], tokenizer, 50.0)
    found = questions.ask_gsm8k(knows, GSM8K, tokenizer, QuestionsConfig(batch_size=4), "")
    assert scores(found, "greedy") == [1.0] * len(GSM8K)
    np.testing.assert_allclose(scores(found, "soft"), 1.0)
    nothing = rigged([], tokenizer, 0.0)
    found = questions.ask_gsm8k(nothing, GSM8K, tokenizer, QuestionsConfig(batch_size=4), "")
    digits = [sum(c.isdigit() for c in q["answer"]) for q in GSM8K]  # commas are left out
    np.testing.assert_allclose(scores(found, "soft"), [11.0 ** -(d + 1) for d in digits], rtol=1e-6)
    assert scores(found, "greedy") == [0.0] * len(GSM8K)


def test_who_knows_the_answers_of_commonsense_qa_scores_one_and_who_knows_nothing_chance(tokenizer):
    texts = [f"{with_choices(q)} {q['answer']}\n" for q in CSQA]
    texts += [f"Q: {q['question']}\nA: {q['choices']['ABCDE'.index(q['answer'])]}" for q in CSQA]
    config = QuestionsConfig(batch_size=7)
    found = questions.ask_commonsense_qa(
        rigged(texts, tokenizer, 50.0), CSQA, tokenizer, config, ""
    )
    for metric in ("greedy", "letter", "text"):
        assert scores(found, metric) == [1.0] * len(CSQA), metric
    np.testing.assert_allclose(scores(found, "soft"), 1.0)
    found = questions.ask_commonsense_qa(rigged([], tokenizer, 0.0), CSQA, tokenizer, config, "")
    np.testing.assert_allclose(scores(found, "soft"), 1 / 36, rtol=1e-6)
    assert np.mean(scores(found, "letter")) == 0.2, (
        "the answers are spread evenly, and it always takes the same"
    )
    assert scores(found, "greedy") == [0.0] * len(CSQA)
    best_by_sum = min(
        CSQA[0]["choices"], key=len
    )  # the shortest text, were it not for the division by its length
    assert best_by_sum == "up" and {record["text"] for record in found} <= {0.0, 1.0}
    per_byte = [
        x / len(c) for x, c in zip(found[0]["log_p_of_texts"], CSQA[0]["choices"], strict=True)
    ]
    np.testing.assert_allclose(per_byte, [per_byte[0]] * 5, atol=2)


def test_a_chain_of_thought_is_read_to_its_answer_and_put_to_the_vote(tokenizer):
    chains = {
        0: " 1 and 10 make 11. The answer is 11.",
        1: " It is 2 + 300 = 302\n\nQ: What is 7 plus 7?\nA: 14",
    }
    texts = [
        f"Q: {GSM8K[i]['question']}\nA: Let's think step by step.{chain}\n"
        for i, chain in chains.items()
    ]
    config = QuestionsConfig(cot=True, votes=3, batch_size=2, max_new_tokens=60)
    found = questions.ask_gsm8k(rigged(texts, tokenizer, 50.0), GSM8K[:2], tokenizer, config, "")
    assert scores(found, "vote") == [1.0, 1.0] and scores(found, "sample") == [1.0, 1.0]
    assert len(found[0]["written"]) == 3 and "plus 7" not in found[1]["written"][0]


def test_batches_hold_every_row_once_and_waste_little():
    lengths = np.random.default_rng(0).integers(20, 200, 300).tolist()
    found = list(batches(lengths, 16))
    assert sorted(i for batch in found for i in batch) == list(range(300))
    assert all(
        len(batch) <= 16 and lengths[batch[0]] == max(lengths[i] for i in batch) for batch in found
    )
    read = sum(len(batch) * lengths[batch[0]] for batch in found)
    assert read < 1.05 * sum(lengths) and len(found) < 40


def test_the_paired_difference_is_that_of_the_same_questions():
    x, y = np.array([0, 1, 0, 1.0]), np.array([1, 1, 0, 1.0])
    found = compare(x, y)
    error = np.std([1, 0, 0, 0], ddof=1) / 2
    assert found == pytest.approx(
        {"mean": 0.25, "low": 0.25 - 1.96 * error, "high": 0.25 + 1.96 * error}
    )


def tiny_thinker(tokenizer, seed=0):
    torch.manual_seed(seed)
    shape = dict(dim=16, n_layers=2, head_dim=8, hidden_dim=24, n_heads=2, n_kv_heads=1)
    quiet = QuietSTaR(
        Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, **shape)),
        QuietSTaRConfig(thought_len=2),
    )
    torch.nn.init.normal_(quiet.mixing_head.last.weight)
    return quiet.eval()


@pytest.mark.parametrize("thinking", [False, True])
def test_rows_of_unequal_length_get_what_each_gets_alone(tokenizer, thinking):
    """Catches padding that is seen, a position that is off by one, and a thought of another row or position."""
    quiet = tiny_thinker(tokenizer)
    who = candidate(quiet, thinking)
    rows = [(tokenizer.encode("a question of some length" + "!" * n), 1 + n % 3) for n in range(5)]
    found = asking.predict_ends(
        who, rows, lambda logits, true: (logits, true.tolist()), 3, "cpu", ""
    )
    greedy = quiet.with_settings(n_thoughts=1, n_true=1, thought_temperature=0.0)
    for (ids, n), (logits, true) in zip(rows, found, strict=True):
        assert true == ids[-n:]
        for k in range(n):
            prefix = torch.tensor([ids[: len(ids) - n + k]])
            with torch.no_grad():
                last = torch.tensor([[prefix.shape[1] - 1]])
                found = greedy.think(prefix, positions=last)
                alone = greedy.talk(found.h_base, found.h_thought)[0][0, 0, 0, 0]
                hidden = alone if thinking else quiet.model(prefix)[0, -1]
                torch.testing.assert_close(
                    logits[k], quiet.model.logits(hidden), atol=1e-4, rtol=1e-4
                )
    prompts = [ids for ids, _ in rows]
    written = asking.write_answers(
        who, prompts, tokenizer, 4, 0.0, 0, lambda ids: False, 3, "cpu", ""
    )
    for ids, (text, thought) in zip(prompts, written, strict=True):
        alone = who.generate(torch.tensor([ids]), torch.tensor([len(ids)]), 4, 0.0, None, None)
        assert text == tokenizer.decode(before_end(tokenizer, alone[0][0, len(ids) :].tolist()))
        assert thought == (tokenizer.decode(alone[1][0, 0].tolist()) if thinking else None)


def test_a_tokenizer_that_joins_prompt_and_answer_is_refused():
    joins = SimpleNamespace(encode=lambda text, bos: [hash(text)])
    with pytest.raises(ValueError, match="no score is defined"):
        questions.continuation(joins, "A:", " 18", False)


@pytest.fixture
def work(tmp_path, tokenizer):
    """Weights of a thinking model and of its base, and both sets of questions as their prepare.py leave them."""
    quiet = tiny_thinker(tokenizer)
    for name in ("base", "thinks"):
        save_mistral(quiet.model, tmp_path / name)
        tokenizer.save(tmp_path / name)
    weights = {name: x for name, x in quiet.state_dict().items() if not name.startswith("model.")}
    torch.save(weights, tmp_path / "thinks" / "quiet_star.pt")
    (tmp_path / "thinks" / "quiet_star.json").write_text(json.dumps(vars(quiet.config)))
    gsm8k = [{"question": q["question"], "answer": f"Think.\n#### {q['answer']}"} for q in GSM8K]
    csqa = [
        {"answerKey": q["answer"], "question": {"stem": q["question"], "choices": listed(q)}}
        for q in CSQA
    ]
    for name, lines in (("gsm8k", gsm8k), ("commonsense_qa", csqa)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def call(script, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["script.py", *map(str, arguments)])
    as_typed(script)


@pytest.mark.parametrize(
    "kind, flags", [("gsm8k", []), ("gsm8k", ["--cot", "--votes=2"]), ("commonsense_qa", [])]
)
def test_the_command_compares_all_models_and_keeps_every_answer(
    work, monkeypatch, capsys, kind, flags
):
    prepare = f"data/{kind}/prepare.py"
    call(
        prepare,
        monkeypatch,
        f"--source={work / kind}.jsonl",
        "--any_hash",
        f"--out={work / 'data'}",
    )
    paths = {"run": "thinks", "base": "base", "control": "base", "data": "data", "out": "out"}
    flags = [kind, *flags, *(f"--{key}={work / name}" for key, name in paths.items())]
    flags += ["--n=4", "--max_new_tokens=5", "--device=cpu"]
    call("eval.py", monkeypatch, *flags)
    table = capsys.readouterr().out
    (path,) = (work / "out").glob("*.json")
    results = json.loads(path.read_text())
    assert (
        list(results["rows"]) == ["base", "control", "not_thinking", "quiet_star"]
        and results["n"] == 4
    )
    assert (
        results["rows"]["base"] == results["rows"]["not_thinking"] and "quiet_star - base" in table
    )
    records = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert len(records) == 4 and {"question", "answer", "base", "quiet_star"} <= records[0].keys()
    for metric, (mean, _) in results["rows"]["quiet_star"].items():
        assert mean == pytest.approx(np.mean([record["quiet_star"][metric] for record in records]))
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    call("eval.py", monkeypatch, *flags)  # the same again is the same
    assert json.loads(path.read_text())["rows"] == results["rows"]
    for more, expected in (
        (["--seed=5"], "has results with seed=1337, not 5"),
        (["--n=99"], "--n=99, but"),
        (["--n=3", "--control=nowhere"], "there is no model in nowhere"),
        ([f"--data={work}"], "no questions in"),
        (["--votes=2", "--no-cot"], "several votes want --cot"),
    ):
        with pytest.raises(SystemExit) as stop:
            call("eval.py", monkeypatch, *flags, *more)
        message = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err
        assert expected in message and "\n" not in message.strip()


def test_prepare_refuses_what_is_no_question(tmp_path, monkeypatch):
    good = json.dumps({"question": "q", "answer": "#### 1"})
    for prepare, line, expected in (
        (
            GSM8K_SCRIPT,
            json.dumps({"question": "q", "answer": "1"}),
            "line 2 is no question .an answer that ends in '#### number'",
        ),
        (GSM8K_SCRIPT, "{", "line 2 is no question .JSONDecodeError"),
        (CSQA_SCRIPT, json.dumps({"question": {}}), "line 1 is no question .no answerKey"),
    ):
        (tmp_path / "x.jsonl").write_text(
            f"{good}\n{line}\n" if prepare == GSM8K_SCRIPT else f"{line}\n"
        )
        with pytest.raises(SystemExit, match=expected):
            call(
                prepare,
                monkeypatch,
                f"--source={tmp_path / 'x.jsonl'}",
                "--any_hash",
                f"--out={tmp_path}",
            )
        with pytest.raises(SystemExit, match="SHA-256 differs"):
            call(prepare, monkeypatch, f"--source={tmp_path / 'x.jsonl'}", f"--out={tmp_path}")
    assert not (tmp_path / "questions.jsonl").exists()


def test_gains_on_a_text_file_with_exported_weights_make_a_page_that_escapes(
    work, monkeypatch, capsys
):
    text = "if a < b & c > d: print('</script><b>é漢🙂')\n" * 8
    (work / "some.txt").write_text(text, "utf-8")
    flags = [
        "gains",
        f"--run={work / 'thinks'}",
        f"--text={work / 'some.txt'}",
        f"--out={work / 'gains'}",
        "--span=32",
    ]
    call("eval.py", monkeypatch, *flags, f"--base={work / 'base'}", "--device=cpu")
    page = (work / "gains" / "gains.html").read_text("utf-8")
    results = json.loads((work / "gains" / "results.json").read_text())
    spans = results["tokens"] // 32
    assert page.count('tabindex="0"') == results["tokens"] == spans * 32
    assert (
        "<b>" not in page
        and page.count("</script>") == 2
        and "http" not in page.replace("http-equiv", "")
    )
    rows = json.loads(page.split('id="data">')[1].split("</script>")[0])
    ids = load_tokenizer(work / "thinks").encode(text)
    assert "".join(row[0] for row in rows[:31]) == bytes(ids[1:32]).decode()
    nll = np.array([row[3] for row in rows])
    assert nll.mean() == pytest.approx(results["base"]["other_nll"], abs=1e-3)
    gain = nll - np.array([row[4] for row in rows])
    error = gain.std(ddof=1) / len(gain) ** 0.5
    assert results["gain"]["nats_per_token"] == pytest.approx(gain.mean(), abs=1e-3)
    assert results["gain"]["error"] == pytest.approx(error, rel=0.01), "of all tokens, not of spans"
    assert all(len(row) == 7 and np.isfinite(row[2:5]).all() for row in rows)
    thinking, tokenizer, *_ = load_model(work / "thinks")
    logits = thinking.model.logits(thinking.model(torch.tensor([ids[:32]])))[
        0
    ]  # the first span, without thoughts
    assert [row[5] for row in rows[:32]] == [
        tokenizer.words([i])[0] for i in logits.argmax(-1).tolist()
    ]
    assert isinstance(thinking, QuietSTaR)
    with pytest.raises(SystemExit, match="name a text with --text"):
        call("eval.py", monkeypatch, "gains", f"--run={work / 'thinks'}", "--device=cpu")
