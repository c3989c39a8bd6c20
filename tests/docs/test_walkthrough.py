"""docs/ says nothing that is not so: what it shows is printed, what it quotes stands there, and what it tells to run
runs."""

import doctest
import functools
import os
import re
import subprocess
import sys

import pytest
from tiny_runs import ROOT

import quiet_star
from studies.__main__ import STUDIES

DOCS = ROOT / "docs"
NAMES = ("walkthrough", "results", "costs", "recipes", "family")
PAGES = {name: (DOCS / f"{name}.md").read_text("utf-8") for name in NAMES}
WALKTHROUGH = PAGES["walkthrough"]
CODE = (ROOT / "quiet_star.py").read_text("utf-8")


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text):
    """What stands in blocks of commands. Those that take long are merely indented."""
    return [line for block in blocks(text, "sh") for line in block.strip().split("\n")]


def study(line):
    """The study that a command starts, or None."""
    name = line.removeprefix("python -m studies.").split()[0]
    return name if name in STUDIES and line.startswith("python -m studies.") else None


def slugs(text):
    """The names by which a page's headings are linked to; and "", the page itself."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {
        "",
        *(re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings),
    }


def test_what_is_typed_prints_what_stands_there():
    found = doctest.testfile(str(DOCS / "walkthrough.md"), module_relative=False)
    assert found.failed == 0 and found.attempted > 25


def test_what_is_quoted_stands_in_the_code():
    quoted = blocks(WALKTHROUGH, "python")
    assert len(quoted) >= 10
    for block in quoted:
        assert block in CODE, block


def test_every_name_in_the_table_of_algorithm_1_exists():
    rows = re.search(r"\| Algorithm 1 \|.*?\n\n", WALKTHROUGH, flags=re.DOTALL)[0].split("\n")[2:]
    names = [name for row in rows if row for name in re.findall(r"`([\w.]+)`", row.split("|")[2])]
    assert len(names) > 10
    for name in names:
        assert callable(functools.reduce(getattr, name.split("."), quiet_star)), name


def test_every_function_and_class_of_the_method_is_walked_through():
    for name in re.findall(r"^ *(?:def|class) (\w+)", CODE, flags=re.MULTILINE):
        assert name.startswith("__") or re.search(rf"\b{name}\b", WALKTHROUGH), name


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_are_there(page):
    links = re.findall(r"\]\((?!http)([^)]+)\)", PAGES[page])
    assert len(links) > 3
    for link in links:
        path, _, heading = link.partition("#")
        path = DOCS / (path or f"{page}.md")
        assert path.exists() and (not heading or heading in slugs(path.read_text("utf-8"))), link


@pytest.mark.parametrize("page", PAGES)
def test_files_and_modules_that_are_named_exist(page):
    files = re.findall(r"\b(?:\w+/)*\w+\.(?:py|toml)\b", PAGES[page])
    modules = [
        name.replace(".", "/") + ".py" for name in re.findall(r"python -m ([\w.]+)\b", PAGES[page])
    ]
    for path in {*files, *modules} - {"studies.py"}:
        assert (ROOT / path).exists(), path


def test_every_study_is_told_and_no_other():
    told = [line for line in commands(PAGES["results"]) if line.startswith("python -m studies")]
    assert sorted(told) == sorted(f"python -m studies.{name}" for name in STUDIES)
    assert not any(
        study(line) for page in ("walkthrough", "costs") for line in commands(PAGES[page])
    )


@pytest.mark.parametrize(
    "line", [x for text in PAGES.values() for x in commands(text) if not study(x)]
)
def test_every_other_command_runs_as_it_is_typed(line, demo_runs, tmp_path):
    """In a folder where a run with few weights stands for the one that a study made."""
    run = tmp_path / re.search(r"--run=(\S+)", line)[1]
    run.parent.mkdir(parents=True)
    run.symlink_to(demo_runs / "quiet_star")
    typed = re.sub(
        r"^python (?!-m)",
        f"{sys.executable} {ROOT}/",
        re.sub("^python -m", f"{sys.executable} -m", line),
    )
    assert typed != line
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", typed], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout, done.stderr
