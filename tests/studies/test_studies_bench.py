"""The bench prints what it promises, of the model that the flags ask for."""

import pytest
import torch
from tiny_runs import SHAPE, as_typed

from studies.bench import peak_bytes

SMALL = "--texts=2 --span=8 --repeats=1 --new_tokens=2 --vocab_size=11 --device=cpu".split()


@pytest.mark.parametrize("kind", ["sampled", "any_length"])
def test_all_ratios_are_printed(kind, monkeypatch, capsys):
    """Catches a row that is named and not measured, and a kind of thought that is not built."""
    argv = ["bench.py", *SMALL, *SHAPE, "--thought_len=2", f"--thought_kind={kind}"]
    monkeypatch.setattr("sys.argv", argv)
    as_typed("studies/bench.py")
    lines = capsys.readouterr().out.splitlines()
    titles = "fast over plain", "obvious over fast", "think over generate"
    for row in titles:
        (cells,) = (line.removeprefix(row).split() for line in lines if line.startswith(row))
        assert cells and all(float(x) > 0 for x in cells), row


def test_peak_bytes_are_those_in_use_at_once():
    """Catches a sum over all that was ever in use, and what was in use before."""
    before = torch.ones(5000)

    def function():
        for _ in range(3):
            x = before + 1
            del x

    assert 20000 <= peak_bytes(function) < 40000
