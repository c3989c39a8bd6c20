"""The house: who may import whom, what may be imported at all, and how much there may be of it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import ROOT

# from the ground up: an import only ever goes down
FLOORS = [
    "model", "quiet_star", "fast", "beyond", "lib", "data", "train", "eval sample", "studies"
]  # fmt: skip
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
PACKAGES = {"torch", "numpy", "tiktoken", "tqdm", "matplotlib"}
MOST_LINES = {"program": 6885, "tests": 6470}


def tracked():
    """The Python files of the repository; without git, those that lie here."""
    git = ["git", "-C", str(ROOT), "ls-files", "*.py"]
    found = subprocess.run(git, capture_output=True, text=True).stdout.split()
    return [Path(name) for name in found if (ROOT / name).exists()]


FILES = [path for path in tracked() if path.parts[0].removesuffix(".py") in FLOOR]


def imports(path):
    """(module, is it at the top of the file?) of every import of a file, submodules included."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, node in tree.body
            yield from ((f"{node.module}.{alias.name}", node in tree.body) for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_down(path):
    """Catches a file that knows of what stands on it, and a package that nobody is told to
    install."""
    name = path.parts[0].removesuffix(".py")
    for module, at_the_top in imports(path):
        root = module.split(".")[0]
        if root in FLOOR:
            assert FLOOR[root] < FLOOR[name] or root == name != path.name[:-3], f"imports {module}"
        elif at_the_top:
            assert root in PACKAGES | set(sys.stdlib_module_names), f"imports {module}"


def test_the_lesson_stands_on_the_model_alone():
    """Catches plumbing in quiet_star.py."""
    ours = {module.split(".")[0] for module, _ in imports(Path("quiet_star.py"))} & FLOOR.keys()
    assert ours == {"model"}


def test_modules_do_not_import_each_other_in_circles():
    """Catches `from folder import module` too, inside of functions as well."""
    names = {".".join(path.with_suffix("").parts): path for path in FILES}
    arrows = {name: {m for m, _ in imports(path) if m in names} for name, path in names.items()}
    while arrows:
        free = [name for name, below in arrows.items() if not below & arrows.keys()]
        assert free, f"a circle among {', '.join(arrows)}"
        for name in free:
            del arrows[name]


@pytest.mark.parametrize("part", MOST_LINES)
def test_there_is_not_too_much_of_it(part):
    """Catches a house that grows: what comes in must be worth more than what goes."""
    files = [path for path in tracked() if (path.parts[0] == "tests") == (part == "tests")]
    lines = sum(len((ROOT / path).read_text("utf-8").splitlines()) for path in files)
    assert lines <= MOST_LINES[part]
