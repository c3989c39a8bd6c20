"""docs/walkthrough.md says nothing that is not so: what it shows is printed, what it quotes stands there, and what it
tells to run runs."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import paper
import pytest
from test_eval import work  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "walkthrough.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def commands():
    return [line for block in blocks("sh") for line in block.strip().split("\n")]


def slugs(text):
    """The names by which a page's headings are linked to; and "", the page itself."""
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    return {"", *(re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings)}


def test_what_is_typed_prints_what_stands_there():
    found = doctest.testfile(str(ROOT / "docs" / "walkthrough.md"), module_relative=False)
    assert found.failed == 0 and found.attempted > 15


def test_what_is_quoted_stands_in_the_code():
    code = (ROOT / "quiet_star.py").read_text("utf-8")
    quoted = blocks("python")
    assert len(quoted) >= 3
    for block in quoted:
        assert block in code, block


def test_every_name_in_the_table_of_algorithm_1_exists():
    code = (ROOT / "quiet_star.py").read_text("utf-8")
    rows = re.search(r"\| Algorithm 1 \|.*?\n\n", TEXT, flags=re.DOTALL)[0].split("\n")[2:]
    names = [name for row in rows if row for name in re.findall(r"`([\w.]+)`", row.split("|")[2])]
    assert len(names) > 6
    for name in names:
        assert re.search(rf"^ *(def|class) {name.split('.')[-1]}\b", code, flags=re.MULTILINE), name


def test_links_and_pictures_are_there():
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", TEXT)
    assert len(links) > 3
    for link in links:
        path, _, heading = link.partition("#")
        text = (ROOT / "docs" / path).read_bytes() if heading else b""
        assert (ROOT / "docs" / path).exists() and heading in slugs(text.decode()), link
    headings = {
        re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= headings


def test_every_command_of_make_paper_is_told_and_no_other():
    told = [line.split()[2] for line in commands() if line.startswith("python paper.py")]
    assert sorted(told) == sorted(paper.COMMANDS)


@pytest.mark.parametrize("line", [line for line in commands() if not line.startswith("python paper.py")])
def test_every_other_command_runs_as_it_is_typed(line, work, tmp_path):  # noqa: F811
    """In a folder where a run with few weights stands for the one that `paper.py` made."""
    run = tmp_path / re.search(r"--run=(\S+)", line)[1]
    run.parent.mkdir(parents=True)
    run.symlink_to(work / "quiet_star")
    typed = line.replace("python ", f"{sys.executable} {ROOT}/", 1)
    done = subprocess.run(["bash", "-c", typed], cwd=tmp_path, capture_output=True, text=True)
    assert typed != line and done.returncode == 0 and done.stdout, done.stderr
