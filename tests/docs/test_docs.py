"""The Python of README and documentation runs, their links lead somewhere, and their recipes exist."""

import importlib
import inspect
import re
import runpy
import sys
import types
from pathlib import Path

import pytest

from lightning_nobp.cli import recipes

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *(p for p in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in p.relative_to(ROOT).parts),
]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CONFIG = re.compile(r"--config[ =]([\w./<>-]+)")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=name)
@pytest.mark.filterwarnings("ignore")
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A module, so that checkpoints can name the page's classes.
    module = types.ModuleType(f"docs_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    text = page.read_text()
    for block in BLOCK.finditer(text):
        # Tracebacks show the lines of the page.
        source = "\n" * text.count("\n", 0, block.start(1)) + block.group(1)
        exec(compile(source, str(page), "exec"), vars(module))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page):
    targets = [t.partition("#")[0] for t in LINK.findall(page.read_text()) if "://" not in t and t[0] != "#"]
    assert [t for t in targets if not (page.parent / t).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_nothing_is_left_to_be_filled_in(page):
    assert re.findall(r"@[A-Z]+@|TODO|FIXME", page.read_text()) == []


@pytest.mark.parametrize("package", ["callbacks", "datamodules", "metrics", "nn", "rules"])
def test_every_public_class_and_function_has_a_docstring_and_a_place_in_the_reference(package):
    module = importlib.import_module(f"lightning_nobp.{package}")
    # Names of types and tables are told of where they are used.
    public = {n: getattr(module, n) for n in module.__all__}
    documented = {n: thing for n, thing in public.items() if inspect.isclass(thing) or inspect.isfunction(thing)}
    reference = (ROOT / "docs" / "api" / f"{package}.rst").read_text()
    assert [n for n, thing in documented.items() if not inspect.getdoc(thing)] == []
    assert [n for n in documented if not re.search(rf"auto(class|function):: {n}$", reference, re.MULTILINE)] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_recipes_exist(page):
    """Names with a slash are shipped recipes, unless they end like a file of the reader's own."""
    named = [n for n in CONFIG.findall(page.read_text()) if "/" in n and not n.endswith(".yaml")]
    assert [n for n in named if n not in recipes.names()] == []


def test_results_are_those_that_were_recorded():
    pages = runpy.run_path(str(ROOT / "docs" / "make_results.py"))["pages"]()
    assert {page.name for page in pages} == {"README.md", "results.md", "mgd.md", "sparseprop.md"}
    for page, text in pages.items():
        assert page.read_text() == text
