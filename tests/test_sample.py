"""sample.py, on the finished model that ships and on one that is made up."""

from types import SimpleNamespace

import pytest
import torch
from tiny_runs import ROOT, as_typed

import sample
from lib.tokenizer import CharTokenizer

SHOWN = {
    "": "\n3849=4\n\n",
    "--show_thoughts": " 0.67  '4'             '3154'\n-0.08  '\\n'            'hmmm'\n",
    "--show_thoughts --price=0.02": "'3154'\n 0.00  '\\n'            ''\n",
    "--show_thoughts --without_thoughts": " 0.00  '6'             ''\n",
}


@pytest.mark.parametrize("flags", SHOWN)
def test_the_finished_model_that_ships_thinks_the_running_sums(monkeypatch, capsys, flags):
    """Catches a thought beside another token than its own, and one where none was asked for."""
    argv = ["sample.py", f"--run={ROOT / 'assets' / 'miniature'}", "--prompt=\n3849="]
    monkeypatch.setattr("sys.argv", [*argv, "--max_new_tokens=2", "--device=cpu", *flags.split()])
    as_typed("sample.py")
    assert SHOWN[flags] in capsys.readouterr().out


def test_control_characters_are_spelled_out_and_the_end_of_a_text_ends_it(monkeypatch, capsys):
    """Catches a model that writes to the terminal what the terminal obeys."""
    tokenizer = CharTokenizer("a\x1b\u202e\n.")
    tokenizer.ends = {4}
    model = SimpleNamespace(stream=lambda *how: (torch.tensor([i]) for i in (1, 2, 3, 0, 4, 0)))
    monkeypatch.setattr(sample, "load_to_think", lambda *how: (model, tokenizer, None, 0))
    sample.say(sample.SampleConfig(run="here", prompt="a", device="cpu"))
    assert capsys.readouterr().out == "a\\x1b\\x202e\na\n"
