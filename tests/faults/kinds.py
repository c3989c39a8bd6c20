"""The kinds of file that a user hands to the project: samples of all, and how each is read."""

import base64
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from byte_tokenizer import write_byte_tokenizer
from safetensors.torch import load_file
from tiny_runs import SHAPE, as_typed, go
from transformers import MistralConfig, MistralForCausalLM

from beyond.kinds import ThinkingConfig
from data.dataset import write_dataset
from eval import GainsConfig
from lib.config import from_cli
from lib.export import export
from lib.questions import QuestionsConfig, load_questions
from lib.runs import LoadConfig, load_model, read_log
from lib.tokenizer import CharTokenizer, load_tokenizer
from model import ModelConfig
from quiet_star import QuietSTaR, generate_with_thoughts
from sample import SampleConfig
from train import TrainConfig

MY = Path("my")  # all samples lie in this folder
WORDS = "Es war einmal ein König, der hatte 12 Töchter.\n\n  naïve 漢字 🙂 x=3.14; don't  stop\t!"
THINK = ["--thought_len=2", "--lr=0.01", "--eval_every=0", "--save_every=9"]
GSM8K = [{"question": f"{n} plus 1?", "answer": f"Add.\n#### {n + 1}"} for n in range(3)]
CHOICES = [{"label": letter, "text": f"in {letter}"} for letter in "ABCDE"]
CSQA = [{"answerKey": a, "question": {"stem": "Where?", "choices": CHOICES}} for a in "ACE"]
HUB_SHAPE = dict(hidden_size=16, num_hidden_layers=1, intermediate_size=24, vocab_size=6)
HUB_SHAPE |= dict(num_attention_heads=2, num_key_value_heads=1, head_dim=8)
SCRIPTS = {
    "train": (TrainConfig, ModelConfig, ThinkingConfig),
    "sample": (SampleConfig, LoadConfig),
    "gains": (GainsConfig, LoadConfig),
    "questions": (QuestionsConfig, LoadConfig),
}


def write(name, text):
    (MY / name).parent.mkdir(parents=True, exist_ok=True)
    (MY / name).write_text(text, "utf-8")


def json_lines(values):
    return "".join(json.dumps(value) + "\n" for value in values)


def make_samples():
    """Write every sample below my/."""
    ids = np.random.default_rng(0).integers(0, 6, 600)
    write_dataset(MY / "data", {"train": ids, "val": ids[:100]}, CharTokenizer("abcde\n"), 5)
    go(MY, "--objective=lm", "--init_from=", "--out=base", "--max_steps=1", *SHAPE)
    go(MY, *THINK, "--out=run", "--max_steps=2")
    export(MY / "run", MY / "official")
    hub_model = MistralForCausalLM(MistralConfig(**HUB_SHAPE))
    for name in ("hub", "bin"):
        shutil.copytree(MY / "official", MY / name)
        (MY / name / "params.json").unlink()
        (MY / name / "consolidated.00.pth").unlink()
        hub_model.save_pretrained(MY / name)
    shard = (MY / "hub" / "model.safetensors").rename(MY / "hub" / "model-1.safetensors")
    weights = load_file(shard)
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, shard.name)}
    write("hub/model.safetensors.index.json", json.dumps(index))
    torch.save(weights, MY / "bin" / "pytorch_model.bin")
    (MY / "bin" / "model.safetensors").unlink()

    CharTokenizer("".join(sorted(set(WORDS)))).save(MY / "alphabet")
    path = write_byte_tokenizer(MY / "bpe")
    file = json.loads(path.read_text("utf-8"))
    file["model"]["vocab"] |= {"he": 258, "in": 259, "ein": 260}
    file["model"]["merges"] = ["h e", ["i", "n"], "e in"]
    path.write_text(json.dumps(file), "utf-8")
    tokens = [bytes([b]) for b in range(256)] + [b"in", b"ein", "ö".encode()]
    vocab = [{"rank": i, "token_bytes": base64.b64encode(x).decode()} for i, x in enumerate(tokens)]
    special = [{"rank": i, "token_str": x} for i, x in enumerate(("<unk>", "<s>", "</s>"))]
    config = {"pattern": r"\s?\w+|\W", "default_vocab_size": 262, "default_num_special_tokens": 3}
    tekken = {"config": config | {"version": "v3"}, "vocab": vocab, "special_tokens": special}
    write("tekken/tekken.json", json.dumps(tekken))
    (MY / "pieces").mkdir()
    how = dict(model_type="bpe", vocab_size=310, byte_fallback=True, minloglevel=2)
    how |= dict(normalization_rule_name="identity", remove_extra_whitespaces=False)
    how |= dict(model_prefix="my/pieces/tokenizer", sentence_iterator=iter(WORDS.split("\n") * 9))
    sentencepiece.SentencePieceTrainer.train(**how)

    write("book.txt", "\n\n\n".join(f"{WORDS} {n}" for n in range(9)))
    write("book.jsonl", json_lines({"text": f"{WORDS} {n}", "more": [None]} for n in range(9)))
    write("gsm8k.jsonl", json_lines(GSM8K))
    write("commonsense_qa.jsonl", json_lines(CSQA))
    for kind in ("gsm8k", "commonsense_qa"):
        write(f"{kind}/questions.jsonl", prepare_questions(MY / f"{kind}.jsonl"))
    for script, classes in SCRIPTS.items():
        defaults = [x for cls in classes for x in asdict(cls()).items() if x[1] is not None]
        write(f"{script}.toml", "".join(f"{name}={json.dumps(x)}\n" for name, x in defaults))
        flags = [f"--{k}={x}\n" for k, x in defaults if not isinstance(x, bool) and x != "\n"]
        write(f"{script}.flags", "".join(flags))


def train(path):
    """Train the run for one more step: its log without times."""
    go(MY, *THINK, "--out=run", "--max_steps=3")
    return [[line["step"], line["loss"], line["grad_norm"]] for line in read_log("my/run")]


def load(path):
    """What a model holds and says, its settings, and its tokenizer's words."""
    quiet, tokenizer, _, step = load_model(path.parent)
    if not isinstance(quiet, QuietSTaR):
        raise ValueError(f"{path.parent} is a plain language model")  # as eval.py says
    tokens = torch.tensor([[0, 1, 2, 3]])
    says = [x.tolist() for x in generate_with_thoughts(quiet, tokens, 3, temperature=0)]
    weights = {name: x.tolist() for name, x in quiet.state_dict().items()}
    words = tokenizer.words(range(tokenizer.vocab_size))
    return [weights, says, vars(quiet.config), vars(quiet.model.config), words, step]


def tokenize(path):
    tokenizer = load_tokenizer(path.parent)
    ids = [int(i) for i in tokenizer.encode(WORDS, bos=True)]
    words = tokenizer.words(range(tokenizer.vocab_size))
    return [ids, tokenizer.decode(ids), words, tokenizer.bos_id, tokenizer.eos_id]


def prepare_text(path):
    flags = ["--tokenizer=my/bpe", "--out=out", "--val_share=0.3"]
    as_typed("data/textfile/prepare.py", f"--source={path}", *flags)
    return [Path("out", f"{split}.bin").read_bytes().hex() for split in ("train", "val")]


def prepare_questions(path):
    as_typed(f"data/{path.stem}/prepare.py", f"--source={path}", "--any_hash", "--out=out")
    return Path("out", "questions.jsonl").read_text()


def read_questions(path):
    return load_questions(path.parent.name, path.parent)


def read_settings(path):
    argv = [f"--config={path}"] if path.suffix == ".toml" else path.read_text().splitlines()
    *parts, given = from_cli("", *SCRIPTS[path.stem], argv=argv)
    return [*map(asdict, parts), given]


# (file below my/, or a pattern of its name; read(path), its content in plain values; its form)
KINDS = [
    ("data/meta.json", train, "json"),
    ("data/train.bin", train, "bytes"),
    ("run/config.json", train, "json"),
    ("run/config.json", load, "json"),
    ("run/log.jsonl", train, "bytes"),
    ("run/checkpoint*", train, "sealed"),
    ("run/checkpoint*", load, "torch"),
    ("official/params.json", load, "json"),
    ("official/consolidated.00.pth", load, "torch"),
    ("official/quiet_star.json", load, "json"),
    ("official/quiet_star.pt", load, "torch"),
    ("hub/config.json", load, "json"),
    ("hub/model-1.safetensors", load, "bytes"),
    ("hub/model.safetensors.index.json", load, "json"),
    ("bin/pytorch_model.bin", load, "torch"),
    ("alphabet/alphabet.json", lambda path: load_tokenizer(path.parent).to_json(), "json"),
    ("bpe/tokenizer.json", tokenize, "json"),
    ("tekken/tekken.json", tokenize, "json"),
    ("pieces/tokenizer.model", tokenize, "bytes"),
    ("book.txt", prepare_text, "bytes"),
    ("book.jsonl", prepare_text, "jsonl"),
    ("gsm8k.jsonl", prepare_questions, "jsonl"),
    ("commonsense_qa.jsonl", prepare_questions, "jsonl"),
    ("gsm8k/questions.jsonl", read_questions, "jsonl"),
    ("commonsense_qa/questions.jsonl", read_questions, "jsonl"),
    *((f"{script}.toml", read_settings, "toml") for script in SCRIPTS),
    *((f"{script}.flags", read_settings, "flags") for script in SCRIPTS),
]
