"""docs/walkthrough.md says of quiet_star.py what is so."""

import doctest
import functools
import re

from tiny_runs import ROOT

import quiet_star

PAGE = ROOT / "docs" / "walkthrough.md"
TEXT = PAGE.read_text("utf-8")
CODE = (ROOT / "quiet_star.py").read_text("utf-8")


def test_what_is_typed_prints_what_stands_there():
    """Catches an example whose output has changed."""
    assert doctest.testfile(str(PAGE), module_relative=False).failed == 0


def test_what_is_quoted_stands_in_the_code():
    """Catches a line of the code that was changed and not in the walkthrough."""
    quoted = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(quoted) >= 10
    for block in quoted:
        assert block in CODE, block


def test_every_name_in_the_table_of_algorithm_1_exists():
    """Catches a renamed function in the table."""
    rows = re.search(r"\| Algorithm 1 \|.*?\n\n", TEXT, flags=re.DOTALL)[0].split("\n")[2:]
    names = [name for row in rows if row for name in re.findall(r"`([\w.]+)`", row.split("|")[2])]
    assert len(names) >= 10
    for name in names:
        assert callable(functools.reduce(getattr, name.split("."), quiet_star)), name


def test_every_function_and_class_of_the_method_is_walked_through():
    """Catches a part of the method that is not explained."""
    for name in re.findall(r"^ {0,4}(?:def|class) (\w+)", CODE, flags=re.MULTILINE):
        assert name.startswith("__") or re.search(rf"\b{name}\b", TEXT), name
