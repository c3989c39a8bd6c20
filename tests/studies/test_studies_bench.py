"""The bench prints what it promises, of the model that the flags ask for."""

import pytest
import torch
from tiny_runs import SHAPE, as_typed

from beyond.kinds import ThinkingConfig, thinking_model
from model import ModelConfig, Transformer
from studies.bench import peak_bytes
from studies.memory import tokens_read

SMALL = "--texts=2 --span=8 --repeats=1 --new_tokens=2 --vocab_size=11 --device=cpu".split()


@pytest.mark.parametrize("kind", ["sampled", "any_length", "soft"])
def test_all_ratios_are_printed(kind, capsys):
    """Catches a row that is named and not measured, and one that compares a form with itself."""
    how = ["--thought_len=2", f"--thought_kind={kind}", "--reinforce_weight=0", "--n_thoughts=1"]
    as_typed("studies/bench.py", *SMALL, *SHAPE, *how)
    lines = capsys.readouterr().out.splitlines()
    for row in ("fast over plain", "obvious over fast", "think over generate"):
        found = [line.removeprefix(row).split() for line in lines if line.startswith(row)]
        assert len(found) == (kind == "sampled" or row != "obvious over fast"), row
        assert all(float(x) > 0 for cells in found for x in cells), row


KINDS = [(3, 2, "sampled"), (0, 2, "sampled"), (3, 1, "any_length"), (0, 1, "any_length")]


@pytest.mark.parametrize("m, a, kind", KINDS)
def test_the_floor_reads_as_many_tokens_as_the_step(m, a, kind):
    """Catches a floor of another kind of thought, and tokens that are counted and not read."""
    read, config = [], ThinkingConfig(thought_len=m, n_thoughts=2, n_true=a, thought_kind=kind)
    quiet = thinking_model(Transformer(ModelConfig(vocab_size=11)), config, at_once=100)
    quiet.model.register_forward_hook(lambda _, inputs, h: read.append(h.shape[:2].numel()))
    quiet(torch.randint(11, (2, 6 + a)))
    assert sum(read) == 2 * (6 + a + 6 * tokens_read(config))


def test_peak_bytes_are_those_in_use_at_once():
    """Catches a sum over all that was ever in use, and what was in use before."""
    before = torch.ones(5000)

    def function():
        for _ in range(3):
            x = before + 1
            del x

    assert 20000 <= peak_bytes(function) < 40000
