"""
Zero-shot questions (section 5 of the paper): GSM8K and CommonsenseQA, all models on the same ones.

    python eval.py gsm8k --run=out/mine                    the run, and the base it started from
    python eval.py gsm8k --run=out/mine --cot --votes=8    a chain of thought and a majority vote
    python eval.py commonsense_qa --run=out/mine --n=200   200 of the questions

The scores of a question, and the paper's results with Mistral-7B (base -> Quiet-STaR):

  soft     the product of the probabilities of the right answer's tokens, each among the ten digits
           (CommonsenseQA: the letters A to E) and the line end, as in the authors' release
           (GSM8K 0.059 -> 0.109, CommonsenseQA 0.363 -> 0.472)
  greedy   is each of these tokens the likeliest one among them?
  vote     --cot: is the most frequent of the sampled answers right? (8 votes: 0.406 -> 0.477)
"""

import json
import zlib
from codecs import getincrementaldecoder
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lib.answers import is_over, majority, number_in, own_answer
from lib.files import parse_json, reading, replace_file, write_json
from lib.pictures import mean_and_error, print_rows
from lib.subject import Subject, SubjectConfig
from quiet_star import QuietSTaR

DIGITS, LETTERS = "0123456789", "A B C D E"


@dataclass
class QuestionsConfig(SubjectConfig):
    data: str = ""  # folder of the questions; empty: data/gsm8k or data/commonsense_qa
    n: int = 0  # how many questions, drawn once and for all; 0: all
    cot: bool = False  # gsm8k: let the model reason step by step before it answers
    votes: int = 1  # with --cot: answers sampled for a majority vote; 1: one greedy answer
    temperature: float = 0.7  # with votes above 1: of sampling
    max_new_tokens: int = 256  # with --cot: tokens of an answer, at most
    seed: int = 1337  # of sampling

    def __post_init__(self):
        if min(self.max_new_tokens, self.votes, self.batch_size) < 1:
            raise ValueError("max_new_tokens, votes and batch_size must be at least 1")
        if self.votes > 1 and not (self.cot and self.temperature > 0):
            raise ValueError("votes above 1 need --cot and a temperature above 0")


class Respondent:
    """A model that is asked: a Transformer, or a QuietSTaR with its thoughts or without. Prompts
    and answers are lists of texts; all texts of a list have equally many tokens."""

    def __init__(self, model, tokenizer, thinking, thought_temperature=0.0):
        changes = dict(n_thoughts=1, n_true=1, thought_temperature=thought_temperature)
        self.quiet = model.with_settings(**changes) if thinking else None
        self.model = model.model if isinstance(model, QuietSTaR) else model
        self.tokenizer, self.device = tokenizer, next(self.model.parameters()).device

    def encode(self, texts):
        rows = [self.tokenizer.encode(text, bos=True) for text in texts]
        if not all(rows):
            raise ValueError("a prompt is empty, and this tokenizer has no id that begins a text")
        return torch.tensor(rows, device=self.device)  # (B, T)

    @torch.no_grad()
    def read(self, prompts, answers):
        """Read each prompt with its answer and think before each token of the answer: ids of the
        answers (B, n), and the logits (B, n, V) that predict them. Raises ValueError."""
        start = self.encode(prompts)
        tokens = self.encode([a + b for a, b in zip(prompts, answers, strict=True)])
        if not torch.equal(tokens[:, : start.shape[1]], start) or tokens.shape == start.shape:
            raise ValueError("an answer is empty, or the tokenizer joins it with the prompt's end")
        places = torch.arange(start.shape[1] - 1, tokens.shape[1] - 1, device=self.device)
        if self.quiet:
            predicted = self.quiet.predict(tokens, places.expand(len(tokens), -1))
            hidden = predicted.h_mixed[:, 0, :, -1]  # (B, n, C)
        else:
            hidden = self.model(tokens)[:, places]
        return tokens[:, places + 1], self.model.logits(hidden).float()

    @torch.no_grad()
    def write(self, prompts, max_new_tokens, temperature, is_over):
        """What the model writes after each prompt, texts: at most max_new_tokens, and only until
        each is ended by the model or by is_over(text, number of characters that it was before)."""
        how = self.encode(prompts), max_new_tokens, temperature
        if self.quiet:
            stream = self.quiet.speak(*how, self.quiet.config.thought_temperature)
            stream = (token for token, thought, gate in stream)
        else:
            stream = self.model.stream(*how)
        decoders = [getincrementaldecoder("utf-8")("replace") for _ in prompts]
        texts, going = [""] * len(prompts), set(range(len(prompts)))
        for new in stream:
            for i, token in enumerate(new.tolist()):
                seen = len(texts[i])
                if i in going and token not in self.tokenizer.ends:
                    texts[i] += decoders[i].decode(self.tokenizer.piece(token))
                if token in self.tokenizer.ends or is_over(texts[i], seen):
                    going.discard(i)
            if not going:
                break
        return texts


def single_ids(tokenizer, symbols):
    """The ids of symbols as an answer's tokens, and last that of the line end. Raises ValueError if
    the tokenizer does not give each an id of its own."""
    ids = tokenizer.encode(f"A: {symbols}\n")[len(tokenizer.encode("A:")) :]
    words = [word.strip(" ") for word in tokenizer.words(ids)]
    if [word for word in words if word] != [*symbols.replace(" ", ""), "\n"]:
        raise ValueError(f"this tokenizer does not give each of {symbols!r} an id of its own")
    return [id for id, word in zip(ids, words, strict=True) if word]


def soft_and_greedy(ids, logits, among):
    """These scores (B,), (B,) of answers' ids (B, n) by their logits (B, n, V). Only ids that are
    `among` those of `single_ids` count: commas do not."""
    log_p = logits[..., among].log_softmax(-1)  # (B, n, len(among))
    is_true = ids[..., None] == torch.tensor(among, device=ids.device)
    likeliest = is_true.gather(-1, log_p.argmax(-1, keepdim=True)) | ~is_true.any(-1, keepdim=True)
    return torch.where(is_true, log_p, 0).sum((1, 2)).exp(), likeliest.all(1)[:, 0].float()


def prompt_of(q, cot=False):
    pairs = zip(LETTERS.split(), q.get("choices", ()), strict=False)  # GSM8K has no choices
    choices = "".join(f"\n({letter}) {text}" for letter, text in pairs)
    return f"Q: {q['question']}{choices}\nA:" + (" Let's think step by step." if cot else "")


def ask_directly(respondent, questions, config):
    """A record of scores for each question."""
    prompts, answers = [prompt_of(q) for q in questions], [f" {q['answer']}\n" for q in questions]
    among = single_ids(respondent.tokenizer, LETTERS if "choices" in questions[0] else DIGITS)
    scores = soft_and_greedy(*respondent.read(prompts, answers), among)
    return [{"soft": soft, "greedy": greedy} for soft, greedy in torch.stack(scores, 1).tolist()]


def ask_to_reason(respondent, questions, config):
    """The same with a chain of thought before each answer, and what was written."""
    votes, records = config.votes, []
    prompts = [prompt_of(q, cot=True) for q in questions for _ in range(votes)]
    how = config.max_new_tokens, config.temperature if votes > 1 else 0.0
    texts = respondent.write(prompts, *how, is_over)
    for i, q in enumerate(questions):
        written = [own_answer(text) for text in texts[i * votes : (i + 1) * votes]]
        vote = float(majority([number_in(text) for text in written]) == number_in(q["answer"]))
        records.append({"vote": vote, "written": written})
    return records


def load_questions(kind, folder, n=0):
    """The questions that prepare.py left in a folder, or n of them, drawn once and for all: dicts,
    each with its `number`. Raises ValueError."""
    path, questions = Path(folder) / "questions.jsonl", []
    wanted = {"question": str, "answer": str} | ({} if kind == "gsm8k" else {"choices": [str]})
    if not path.exists():
        raise ValueError(f"there is no {path}: python data/{kind}/prepare.py makes it")
    with reading(path):
        lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines):
        with reading(f"{path}, line {number + 1},", "is no question"):
            q = {**parse_json(line, wanted), "number": number}
            if kind == "gsm8k" and number_in(q["answer"]) is None:
                raise ValueError("its answer is no number")
            if kind != "gsm8k" and (len(q["choices"]) != 5 or q["answer"] not in LETTERS.split()):
                raise ValueError("five choices, and a letter as the answer, are wanted")
            questions.append(q)
    if len(questions) < max(n, 1):
        raise ValueError(f"{path} holds {len(questions)} questions: too few for --n={n}")
    drawn = np.random.default_rng(0).permutation(len(questions))[: n or None]
    return [questions[i] for i in sorted(drawn)]


def records_of(name, respondent, questions, config, path):
    """The records of one model, in the order of the questions. They are appended to a file batch by
    batch, and what it holds already is not asked again."""
    with reading(path):
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        lines = [line for line in lines if line.endswith("\n")]  # not what was cut by a full disk
        done = {(record["model"], record["number"]): record for record in map(json.loads, lines)}
    replace_file(path, "".join(lines).encode())
    encode, by_length = respondent.tokenizer.encode, defaultdict(list)
    for q in questions:
        prompt = prompt_of(q, config.cot)
        by_length[len(encode(prompt)), len(encode(f"{prompt} {q['answer']}\n"))].append(q)
    ask = ask_to_reason if config.cot else ask_directly
    size = max(1, config.batch_size // config.votes)
    longest_first = [some for _, some in sorted(by_length.items(), reverse=True)]
    batches = [some[i : i + size] for some in longest_first for i in range(0, len(some), size)]
    batches = [batch for batch in batches if any((name, q["number"]) not in done for q in batch)]
    for batch in tqdm(batches, desc=name, leave=False, disable=None):
        torch.manual_seed(config.seed + batch[0]["number"])  # the same after an interruption
        for q, record in zip(batch, ask(respondent, batch, config), strict=True):
            done[name, q["number"]] = {"model": name, **q, **record}
        with open(path, "a") as file:
            file.write("".join(json.dumps(done[name, q["number"]]) + "\n" for q in batch))
    return [done[name, q["number"]] for q in questions]


def ask_all(kind, config, load=None):
    """Put all questions to all models: a table (results.json) and every answer (answers.jsonl). The
    same call again, after an interruption, asks what is left. Raises ValueError."""
    if config.cot and kind != "gsm8k":
        raise ValueError("--cot is for gsm8k")
    questions = load_questions(kind, config.data or f"data/{kind}", config.n)
    subject = Subject(config, load)
    name = f"{kind}_cot_votes{config.votes}" if config.cot else kind
    name += f"_n{config.n}" if config.n else ""
    out, asked = subject.claim(name, checksum=zlib.crc32(json.dumps(questions).encode()))
    if not (out / "results.json").exists():
        write_json(out / "results.json", {"asked": asked})
    results = {"n": len(questions), "rows": {}, "asked": asked}

    def ask(row, model, tokenizer, thinking=False):
        respondent = Respondent(model, tokenizer, thinking, subject.load.thought_temperature)
        records = records_of(row, respondent, questions, config, out / "answers.jsonl")
        scores = [score for score in ("soft", "greedy", "vote") if score in records[0]]
        results["rows"][row] = {x: mean_and_error([r[x] for r in records]) for x in scores}

    ask("without_thoughts", subject.model, subject.tokenizer)
    if isinstance(subject.model, QuietSTaR):
        ask("quiet_star", subject.model, subject.tokenizer, thinking=True)
    subject.model = None  # one model at a time is in memory
    if subject.base:
        ask("base", *subject.read(subject.base)[:2])
    write_json(out / "results.json", results)
    title = f"{out}: {len(questions):,} questions, zero-shot; mean ± standard error"
    print_rows(title, results["rows"], digits=4)
    return results
