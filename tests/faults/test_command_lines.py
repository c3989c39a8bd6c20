"""Every number on every command line: what is nonsense is refused in one line, and all else is what it says."""

import dataclasses
import math
from types import SimpleNamespace

import pytest

from data.arithmetic.prepare import ArithmeticConfig
from data.cups.prepare import CupsConfig
from data.download import QuestionsSource
from data.hub import HubConfig
from data.smollm2.prepare import SmolLM2Config
from data.text import TokenizeConfig
from data.textfile.prepare import TextfileConfig
from data.tinyshakespeare.prepare import ShakespeareConfig
from eval import GainsConfig
from lib.config import bare_type, from_cli
from lib.export import ExportConfig
from lib.questions import QuestionsConfig
from model import ModelConfig
from quiet_star import QuietSTaRConfig
from sample import SampleConfig
from studies.bench import BenchConfig
from studies.demo import DemoConfig
from studies.memory import MemoryConfig
from studies.runs import StudyConfig
from train import TrainConfig

SCRIPTS = {  # the dataclasses of its settings
    "train.py": (TrainConfig, ModelConfig, QuietSTaRConfig),
    "eval.py gains": (GainsConfig,),
    "eval.py gsm8k": (QuestionsConfig,),
    "sample.py": (SampleConfig,),
    "studies/bench.py": (BenchConfig, ModelConfig, QuietSTaRConfig),
    "studies/memory.py": (MemoryConfig, TrainConfig, ModelConfig, QuietSTaRConfig),
    "studies/demo.py": (DemoConfig,),
    "studies/runs.py": (StudyConfig,),
    "lib/export.py": (ExportConfig,),
    "data/arithmetic/prepare.py": (ArithmeticConfig,),
    "data/cups/prepare.py": (CupsConfig,),
    "data/tinyshakespeare/prepare.py": (ShakespeareConfig,),
    "data/textfile/prepare.py": (TextfileConfig, TokenizeConfig),
    "data/c4/prepare.py": (HubConfig, TokenizeConfig),
    "data/gsm8k/prepare.py": (QuestionsSource,),
    "data/smollm2/prepare.py": (SmolLM2Config,),
}
CLASSES = list(dict.fromkeys(cls for classes in SCRIPTS.values() for cls in classes))
NEEDED = {TextfileConfig: ["--source=x"], ExportConfig: ["--run=x", "--out=y"]}
TEXTS = [
    "0",
    "-1",
    "0.5",
    "nan",
    "inf",
    "-inf",
    "1e9",
    "1e400",
    str(2**53),
    str(2**63),
    "",
    "x",
    "1\n2",
]


NUMBERS = [
    (cls, field)
    for cls in CLASSES
    for field in dataclasses.fields(cls)
    if bare_type(field.type) in (int, float)
]


def parsed(classes, *flags):
    """What a command line comes to, by name. SystemExit if it is refused."""
    needed = [flag for cls in classes for flag in NEEDED.get(cls, [])]
    *made, _ = from_cli("", *classes, argv=[*needed, *flags])
    return SimpleNamespace(**{name: value for part in made for name, value in vars(part).items()})


def tried(capsys, classes, *flags):
    """(what a command line comes to, the line that it is refused with): one of the two is None."""
    try:
        found, line = parsed(classes, *flags), None
    except SystemExit as stop:
        found, line = None, capsys.readouterr().err
        assert (
            stop.code == 2 and line.endswith("\n") and line.count("\n") == 1 and len(line) <= 600
        ), (flags, line)
    assert capsys.readouterr().err == ""
    return found, line


def refusal(capsys, script, *flags):
    return tried(capsys, SCRIPTS[script], *flags)[1]


def plainly(kind, text):
    """The number that a text is, or None."""
    try:
        return kind(text)
    except ValueError:
        return None


@pytest.mark.parametrize(
    "cls, field", NUMBERS, ids=lambda x: getattr(x, "name", None) or x.__name__
)
def test_each_number_is_taken_as_it_is_or_refused_in_one_line(capsys, cls, field):
    for text in TEXTS:
        found, line = tried(capsys, [cls], f"--{field.name}={text}")
        number = plainly(bare_type(field.type), text)
        if found:
            assert number is not None and getattr(found, field.name) == number, text
        else:
            assert field.name in line or field.name.split("_")[-1] in line, f"{text}: {line}"
        finite = number is not None and abs(number) <= (
            2**53 if type(number) is int else 1e300
        )  # nan is not
        if not finite and not (field.name == "price" and number in (math.inf, -math.inf)):
            assert line, f"{text} is no number for {field.name}"


def test_nonsense_is_refused_by_name(capsys):
    nonsense = {
        "train.py": "min_lr_share=nan min_lr_share=-1 mixing_head_lr=-1 reinforce_weight=-1 "
        "norm_eps=inf norm_eps=-1 rope_theta=inf rope_theta=0 lr=-1 lr=nan weight_decay=-1 grad_clip=0 think_share=0 "
        "think_share=2 beta1=-1 beta1=1 beta2=1 thought_temperature=nan log_prob_temperature=0 embedding_scale=inf "
        "embedding_scale=0 seed=-1 keep=1 span=0 warmup_steps=-1 n_heads=0 head_dim=3 sliding_window=0 n_layers=0",
        "sample.py": "temperature=nan temperature=-1 price=nan max_new_tokens=0 thought_temperature=inf seed=-1",
        "eval.py gains": "texts=0 span=-1 batch_size=0 page_tokens=0",
        "eval.py gsm8k": "temperature=nan n=-1 votes=0 batch_size=0 max_new_tokens=-1",
        "studies/bench.py": "texts=-1 rows=0 repeats=0",
        "studies/memory.py": "gpus=0",
        "studies/runs.py": "jobs=0 texts=0 steps=-1",
        "data/arithmetic/prepare.py": "explicit=2 chatter=-1 double=nan min_digits=0 max_digits=3",
        "data/cups/prepare.py": "explicit=2 double=nan min_swaps=0 max_swaps=2 train_documents=0",
        "data/textfile/prepare.py": "val_share=0 val_share=1 val_share=nan max_tokens=-1 processes=-1",
    }
    accepted = [f"{script} --{flag}" for script, flags in nonsense.items() for flag in flags.split()
                if not refusal(capsys, script, f"--{flag}")]  # fmt: skip
    assert not accepted, f"{len(accepted)} accepted: " + ", ".join(accepted)


def test_what_may_be_any_number_is(capsys):
    for text in ("-1", "-inf", "inf", "-0.5", "0"):
        assert parsed(SCRIPTS["sample.py"], f"--price={text}").price == float(text)
    assert parsed(SCRIPTS["train.py"], "--sliding_window=none").sliding_window is None
    assert parsed(SCRIPTS["train.py"], "--sliding_window=None", "--lr=0").lr == 0.0
    assert parsed(SCRIPTS["sample.py"], "--price", "-1").price == -1.0, "a number after a space"


def test_hyphens_serve_for_underscores_and_no_switches_off(capsys):
    for flag in ("--show-thoughts", "--show_thoughts"):
        assert parsed(SCRIPTS["sample.py"], flag).show_thoughts
    for flag in ("--no-gain-head", "--no-gain_head", "--no_gain_head"):
        assert not parsed(SCRIPTS["train.py"], flag).gain_head, flag
    assert parsed(SCRIPTS["train.py"], "--batch-size=3", "--think-at", "hard").think_at == "hard"
    assert parsed(SCRIPTS["sample.py"], "--prompt=--show-thoughts").prompt == "--show-thoughts", (
        "a value is only a value"
    )
    for flags in (
        ["--no-lr"],
        ["--gain_head=maybe"],
        ["--no-gain-head=false"],
        ["--no-gain-head=5"],
        ["--lr"],
    ):
        assert refusal(capsys, "train.py", *flags), flags


def test_a_near_miss_is_told_what_it_may_have_meant(capsys):
    meant = {"learning_rate=1": "--lr?", "learning-rate=1": "--lr?", "batchsize=2": "--batch_size?",
             "max_step=2": "--max_steps?", "thoughts_len=2": "--thought_len?", "thought-length=2": "--thought_len?",
             "no-gain-heads": "--gain_head?"}  # fmt: skip
    for flag, name in meant.items():
        line = refusal(capsys, "train.py", f"--{flag}")
        assert flag.partition("=")[0] in line and name in line, line
    for odd in ("--nothing\nlike this", "--" + "long" * 5000, "more", "--=", "--", "-"):
        assert odd == "--" or refusal(capsys, "train.py", odd), odd
