"""docs/recipes.md: its Python runs, and its commands are ones that the scripts take."""

import re
import shlex

import pytest
from tiny_runs import ROOT

import train
from eval import COMMANDS
from lib import export
from lib.config import from_cli
from lib.runs import LoadConfig
from studies import memory

PAGE = (ROOT / "docs" / "recipes.md").read_text("utf-8")


def test_its_python_runs_from_block_to_block(demo_runs, capsys):
    run, written, names = str(demo_runs / "quiet_star"), [], {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block.replace("out/arithmetic", run), names)
    printed = capsys.readouterr().out
    assert printed.count("(-") >= 4 and len(printed.split("\n")) >= 7
    names["write_scalars"](run, type("", (), {"add_scalar": lambda _, *x: written.append(x)})())
    assert {"loss", "gate", "reward", "peak_memory_gb"} <= {name for name, _, _ in written}
    assert all(isinstance(value, float | int) for _, value, _ in written)


CLASSES = {
    "train.py": (train.TrainConfig, train.ModelConfig, train.QuietSTaRConfig),
    "lib.export": (export.ExportConfig,),
    "studies.bench": (
        memory.MemoryConfig,
        train.TrainConfig,
        train.ModelConfig,
        train.QuietSTaRConfig,
    ),
}


@pytest.mark.parametrize("line", re.findall(r"^    (python .*)$", PAGE, flags=re.MULTILINE))
def test_its_commands_have_flags_that_there_are(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = [word for word in shlex.split(line)[1:] if word != "-m"]
    if words[0] == "studies.harness":  # the flags are lm_eval's
        return
    classes = CLASSES.get(words[0]) or (COMMANDS[words[1]], LoadConfig)
    flags = [word for word in words[1:] if word.startswith("--")]
    assert flags and from_cli("", *classes, argv=flags)
