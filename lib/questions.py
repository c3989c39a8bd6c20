"""
Zero-shot questions (section 5 of the paper): GSM8K and CommonsenseQA, all models on the same questions.

    python eval.py gsm8k --run=out/mine                        the run, and the base model it started from
    python eval.py gsm8k --run=out/mine --cot --votes=8        with a chain of thought and a majority vote
    python eval.py commonsense_qa --run=out/mine --control=out/mine_lm --n=200

Each question is asked without examples. What is counted, per question:

  soft     the "accuracy" of the authors' release: the probability of the right answer's tokens, each among the ten
           digits and the line end (CommonsenseQA: the five letters and the line end), multiplied
  greedy   is the answer right that the model writes when it always takes the likeliest token?
  letter   CommonsenseQA: is the right letter the likeliest of the five?
  text     CommonsenseQA: is the right answer's text the likeliest of the five, per byte, when no choices are shown?
  vote     with --cot: is the most frequent answer of `votes` sampled ones right?  sample: share of them that are
"""

import hashlib
import json
import re
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from lib.answers import NEXT, first_line, letter_in, majority, number_in, own_answer, right
from lib.asking import candidate, complete, continuation, likelihood, score
from lib.files import (
    check,
    kept,
    lock,
    parse_json,
    reading,
    refuse_another,
    replace_file,
    write_json,
)
from lib.parallel import pick_device
from lib.pictures import draw_scores, mean_and_error
from lib.runs import LoadConfig, last_run, load_to_think
from quiet_star import QuietSTaR

DIRECT, CHAIN = "Q: {question}\nA:", "Q: {question}\nA: Let's think step by step."
LETTERS = "ABCDE"


def first_line_is_over(text):
    """Is its first line, but for white space, complete?"""
    return "\n" in text.lstrip()


PAPER = {  # per cent, Mistral-7B; Quiet-STaR trained on OpenWebMath (section 5)
    "gsm8k": {"base": 5.9, "quiet_star": 10.9},
    "gsm8k --cot --votes=8": {"base": 40.6, "quiet_star": 47.7},
    "commonsense_qa": {"base": 36.3, "quiet_star": 47.2},
}


@dataclass
class QuestionsConfig:
    run: str = ""  # folder of the run, or of weights; empty: the last thinking run in out/
    base: str = ""  # folder of the base model; empty: the one the run started from
    control: str = ""  # folder of a third model: as many steps without thoughts, say; empty: none
    data: str = ""  # folder of the questions; empty: data/gsm8k or data/commonsense_qa
    out: str = ""  # folder to write; empty: one in the run's
    n: int = 0  # how many questions, drawn once and for all; 0: all
    cot: bool = False  # gsm8k: let the model reason step by step before it answers
    votes: int = 1  # with --cot: answers that are sampled for a majority vote; 1: one greedy answer
    temperature: float = 0.7  # with votes above 1: of sampling (thoughts are greedy)
    max_new_tokens: int = 0  # tokens of an answer; 0: 16, with --cot 256
    bos: bool = True  # begin with the token that begins a text, where the tokenizer has one
    batch_size: int = 32  # prompts that are read together
    seed: int = 1337  # of sampling
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one

    def __post_init__(self):
        if self.n < 0 or self.max_new_tokens < 0 or self.votes < 1 or self.batch_size < 1:
            raise ValueError(
                "n and max_new_tokens must not be negative, votes and batch_size at least 1"
            )
        if self.votes > 1 and not (self.cot and self.temperature > 0):
            raise ValueError(
                "several votes want --cot and a temperature above 0: without, all would be the same"
            )


def answer_ids(tokenizer, kind, bos):
    """Ids among which the release's score looks: those of the digits, or of the letters, and of the line end."""
    texts = ["0123456789"] if kind == "digits" else list(LETTERS)
    size, found = len(texts[0]) + 1, []
    for text in texts:
        ids, n = continuation(tokenizer, "A:", f" {text}\n", bos)
        if (
            n not in (size, size + 1)
            or "".join(tokenizer.words(ids)[-size:]).lstrip() != text + "\n"
        ):
            raise ValueError(
                f"this tokenizer does not give each of {text!r} and the line end a token of its own"
            )
        found += ids[-size:-1]
    return [*found, ids[-1]]


def soft_score(logits, true, among):
    """The release's score: of the true ids (n,) that are in `among`, the product of their probabilities in it."""
    share = logits[:, among].softmax(-1)  # (n, len(among))
    place = {int(i): at for at, i in enumerate(among)}
    return float(
        np.prod([float(share[row, place[i]]) for row, i in enumerate(true.tolist()) if i in place])
    )


def ask_gsm8k(who, questions, tokenizer, config, name):
    """GSM8K, direct: {"soft", "greedy", ...} by question; with a chain of thought: {"vote", "sample", ...}."""
    if config.cot:
        prompts = [CHAIN.format(**q) for q in questions for _ in range(config.votes)]
        temperature = config.temperature if config.votes > 1 else 0.0
        new, stop = config.max_new_tokens or 256, NEXT.search
    else:
        among = answer_ids(tokenizer, "digits", config.bos)
        pairs = [(DIRECT.format(**q), f" {q['answer']}\n") for q in questions]
        judge = partial(soft_score, among=among)
        soft = score(who, tokenizer, pairs, judge, config.bos, config.batch_size, f"{name}: soft")
        prompts, temperature = [DIRECT.format(**q) for q in questions], 0.0
        new, stop = config.max_new_tokens or 16, first_line_is_over
    how = new, temperature, config.seed, config.bos, config.batch_size, f"{name}: writing"
    written = complete(who, tokenizer, prompts, stop, *how)
    found = []
    for i, q in enumerate(questions):
        true = number_in(q["answer"])
        if config.cot:
            texts = [
                own_answer(text) for text, _ in written[i * config.votes : (i + 1) * config.votes]
            ]
            answers = [number_in(text) for text in texts]
            scores = {
                "vote": right(majority(answers), true),
                "sample": float(np.mean([right(a, true) for a in answers])),
            }
            found.append(
                {
                    **scores,
                    "answers": [a if a is None else str(a) for a in answers],
                    "written": texts,
                }
            )
        else:
            text, thought = written[i]
            greedy = right(number_in(first_line(text)), true)
            found.append({"soft": soft[i], "greedy": greedy, "written": text, "thought": thought})
    return found


def ask_commonsense_qa(who, questions, tokenizer, config, name):
    """CommonsenseQA: {"soft", "greedy", "letter", "text", ...}."""
    among = answer_ids(tokenizer, "letters", config.bos)
    size, letters = config.batch_size, among[:-1]

    def prompt(q):
        choices = "\n".join(
            f"({letter}) {text}" for letter, text in zip(LETTERS, q["choices"], strict=True)
        )
        return DIRECT.format(question=f"{q['question']}\n{choices}")

    def judge(logits, true):
        return soft_score(logits, true, among), LETTERS[int(logits[-2, letters].argmax())]

    pairs = [(prompt(q), f" {q['answer']}\n") for q in questions]
    judged = score(who, tokenizer, pairs, judge, config.bos, size, f"{name}: soft")
    texts = [(DIRECT.format(**q), f" {choice}") for q in questions for choice in q["choices"]]
    log_probs = [
        x for x, _ in score(who, tokenizer, texts, likelihood, config.bos, size, f"{name}: text")
    ]
    how = config.max_new_tokens or 16, 0.0, config.seed, config.bos, size, f"{name}: writing"
    written = complete(who, tokenizer, [prompt(q) for q in questions], first_line_is_over, *how)

    found = []
    for i, q in enumerate(questions):
        five = log_probs[5 * i : 5 * i + 5]
        per_byte = [x / len(choice.encode()) for x, choice in zip(five, q["choices"], strict=True)]
        soft, letter = judged[i]
        scores = {
            "soft": soft,
            "greedy": letter_in(written[i][0], q["choices"]),
            "letter": letter,
            "text": LETTERS[int(np.argmax(per_byte))],
        }
        scores |= {key: right(scores[key], q["answer"]) for key in ("greedy", "letter", "text")}
        more = {
            "letter_chosen": letter,
            "log_p_of_texts": five,
            "written": written[i][0],
            "thought": written[i][1],
        }
        found.append(scores | more)
    return found


def load_questions(kind, folder, n):
    """The questions that prepare.py left in a folder, or n of them: always the same, whatever n. Raises ValueError."""
    path, questions = Path(folder) / "questions.jsonl", []
    if not path.exists():
        raise ValueError(f"no questions in {folder}: python {folder}/prepare.py")
    with reading(path, "cannot be used"):
        for number, line in enumerate(path.read_text("utf-8").split("\n"), 1):
            if line:
                with reading(f"line {number}", "is no question"):
                    questions.append(parse_json(line, {"question": str, "answer": str}))
                    check_question(kind, questions[-1])
        if not questions:
            raise ValueError("it holds none")
    if n > len(questions):
        raise ValueError(f"--n={n}, but {path} has {len(questions)} questions")
    order = np.random.default_rng(0).permutation(len(questions))[: n or None]
    return [{"number": int(i), **questions[i]} for i in sorted(order)]


def check_question(kind, q):
    """Raise ValueError if no answer to a question could be told right from wrong."""
    if kind == "gsm8k" and number_in(q["answer"]) is None:
        raise ValueError(f"its answer {q['answer'][:40]!r} holds no number")
    if kind == "commonsense_qa":
        check(q, {"choices": [str]}, "it")
        choices = [choice for choice in q["choices"] if choice.strip()]
        if not len(choices) == len(q["choices"]) == len(LETTERS) or q["answer"] not in [*LETTERS]:
            raise ValueError(
                "five choices that are not empty, and one of A to E as the answer, are wanted"
            )


def compare(x, y):
    """Paired difference y - x of two models' scores on the same questions: its mean and 95 % interval."""
    difference = np.asarray(y) - np.asarray(x)
    error = (
        float(difference.std(ddof=1) / len(difference) ** 0.5)
        if len(difference) > 1
        else float("nan")
    )
    mean = float(difference.mean())
    return {"mean": mean, "low": mean - 1.96 * error, "high": mean + 1.96 * error}


def ask_all(kind, config, load=None):
    """Put all questions to all models; write the table, each question's record and a picture. Raises ValueError."""
    run, device, load = config.run or last_run(), pick_device(config.device), load or LoadConfig()
    if config.cot and kind != "gsm8k":
        raise ValueError("--cot is for gsm8k")
    start, folder = time.perf_counter(), Path(config.data or f"data/{kind}")
    questions = load_questions(kind, folder, config.n)
    ask = {"gsm8k": ask_gsm8k, "commonsense_qa": ask_commonsense_qa}[kind]
    title = f"{kind}{f' --cot --votes={config.votes}' if config.cot else ''}"

    model, tokenizer, settings, step = load_to_think(run, device, load)
    base = config.base or (settings or {}).get("train", {}).get("init_from", "")
    default = (
        Path(run) / f"eval_step{step:06d}"
        if settings
        else Path("out") / f"eval_{Path(run).resolve().name}"
    )
    out = Path(config.out or default)
    name = re.sub(r"[ =]+", "_", title.replace("--", "")) + (f"_n{config.n}" if config.n else "")
    sha256 = hashlib.sha256((folder / "questions.jsonl").read_bytes()).hexdigest()
    asked = {
        **asdict(config),
        **asdict(load),
        "run": str(run),
        "base": base,
        "step": step,
        "questions": str(folder),
        "sha256": sha256,
    }
    asked = {
        key: value for key, value in asked.items() if key not in ("out", "device", "batch_size")
    }
    refuse_another(out / f"{name}.json", asked)
    must_exist(base, config.control)
    out.mkdir(parents=True, exist_ok=True)
    _held = lock(out, "measuring")  # until this function returns

    def answers(row, who):
        """Of one model: kept as soon as they are there, so that nothing is asked twice if the rest is broken off."""
        make = partial(ask, who, questions, tokenizer, config, row)
        return kept(out / f"{name}_{row}.part.json", asked, make)

    modes = (
        (("not_thinking", False), ("quiet_star", True))
        if isinstance(model, QuietSTaR)
        else (("model", False),)
    )
    own = {
        row: answers(row, candidate(model, thinking, None, load.thought_temperature, config.seed))
        for row, thinking in modes
    }
    del model  # one model at a time is in memory
    scores = {}  # by model: [dict of scores] by question
    for row, other in (("base", base), ("control", config.control)):
        if other and other != str(run):
            model, its_tokenizer, _, _ = load_to_think(other, device, load)
            if its_tokenizer.to_json() != tokenizer.to_json():
                raise ValueError(f"the model in {other} has another tokenizer than the run")
            scores[row] = answers(row, candidate(model, False))
            del model
    scores |= own

    first = next(iter(scores))
    metrics = [key for key, value in scores[first][0].items() if isinstance(value, float)]
    columns = {
        row: {m: [record[m] for record in records] for m in metrics}
        for row, records in scores.items()
    }
    results = {"n": len(questions), "paper_percent": PAPER.get(title), "asked": asked}
    results["rows"] = {
        row: {m: mean_and_error(x) for m, x in by.items()} for row, by in columns.items()
    }
    results["minus_" + first] = {
        row: {m: compare(columns[first][m], x) for m, x in by.items()}
        for row, by in columns.items()
        if row != first
    }
    results["seconds"] = time.perf_counter() - start
    records = [{**q, **{row: scores[row][i] for row in scores}} for i, q in enumerate(questions)]

    lines = "".join(json.dumps(record) + "\n" for record in records)
    replace_file(out / f"{name}.jsonl", lines.encode())
    draw_scores(results["rows"], f"{title}, {len(questions):,} questions", out / f"{name}.png")
    write_json(out / f"{name}.json", results)
    for row in scores:
        (out / f"{name}_{row}.part.json").unlink(missing_ok=True)
    print_scores(title, results, first)
    print(f"table, picture and every question with its answers: {out / name}.json, .png, .jsonl")
    return results


def must_exist(*folders):
    """Said before the work, not after it. Raises ValueError."""
    for folder in folders:
        if folder and not Path(folder).is_dir():
            raise ValueError(
                f"there is no model in {folder}, which the run is to be compared with: see --base"
            )


def print_scores(title, results, first):
    rows, differences = results["rows"], results["minus_" + first]
    metrics = list(rows[first])
    print(f"\n{title}: {results['n']:,} questions, zero-shot; per cent ± standard error")
    print(f"{'':24}" + "".join(f"{m:>24}" for m in metrics))
    for row, by in rows.items():
        print(
            f"{row:24}"
            + "".join(f"{f'{100 * by[m][0]:.2f} ± {100 * by[m][1]:.2f}':>24}" for m in metrics)
        )
    for row, by in differences.items():
        cells = (
            f"{100 * d['mean']:+.2f} [{100 * d['low']:+.2f}, {100 * d['high']:+.2f}]"
            for d in by.values()
        )
        print(f"{f'{row} - {first}':24}" + "".join(f"{cell:>24}" for cell in cells))
    if differences:
        print("(differences on the same questions, with their 95 % intervals)")
    if results["paper_percent"]:
        paper = results["paper_percent"]
        print(f"the paper, Mistral-7B: base {paper['base']}, Quiet-STaR {paper['quiet_star']}")
