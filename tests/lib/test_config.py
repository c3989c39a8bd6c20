"""Settings from command lines and presets."""

from dataclasses import dataclass
from typing import Literal

import pytest

from lib.config import from_cli, one_line_errors, settings


@dataclass
class Cake:
    layers: int = 2  # how many, all of them flat
    sugar: float = 0.5  # share of the dough, 50% at most
    kind: Literal["plum", "nut"] = "plum"  # nut: for the patient
    cream: bool = True  # on top
    candles: int | None = None  # none: as many as layers

    def __post_init__(self):
        if self.sugar > 0.5:
            raise ValueError("sugar must be at most 0.5")


@dataclass
class Stove:
    name: str = (
        "a name so long that the formatter gives it a line of its own"  # of the oven, on its door
    )


@dataclass
class Oven(Stove):
    pass


def test_flags_set_fields_and_the_rest_keeps_its_default():
    """Catches a flag that lands in the wrong class, a default that counts as given, and --no-x."""
    flags = ["--layers=3", "--no-cream", "--name=Ida", "--kind=nut", "--candles=7"]
    cake, oven, given = from_cli("", Cake, Oven, argv=flags)
    assert cake == Cake(layers=3, cream=False, kind="nut", candles=7) and oven == Oven("Ida")
    assert given == {"layers": 3, "cream": False, "name": "Ida", "kind": "nut", "candles": 7}


def test_a_preset_sets_defaults_that_flags_overrule(tmp_path):
    """Catches a preset that beats a flag, is not counted as given, or may not write 0 for 0.0."""
    preset = tmp_path / "my.toml"
    preset.write_text('layers = 5\nsugar = 0\ncream = false\nname = "Ida"\n')
    cake, oven, given = from_cli("", Cake, Oven, argv=[f"--config={preset}", "--layers=3"])
    assert cake == Cake(layers=3, sugar=0, cream=False) and oven == Oven("Ida")
    assert given == {"layers": 3, "sugar": 0, "cream": False, "name": "Ida"}


def test_help_is_the_comment_behind_each_field(capsys):
    """Catches a comment that is lost, lands at the next field, or breaks argparse with its %."""
    with pytest.raises(SystemExit):
        from_cli("", Cake, Oven, argv=["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--layers INT how many, all of them flat (default: 2) --sugar FLOAT share of" in shown
    assert "50% at most" in shown and "--kind {plum,nut} nut: for" in shown and "--no-" in shown
    assert "--name STR of the oven, on its door" in shown


ESCAPE = '"\\u001b[31m" = 1'
FLAGS = ["layer=3", "lay=3", "layers=x", "layers=2.5", "layers=-1", "layers", "more\nlines=1"]
FLAGS += ["sugar=nan", "sugar=inf", "sugar=0.7", "kind=pear", "cream=maybe", "no-layers"]
PRESETS = ['layer = "3"', 'layers = "3"', "layers = 2.5", "layers = true", "sugar = -1"]
PRESETS += [f"layers = {10**30}", "sugar = 1e39"]
PRESETS += ["sugar = nan", "sugar = 0.7", 'kind = "pear"', "cream = 1", "name = 3", "name = [1]"]


@pytest.mark.parametrize("mistake", [*FLAGS, *PRESETS, "x = 1\nx = 2", "\0", ESCAPE], ids=repr)
def test_a_mistake_ends_in_one_line_that_names_it(tmp_path, mistake, capsys):
    """Catches a traceback, a page of usage, a wrong value that is taken, a preset without name."""
    preset = tmp_path / "my.toml"
    preset.write_text(mistake)
    argv = [f"--{mistake}"] if mistake in FLAGS else [f"--config={preset}"]
    with pytest.raises(SystemExit) as stop:
        from_cli("", Cake, Oven, argv=argv)
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1 and line[:-1].isprintable()
    name = mistake.replace("=", " ").split()[0] if mistake in [*FLAGS, *PRESETS] else ""
    assert name in line and (mistake in FLAGS or "my.toml" in line)


def test_settings_of_a_file_are_checked_as_flags_are():
    """Catches a run's config.json whose values are of another type, or that has other names."""
    assert settings(Cake, {"layers": 1, "candles": None}) == Cake(layers=1)
    for given in ({"layers": None}, {"layers": "1"}, {"sugar": -1.0}, {"crumbs": 1}, {"kind": []}):
        with pytest.raises(ValueError, match=next(iter(given))):
            settings(Cake, given)


MENDED = [ValueError("\x1b]0;a title\a"), OSError("no\nno"), MemoryError()]
MENDED += [RuntimeError("CUDA out of memory\nTried")]
ENDS = [(error, SystemExit, "^bake.py: .*$") for error in MENDED]
ENDS += [(KeyboardInterrupt(), SystemExit, "^130$"), (RuntimeError("bug"), RuntimeError, "bug")]
ENDS += [(RuntimeError("an illegal memory access"), RuntimeError, "illegal")]


@pytest.mark.parametrize("error, wanted, text", ENDS, ids=repr)
def test_what_a_user_can_mend_is_one_line_and_a_bug_is_none(error, wanted, text):
    """Catches a traceback for a mistake or a machine too small, and a bug that hides itself."""
    with pytest.raises(wanted, match=text) as stop, one_line_errors("bake.py"):
        raise error
    assert str(stop.value).isprintable()
