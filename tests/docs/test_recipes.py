"""docs/recipes.md: its Python runs, from block to block."""

import re
from types import SimpleNamespace

from tiny_runs import ROOT


def test_its_python_runs(demo_runs, capsys):
    """Catches a recipe that calls what is not there any more."""
    page, run = (ROOT / "docs" / "recipes.md").read_text("utf-8"), str(demo_runs / "quiet_star")
    written, names = [], {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(block.replace("out/arithmetic", run), names)
    printed = capsys.readouterr().out.strip().split("\n")
    assert len(printed) == 5 and all(float(line.split()[0]) < 1 for line in printed)
    assert not any("''" in line for line in printed), "a token or a thought has no text"
    names["write_scalars"](run, SimpleNamespace(add_scalar=lambda *scalar: written.append(scalar)))
    assert {"loss", "gate", "reward"} <= {name for name, _, _ in written}
    assert all(isinstance(value, float | int) for _, value, _ in written)
