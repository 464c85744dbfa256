"""A project that ``nobp new`` starts."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lightning_nobp

CHECKOUT = Path(lightning_nobp.__file__).parent.parent


def test_a_new_project_passes_its_own_tests(nobp, tmp_path):
    outcome = nobp("new", tmp_path / "echo-rules")
    assert outcome.status == 0, outcome.err
    assert f"next: cd {tmp_path}/echo-rules && pip install" in outcome.out
    folder = tmp_path / "echo-rules"
    path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    assert "4 passed" in run.stdout


def test_everything_has_the_projects_name(nobp, tmp_path):
    assert nobp("new", tmp_path / "echo-rules").status == 0
    folder = tmp_path / "echo-rules"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        ".gitignore",
        "README.md",
        "configs/digits.yaml",
        "echo_rules/__init__.py",
        "echo_rules/rule.py",
        "pyproject.toml",
        "tests/test_rule.py",
    }
    assert not [name for name in files if "my_project" in (folder / name).read_text()]
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == "echo-rules"
    assert project["tool"]["setuptools"]["packages"] == ["echo_rules"]


@pytest.mark.parametrize("name", ["1st", "class", "a b", "tests", "lightning-nobp"])
def test_what_is_no_name_of_a_package_is_refused(nobp, tmp_path, name):
    outcome = nobp("new", tmp_path / name)
    assert outcome.status == 2
    assert outcome.err.startswith(f"nobp: {name!r} is no name for a Python package")
    assert not (tmp_path / name).exists()


def test_a_folder_with_something_in_it_stays_as_it_is(nobp, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("important")
    assert nobp("new", tmp_path / "mine").err == f"nobp: {tmp_path}/mine is not empty: give a new folder\n"
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
