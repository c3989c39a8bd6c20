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
def test_all_ratios_are_printed(kind, monkeypatch, capsys):
    """Catches a row that is named and not measured, and one that compares a form with itself."""
    argv = ["bench.py", *SMALL, *SHAPE, "--thought_len=2", f"--thought_kind={kind}"]
    argv += ["--reinforce_weight=0", "--n_thoughts=1"]
    monkeypatch.setattr("sys.argv", argv)
    as_typed("studies/bench.py")
    lines = capsys.readouterr().out.splitlines()
    for row in ("fast over plain", "obvious over fast", "think over generate"):
        found = [line.removeprefix(row).split() for line in lines if line.startswith(row)]
        assert len(found) == (kind == "sampled" or row != "obvious over fast"), row
        assert all(float(x) > 0 for cells in found for x in cells), row


PASSES = dict(thought_len=3, n_thoughts=2, n_true=2)
ANY = dict(thought_kind="any_length", n_true=1)


@pytest.mark.parametrize("changes", [{}, {"thought_len": 0}, ANY, {**ANY, "n_thoughts": 1}])
def test_the_floor_reads_as_many_tokens_as_the_step(changes, monkeypatch):
    """Catches a floor of another kind of thought, and tokens that are counted and not read."""
    read = []
    forward = Transformer.forward

    def counted(self, x, *args, **kwargs):
        read.append(x.shape[0] * x.shape[1])
        return forward(self, x, *args, **kwargs)

    config, shape = ThinkingConfig(**PASSES | changes), ModelConfig(vocab_size=11)
    quiet = thinking_model(Transformer(shape), config, at_once=100)
    monkeypatch.setattr(Transformer, "forward", counted)
    quiet(torch.randint(11, (2, 6 + config.n_true)))
    assert sum(read) == 2 * (6 + config.n_true + 6 * tokens_read(config))


def test_peak_bytes_are_those_in_use_at_once():
    """Catches a sum over all that was ever in use, and what was in use before."""
    before = torch.ones(5000)

    def function():
        for _ in range(3):
            x = before + 1
            del x

    assert 20000 <= peak_bytes(function) < 40000
