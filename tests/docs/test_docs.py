"""README.md and docs/: what they name is there, and what they tell to type can be typed."""

import functools
import io
import re
import shlex
from contextlib import redirect_stdout

import pytest
from tiny_runs import ROOT, as_typed

PAGES = {path: path.read_text("utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
OF_TODAY = {path: text for path, text in PAGES.items() if path.name != "log.md"}
PRESETS = {path: path.read_text("utf-8") for path in ROOT.glob("config/*.toml")}


def slugs(text):
    """The names by which headings are linked to; and "", the page itself."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {"", *(re.sub(r"[^\w -]", "", x.lower()).replace(" ", "-") for x in headings)}


def command_lines():
    """What begins with python or torchrun, in code and in the heads of presets."""
    text = "\n".join([*OF_TODAY.values(), *PRESETS.values()]).replace("\\\n", "")
    code = re.findall(r"^(?:    |#   )?((?:python|torchrun|pip) .*)$", text, re.MULTILINE)
    code += re.findall(r"`(python [^`]*)`", text)
    parts = {part.strip() for line in code for part in line.split("&&")}
    return sorted(part for part in parts if not part.startswith("pip "))


@functools.cache
def help_of(script, *words):
    """What a script prints for --help."""
    with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        as_typed(script, *words, "--help")
    return printed.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    """Catches a link to a file or a heading that was renamed or deleted."""
    for link in re.findall(r"(?:\]\(|src=\")(?!http)([^)\"]+)", PAGES[page]):
        path, _, heading = link.partition("#")
        path = page.parent / path if path else page
        assert path.exists(), link
        assert not heading or heading in slugs(path.read_text("utf-8")), link


def test_every_picture_is_shown():
    """Catches the picture of a study that is gone."""
    for path in ROOT.glob("assets/*.png"):
        assert any(f"assets/{path.name}" in text for text in PAGES.values()), path.name


@pytest.mark.parametrize("page", OF_TODAY, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    """Catches a page that speaks of a module or a preset that is gone."""
    for path in re.findall(r"\b(?:\w+/)+\w+\.(?:py|toml)\b", OF_TODAY[page]):
        assert (ROOT / path).exists(), path


def test_the_house_is_listed_as_it_stands():
    """Catches a file at the top, or a folder of code, that README.md does not list."""
    listed = re.search(r"## Files\n(.*?)\n## ", PAGES[ROOT / "README.md"], re.DOTALL)[1]
    names = set(re.findall(r"^    (\S+)  ", listed, re.MULTILINE))
    folders = {f"{path.parts[len(ROOT.parts)]}/" for path in ROOT.glob("[a-z]*/**/*.py")}
    assert names == {path.name for path in ROOT.glob("*.py")} | folders - {"out/"} | {"docs/"}


@pytest.mark.parametrize("line", command_lines())
def test_commands_have_scripts_and_flags_that_there_are(line):
    """Catches a flag that was renamed, a choice that is gone, a script that has moved."""
    words = shlex.split(line.replace("$'", "'"), comments=True)
    if words[0] == "torchrun":
        words = ["python", *words[words.index("train.py") :]]
    script, words = words[1], words[2:]
    if script == "-m":
        script, words = words[0].replace(".", "/"), words[1:]
        script += "/__main__.py" if (ROOT / script).is_dir() else ".py"
    assert (ROOT / script).exists()
    flags = [word.partition("=") for word in words if word.startswith("--")]
    if not flags:
        return
    shown = help_of(script, *(word for word in words if not word.startswith("--")))
    for name, _, value in flags:
        about = re.search(rf"{name}[ ,\]](?:{{([^}}]*)}})?", shown)
        assert about, name
        assert not about[1] or value in about[1].split(","), f"{name}={value}"
        assert name != "--config" or (ROOT / value).exists(), value


def test_every_study_is_told_and_no_other():
    """Catches a study without a section, and a section without a study."""
    from studies.__main__ import STUDIES

    told = re.findall(r"^python -m studies\.(\w+)$", PAGES[ROOT / "docs/results.md"], re.MULTILINE)
    assert sorted(told) == sorted(STUDIES)
