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


RULES = [page for page in sorted((ROOT / "docs" / "rules").glob("*.md")) if page.stem != "index"]
PARTS = [
    "The idea in a picture",
    "The mathematics",
    "How to use it",
    "Results",
    "Limits",
    "When to use it",
    "How it is checked",
    "References",
]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# Those of tutorials are run by test_tutorials.py, with their shell blocks.
WITH_PYTHON = [p for p in PAGES if BLOCK.search(p.read_text()) and p.parent.name != "tutorials"]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
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


@pytest.mark.parametrize("package", ["callbacks", "checkpoints", "datamodules", "metrics", "nn", "rules"])
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
    assert {page.name for page in pages} == {"results.md", "mgd.md", "sparseprop.md"}
    for page, text in pages.items():
        assert page.read_text() == text


def test_the_leaderboard_is_what_the_results_files_say():
    pages = runpy.run_path(str(ROOT / "docs" / "make_leaderboard.py"))["pages"]()
    assert {page.name for page in pages} == {"README.md", "leaderboard.md"}
    for page, text in pages.items():
        assert page.read_text() == text
    pictures = re.findall(r"\]\((leaderboard/[\w/]+\.png)\)", (ROOT / "docs" / "leaderboard.md").read_text())
    assert len(pictures) == 6
    assert [p for p in pictures if not (ROOT / "docs" / p).is_file()] == []


def test_the_page_of_reliability_is_what_was_counted():
    page = runpy.run_path(str(ROOT / "docs" / "make_reliability.py"))["page"]()
    assert (ROOT / "docs" / "reliability.md").read_text() == page


@pytest.mark.parametrize("page", RULES, ids=name)
def test_every_page_of_a_rule_has_the_same_parts_in_the_same_order_and_none_is_empty(page):
    text = re.sub(r"^```.*?^```", "code", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    heads_and_bodies = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)[1:]
    assert heads_and_bodies[::2] == PARTS
    parts = dict(zip(PARTS, heads_and_bodies[1::2], strict=True))
    assert [head for head, body in parts.items() if not body.strip()] == []
    assert f"]({page.stem}.svg)" in parts["The idea in a picture"]
    assert "../results.md" in parts["Results"]


def test_every_rule_is_in_both_galleries():
    gallery, front = (set(LINK.findall((ROOT / "docs" / page).read_text())) for page in ("rules/index.md", "index.md"))
    wanted = {f"{page.stem}{suffix}" for page in RULES for suffix in (".md", ".svg")}
    assert wanted - gallery == set()
    assert {f"rules/{target}" for target in wanted} - front == set()


def test_pictures_are_what_their_script_draws():
    pictures = runpy.run_path(str(ROOT / "docs" / "make_pictures.py"))["pictures"]()
    assert {path.name for path in pictures} >= {f"{page.stem}.svg" for page in RULES}
    for path, picture in pictures.items():
        assert path.read_text() == picture
        assert len(picture) < 25_000


@pytest.fixture
def reproduction(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("make_reproduction")


def test_the_reproduction_page_is_made_of_claims_and_what_was_recorded(reproduction):
    assert reproduction.PAGE.read_text() == reproduction.page()


def test_a_verdict_has_a_figure_or_is_none(reproduction):
    claims = [claim for paper in reproduction.papers() for claim in paper["claims"]]
    evidence = ("recipes", "studies", "benchmarks", "runs", "python")
    bare = [c["claim"] for c in claims if not any(c.get(kind) for kind in evidence)]
    assert bare == [c["claim"] for c in claims if c["verdict"] == "cannot be tested here"]


def test_a_row_that_no_page_shows_is_named(reproduction):
    command = "python tests/benchmarks/study_mgd.py noise"
    with pytest.raises(ValueError, match=r"no row of '.*noise' in rules/mgd.md begins with '0.02'"):
        reproduction.quoted("rules/mgd.md", command, ["0.02"])


def test_a_row_that_no_benchmark_measured_is_named(reproduction):
    with pytest.raises(ValueError, match=r"rows=\['12%'\] are not all in a table 'linear 768' of .*bench_sparseprop"):
        reproduction.benchmarked("bench_sparseprop", "linear 768", ["12%"])


def test_a_verdict_that_there_is_not_is_refused(reproduction):
    with pytest.raises(ValueError, match="verdict='maybe' of 'it works' is not one of reproduced, partly"):
        reproduction.block({"claim": "it works", "verdict": "maybe"}, {})


def test_scripts_of_the_reproduction_page_exist(reproduction):
    scripts = re.findall(r"python (tests/[\w/]+\.py)", reproduction.PAGE.read_text())
    assert [s for s in scripts if not (ROOT / s).exists()] == []
