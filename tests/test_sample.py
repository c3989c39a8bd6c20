"""sample.py, on the finished model that ships and on one that is made up."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import ROOT, as_typed, go

import sample
from lib.tokenizer import CharTokenizer

SHOWN = {
    "": "\n3849=4\n\n",
    "--show_thoughts": " 0.67  '4'             '3154'\n-0.08  '\\n'            'hmmm'\n",
    "--show_thoughts --price=0.02": "'3154'\n 0.00  '\\n'            ''\n",
    "--show_thoughts --without_thoughts": " 0.00  '6'             ''\n",
}


@pytest.mark.parametrize("flags", SHOWN)
def test_the_finished_model_that_ships_thinks_the_running_sums(capsys, flags):
    """Catches a thought beside another token than its own, and one where none was asked for."""
    how = f"--run={ROOT / 'assets' / 'miniature'}", "--prompt=\n3849=", "--max_new_tokens=2"
    as_typed("sample.py", *how, "--device=cpu", *flags.split())
    assert SHOWN[flags] in capsys.readouterr().out


def test_control_characters_are_spelled_out_and_the_end_of_a_text_ends_it(monkeypatch, capsys):
    """Catches a model that writes to the terminal what the terminal obeys."""
    tokenizer = CharTokenizer("a\x1b\u202e\n.")
    tokenizer.ends = {4}
    model = SimpleNamespace(stream=lambda *how: (torch.tensor([i]) for i in (1, 2, 3, 0, 4, 0)))
    monkeypatch.setattr(sample, "load_to_think", lambda *how: (model, tokenizer, None, 0))
    sample.say(sample.SampleConfig(run="here", prompt="a", device="cpu"))
    assert capsys.readouterr().out == "a\\x1b\\x202e\na\n"


def test_lengths_that_the_gain_head_does_not_know_are_refused_in_one_line(work):
    """Catches a traceback where thoughts are longer than in training; shorter ones are taken."""
    settings = "--thought_kind=any_length", "--gain_head", "--thought_len=3"
    go(work, "--out=any", "--max_steps=1", *settings)
    call = ["sample.py", f"--run={work / 'any'}", "--price=0", "--prompt=ab", "--device=cpu"]
    with pytest.raises(SystemExit) as stop:
        as_typed(*call, "--thought_len=5")
    assert "gain head" in stop.value.code and "\n" not in stop.value.code
    as_typed(*call, "--thought_len=2")


def test_a_model_whose_thoughts_end_speaks(work, capsys):
    """Catches a traceback, and a thought that goes on behind its end."""
    go(work, "--out=e", "--max_steps=1", "--thought_kind=ended", "--end_text=b", "--thought_len=9")
    call = ["sample.py", f"--run={work / 'e'}", "--prompt=ab", "--device=cpu", "--show_thoughts"]
    as_typed(*call, "--thought_temperature=9", "--max_new_tokens=9")
    thoughts = re.findall(r"'(\w*)'$", capsys.readouterr().out, flags=re.M)
    assert {x.partition("b")[2] for x in thoughts} == {""} and len({*map(len, thoughts)}) > 1


def test_sample_imports_nothing_that_takes_long():
    """Catches a second or more before the first token."""
    slow = {"matplotlib", "torch._dynamo", "torch.distributed.fsdp", "sympy", "train"}
    command = [sys.executable, "-c", f"import sample, sys; print({slow} & sys.modules.keys())"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).stdout == b"set()\n"
