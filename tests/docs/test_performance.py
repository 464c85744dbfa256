"""The performance page says what the benchmarks measured, what failed and what is missing."""

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "tests" / "benchmarks"
MACHINE = {"processor": "P", "instruction_set": "AVX2", "cores": 2, "threads": 1, "compiler": None, "torch": "2"}
FOUND = {
    "command": "python tests/benchmarks/bench_backprop.py",
    "machine": MACHINE | {"python": "3", "date": "2026-01-01", "load": 1.0},
    "seconds": 3,
    "peers": {"one": "1.0", "other": None},
    "tables": [],
}


@pytest.fixture
def make_performance():
    return runpy.run_path(str(ROOT / "docs" / "make_performance.py"))


@pytest.fixture
def run_all(tmp_path, monkeypatch):
    """The runner of a project of its own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    run = runpy.run_path(str(BENCHMARKS / "run_all.py"))["run"]
    (tmp_path / "tests" / "benchmarks").mkdir(parents=True)
    monkeypatch.setitem(run.__globals__, "ROOT", tmp_path)
    monkeypatch.setitem(run.__globals__, "FOLDER", tmp_path)

    def run_script(source: str) -> dict:
        script = tmp_path / "tests" / "benchmarks" / "bench_mine.py"
        script.write_text(source)
        run(script, ["--rounds=1"], 1)
        return json.loads((tmp_path / "bench_mine.json").read_text())

    return run_script


def test_the_page_is_what_the_benchmarks_measured(make_performance):
    assert make_performance["PAGE"].read_text() == make_performance["page"]()


def test_a_failure_and_a_missing_library_are_named(make_performance):
    found = FOUND | {"failed": "ValueError: no"}
    overview = "\n".join(make_performance["overview"]({"bench_backprop": found}))
    assert "one 1.0, other (not installed: left out) **failed**: ValueError: no" in overview
    assert "The last run failed: `ValueError: no`." in make_performance["section"]("bench_backprop", found)


def test_machines_that_differ_are_told_apart(make_performance):
    other = FOUND | {"machine": FOUND["machine"] | {"processor": "Q"}}
    lines = make_performance["machines"]({"a": FOUND, "b": other, "c": FOUND})
    assert [line.rpartition(": ")[2] for line in lines if line.startswith("- ")] == ["a, c", "b"]


def test_figures_are_written_with_three_digits_and_counts_in_full():
    markdown = runpy.run_path(str(BENCHMARKS / "tables.py"))["markdown"]
    rows = [["a", 1024, 0.0312499], ["b", 8, 12345.6], ["c", 0, None], ["d", 1, 3.14159e-5]]
    lines = markdown(["way", "n", "ms"], rows)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[1] == ["---", "----:", "------:"]
    assert cells[2:] == [["a", "1,024", "0.0312"], ["b", "8", "12,346"], ["c", "0", ""], ["d", "1", "3.1e-05"]]


def test_a_script_that_fails_is_noted_with_its_last_words(run_all):
    assert run_all("raise ValueError('no such thing')")["failed"] == "ValueError: no such thing"


def test_what_was_measured_before_a_failure_is_kept(run_all):
    source = """
import sys
sys.path.insert(0, BENCHMARKS)
from report import Report, options
Report(options(None, rounds=5)).table("t", [{"n": 1, "ms": 2.0}])
sys.exit("enough")
"""
    found = run_all(source.replace("BENCHMARKS", repr(str(BENCHMARKS))))
    assert found["tables"] == [{"title": "t", "columns": ["n", "ms"], "rows": [[1, 2.0]]}]
    assert found["command"] == "python tests/benchmarks/bench_mine.py --rounds=1"
    assert found["failed"] == "enough"
