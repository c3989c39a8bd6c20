"""Kinds of files that hold texts, tokenizers, questions and results: as model_kinds.py."""

import base64
import bz2
import gzip
import io
import json
import lzma
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import model_kinds
import torch
from byte_tokenizer import write_byte_tokenizer
from mutants import Kind
from tiny_runs import COMMON, SHAPE

import train as trainer
from data import text as text_module
from data.commonsense_qa import prepare as csqa
from data.dataset import open_dataset
from data.download import prepare_questions
from data.gsm8k import prepare as gsm8k
from data.text import TokenizeConfig, read_documents, report
from data.textfile import prepare as textfile
from eval import held_out_spans
from lib import questions
from lib.config import from_cli
from lib.files import refuse_another, write_json
from lib.questions import QuestionsConfig, ask_all, load_questions
from lib.tokenizer import CharTokenizer, from_json, load_tokenizer
from lib.weights import save_mistral

WORDS = "Es war einmal ein König, der hatte 12 Töchter.\n\n  naïve 漢字 🙂 x=3.14; don't  stop\t!"

# ----------------------------------------------------------------------------------------------------------------------
# tokenizers


def tells(tokenizer):
    """What a tokenizer makes of texts and ids."""
    ids, words = tokenizer.encode(WORDS, bos=True), tokenizer.words(range(tokenizer.vocab_size))
    special = [tokenizer.bos_id, tokenizer.eos_id, *sorted(tokenizer.ends), tokenizer.vocab_size]
    assert all(0 <= i < tokenizer.vocab_size for i in ids), "an id that is none"
    return {"ids": ids, "back": tokenizer.decode(ids), "words": words, "special": special}


def byte_bpe():
    write_byte_tokenizer("my_tokenizer")
    path = Path("my_tokenizer", "tokenizer.json")
    file = json.loads(path.read_text("utf-8"))
    file["model"]["vocab"] |= {"he": 258, "in": 259, "ein": 260}
    file["model"]["merges"] = ["h e", ["i", "n"], "e in"]
    file["added_tokens"] += [{"id": 261, "content": "König", "special": False, "lstrip": False}]
    path.write_text(json.dumps(file), "utf-8")


def tekken():
    words = [bytes([b]) for b in range(256)] + [b"in", b"ein", "ö".encode()]
    vocab = [
        {"rank": i, "token_bytes": base64.b64encode(w).decode(), "token_str": None}
        for i, w in enumerate(words)
    ]
    special = [
        {"rank": i, "token_str": text, "is_control": True}
        for i, text in enumerate(("<unk>", "<s>", "</s>"))
    ]
    config = {
        "pattern": r"\s?\w+|\W",
        "default_vocab_size": 262,
        "default_num_special_tokens": 3,
        "version": "v3",
    }
    Path("my_tokenizer").mkdir()
    content = json.dumps({"config": config, "vocab": vocab, "special_tokens": special})
    Path("my_tokenizer", "tekken.json").write_text(content)


def sentencepiece_model():
    import sentencepiece

    model = io.BytesIO()
    how = dict(
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
    )
    how |= dict(model_type="bpe", vocab_size=310, byte_fallback=True, minloglevel=2)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS.split("\n") * 9), model_writer=model, **how
    )
    Path("my_tokenizer").mkdir()
    Path("my_tokenizer", "tokenizer.model").write_bytes(model.getvalue())


def alphabet():
    CharTokenizer("".join(sorted(set(WORDS)))).save("my_tokenizer")


def tokenizer():
    return tells(load_tokenizer("my_tokenizer"))


def characters():
    return load_tokenizer("my_tokenizer").to_json()


def byte_bpe_of_a_run():
    byte_bpe()
    Path("known.json").write_text(json.dumps(load_tokenizer("my_tokenizer").to_json()))


def tokenizer_of_a_run():
    """A run knows the checksum of its tokenizer's file."""
    return tells(from_json(json.loads(Path("known.json").read_text()), "my_tokenizer"))


# ----------------------------------------------------------------------------------------------------------------------
# datasets and texts


def begins_to_train():
    """What a step of training reads of a dataset, and its held-out answers."""
    train, shape, quiet, given = trainer.settings_from(
        [
            *COMMON,
            *SHAPE,
            "--data=my_data",
            "--init_from=",
            "--objective=lm",
            "--separate_documents",
            "--parallel=none",
        ]
    )
    with trainer.ExitStack() as held:
        job = trainer.set_up(train, shape, quiet, given, held)
        loss = trainer.one_step(train, job, 0)["loss"]
    _, places = held_out_spans(job.held_out, 8, 4)
    keys = ("tokenizer", "vocab_size", "document_end", "answers")
    about = {key: job.data.meta.get(key) for key in keys}
    return {"loss": loss, "tokens": torch.tensor(job.data.tokens.tolist()), "about": about,
            "places": places}  # fmt: skip


def prepared():
    """A corpus made of a text file."""
    write_byte_tokenizer("tokenizer")
    Path("book.txt").write_text("\n\n\n".join(f"{WORDS} {n}" for n in range(40)), "utf-8")
    prepare()


def interrupted():
    """The same, broken off in the middle."""

    def broken(*args):
        yield from islice(islice(*args), 25)
        raise KeyboardInterrupt

    with patch.object(textfile, "islice", broken), suppress(SystemExit):
        prepared()


def prepare():
    """What the script leaves, whatever was there before."""
    config = textfile.TextfileConfig(source="book.txt", out="my_data")
    tokenize = TokenizeConfig(tokenizer="tokenizer", processes=1, val_share=0.2)
    with patch.object(text_module, "BATCH", 300), patch.object(text_module, "SAVE_EVERY", 2):
        report("my_data", lambda: textfile.prepare(config, tokenize))
    return {name: open_dataset("my_data", name).tokens.tolist() for name in ("train", "val")}


def texts():
    Path("my_text").mkdir()
    plain = ("\n\n\n".join([WORDS] * 3)).encode()
    lines = "".join(
        json.dumps({"n": n, "text": WORDS, "more": [None]}) + "\n" for n in range(3)
    ).encode()
    files = {
        "a.txt": plain,
        "b.jsonl": lines,
        "c.txt.gz": gzip.compress(plain),
        "d.jsonl.xz": lzma.compress(lines),
    }
    for name, content in (files | {"e.txt.bz2": bz2.compress(plain)}).items():
        Path("my_text", name).write_bytes(content)


def text_kind(name, *more):
    def read():
        return [text for text, _ in read_documents([Path("my_text", name)])]

    return Kind(f"text {name[1:]}", texts, f"my_text/{name}", read, *more)


# ----------------------------------------------------------------------------------------------------------------------
# questions and results


GSM8K = [
    {"question": f"What is {n} plus 10?", "answer": f"Think.\n#### {n + 10}"} for n in range(3)
]
CHOICES = [
    {"label": letter, "text": text}
    for letter, text in zip("ABCDE", "up here off no in".split(), strict=True)
]
CSQA = [
    {"answerKey": a, "id": "x", "question": {"stem": "Where?", "choices": CHOICES}} for a in "ACE"
]
SETS = {"gsm8k": (gsm8k, GSM8K), "commonsense_qa": (csqa, CSQA)}


def sources():
    Path("my_source").mkdir()
    for name, (_, lines) in SETS.items():
        Path("my_source", f"{name}.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines)
        )


def prepared_questions(name):
    """A source is prepared; and what was accepted is read without complaint."""
    with patch("sys.argv", ["prepare.py", f"--source=my_source/{name}.jsonl", "--any_hash"]):
        prepare_questions("", Path("out"), "", "", None, SETS[name][0].question)
    return load_questions(name, "out", 0)


def question_files():
    for name, (module, lines) in SETS.items():
        Path(name, "my_questions").mkdir(parents=True)
        content = "".join(json.dumps(module.question(line)) + "\n" for line in lines)
        Path(name, "my_questions", "questions.jsonl").write_text(content)


def asked_questions(name):
    """Questions as they are read, and as they are written when all is done."""
    found = load_questions(name, f"{name}/my_questions", 2)
    "".join(json.dumps(question, ensure_ascii=False) for question in found).encode()
    return found


def evaluation():
    """An evaluation that is over for all models, but for its table."""
    question_files()
    save_mistral(model_kinds.transformer(), "my_weights")
    with suppress(KeyboardInterrupt):
        evaluate(side_effect=KeyboardInterrupt)


def done_evaluation():
    evaluation()
    evaluate()


def evaluate(**picture):
    config = QuestionsConfig(
        run="my_weights", data="gsm8k/my_questions", out="my_results", max_new_tokens=2
    )
    with patch.object(questions, "draw_scores", **picture):
        found = ask_all("gsm8k", config)
    return {**found, "seconds": 0}


ASKED = {"run": "my_run", "texts": 512, "span": 0, "text": ""}


def results():
    Path("my_results").mkdir()
    rows = {"base": {"answer_nll": 1.5}, "tokens": 100, "gain": {"by_difficulty": [0.1, None]}}
    write_json("my_results/results.json", {**rows, "asked": ASKED})


def preset():
    lines = ('out = "out/x"', 'objective = "lm"', "span = 12", "lr = 1e-4", "recompute = true", "sliding_window = 7",
             "norm_eps = 1e-5", "thought_len = 2", "thought_temperature = 1.0")  # fmt: skip
    Path("my_preset.toml").write_text("".join(f"{line}\n" for line in lines))


def read_preset():
    *made, given = from_cli(
        "", *map(type, trainer.settings_from([])[:3]), argv=["--config=my_preset.toml"]
    )
    return [*map(asdict, made), given]


KINDS = [
    Kind("tokenizer.model", sentencepiece_model, "my_tokenizer/tokenizer.model", tokenizer),
    Kind("tekken.json", tekken, "my_tokenizer/tekken.json", tokenizer, "json"),
    Kind("tokenizer.json", byte_bpe, "my_tokenizer/tokenizer.json", tokenizer, "json"),
    Kind("tokenizer.json of a run", byte_bpe_of_a_run, "my_tokenizer/tokenizer.json", tokenizer_of_a_run, "json", True),
    Kind("alphabet.json", alphabet, "my_tokenizer/alphabet.json", characters, "json"),
    Kind("meta.json", model_kinds.dataset, "my_data/meta.json", begins_to_train, "json"),
    Kind("train.bin", model_kinds.dataset, "my_data/train.bin", begins_to_train, "bytes", True),
    Kind("meta.json, prepared again", prepared, "my_data/meta.json", prepare, "json"),
    Kind("train.bin, prepared again", prepared, "my_data/train.bin", prepare, "bytes", True),
    Kind("progress.json", interrupted, "my_data/progress.json", prepare, "json"),
    Kind("train.bin, half prepared", interrupted, "my_data/train.bin", prepare, "bytes", True),
    text_kind("a.txt"),
    text_kind("b.jsonl", "jsonl"),
    text_kind("c.txt.gz", "bytes", True),
    text_kind("d.jsonl.xz", "bytes", True),
    text_kind("e.txt.bz2", "bytes", True),
    Kind("source of gsm8k", sources, "my_source/gsm8k.jsonl", partial(prepared_questions, "gsm8k"), "jsonl"),
    Kind("source of commonsense_qa", sources, "my_source/commonsense_qa.jsonl",
         partial(prepared_questions, "commonsense_qa"), "jsonl"),
    Kind("questions.jsonl of gsm8k", question_files, "gsm8k/my_questions/questions.jsonl",
         partial(asked_questions, "gsm8k"), "jsonl"),
    Kind("questions.jsonl of commonsense_qa", question_files, "commonsense_qa/my_questions/questions.jsonl",
         partial(asked_questions, "commonsense_qa"), "jsonl"),
    Kind("table of an evaluation", done_evaluation, "my_results/gsm8k.json", evaluate, "json"),
    Kind("results.json", results, "my_results/results.json",
         lambda: refuse_another("my_results/results.json", ASKED), "json"),
    Kind("preset", preset, "my_preset.toml", read_preset, "toml"),
]  # fmt: skip
