"""The house: who may import whom, and what may be imported at all."""

import ast
import sys
from pathlib import Path

import pytest
from tiny_runs import ROOT

# from the ground up: an import only ever goes down
FLOORS = ["model", "lean", "quiet_star", "beyond", "lib", "data", "train", "eval sample", "studies"]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
PACKAGES = {"torch", "numpy", "tiktoken", "tqdm", "matplotlib"}
FILES = [
    path
    for path in ROOT.rglob("*.py")
    if path.relative_to(ROOT).parts[0].removesuffix(".py") in FLOOR
]
FILES = [path.relative_to(ROOT) for path in FILES]


def imports(tree):
    """(root of the module's name, is it at the top of the file?) of every import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0], node in tree.body


def test_nothing_else_lies_at_the_top():
    assert (
        sorted(path.name for path in ROOT.glob("*.py"))
        == "eval.py model.py quiet_star.py sample.py train.py".split()
    )


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_down(path):
    text = (ROOT / path).read_text("utf-8")
    tree, name = ast.parse(text), path.parts[0].removesuffix(".py")
    for root, at_the_top in imports(tree):
        if root in FLOOR:
            assert FLOOR[root] < FLOOR[name] or root == name and path.parts[0] == name, (
                f"{path} imports {root}"
            )
        elif at_the_top:
            assert root in PACKAGES | set(sys.stdlib_module_names), f"{path} imports {root}"


def test_inside_a_folder_modules_do_not_import_each_other_in_circles():
    for folder in ("lean", "beyond", "lib", "data", "studies"):
        arrows = {}
        for path in (p for p in FILES if p.parts[0] == folder):
            tree = ast.parse((ROOT / path).read_text("utf-8"))
            found = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
            arrows[".".join(path.with_suffix("").parts)] = {
                module for module in found if module.startswith(f"{folder}.")
            }
        while arrows:
            free = [name for name, below in arrows.items() if not below & arrows.keys()]
            assert free, f"a circle among {', '.join(arrows)}"
            for name in free:
                del arrows[name]


def test_it_is_no_package_to_install():
    """`pip install .` would put modules called model, train and data beside everybody else's."""
    assert "[project]" not in (Path(ROOT) / "pyproject.toml").read_text("utf-8")
